"""Trace one module's own forward into a torch.fx graph, with every child as a leaf, or refuse.

torch.fx's own tracer patches nn.Module for the whole process and burns in, without a word, whatever Python
sees: ``self.training``, attributes, isinstance of an input. Here the forward runs with a stand-in for
``self``. Whatever it reads there is either a symbol in the graph or a value that the plan is guarded by;
whatever else it does is refused.
"""

from __future__ import annotations

import copy
import enum
from collections.abc import Iterator
from types import BuiltinFunctionType, FunctionType
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import Proxy, Scope, TracerBase

from .fused import unhooked
from .rules import Refused, check_forward, check_value, required_arguments
from .symbols import InputSymbol, Record, Symbol

CHILDREN = "<children>"  # a guard on the names of a container's children
CHILD = "<child>"  # a guard on a child being there, whatever it is
BARE = "<bare>"  # a guard on a child being exactly of a type, without hooks
TENSOR = "<tensor>"  # a guard on a tensor being there, whatever it is
MISSING = "<missing>"

_LITERALS = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis), torch.dtype, torch.device)
_LITERALS += (torch.memory_format, torch.layout)
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class Guard(NamedTuple):
    """The plan holds while ``name`` of the module under ``path`` is what it was."""

    path: tuple[str, ...]
    name: str
    expected: Any

    def holds(self, module: nn.Module) -> bool:
        """Whether it does for ``module``, the one that was traced or a copy of it."""
        for name in self.path:
            child = module._modules.get(name)
            if child is None:
                return False
            module = child
        if self.name == CHILDREN:
            return tuple(module._modules) == self.expected
        if self.name == BARE:
            return type(module) is self.expected and unhooked(module)
        if self.expected is TENSOR:
            return isinstance(_tensor(module, self.name), Tensor)
        value = getattr(module, self.name, MISSING)
        if self.expected is CHILD:
            return isinstance(value, nn.Module)
        return value is self.expected or (type(value) is type(self.expected) and value == self.expected)


class Traced(NamedTuple):
    """A forward as a graph of its calls, for ``arity`` tensors, right while all ``guards`` hold."""

    graph: fx.Graph
    guards: tuple[Guard, ...]
    arity: int


def trace(module: nn.Module, owner: type[nn.Module], training: bool) -> Traced:
    """The graph of ``owner.forward`` on ``module`` in training or evaluation mode.

    Raises:
        Refused: if the graph could ever differ from the forward.
    """
    if (
        owner.__getattribute__ is not object.__getattribute__
        or owner.__getattr__ is not nn.Module.__getattr__
    ):
        raise Refused("has its own way of reading attributes")
    tracer = Tracer(module, owner, training)
    try:
        check_forward(owner.forward, owner)
        names = list(required_arguments(owner.forward))
        inputs = [InputSymbol(tracer.create_node("placeholder", name, (), {}), tracer) for name in names]
        with Record(tracer):
            out = owner.forward(View(tracer, module, ()), *inputs)
        tracer.create_node("output", "output", (tracer.create_arg(out),), {})
    except Refused:
        raise
    except Exception as error:
        line = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise Refused(f"cannot be traced: {line}") from error
    finally:
        changed = [guard for guard in tracer.guards.values() if not tracer.restore(guard)]
    if changed:
        raise Refused(f"changes self.{changed[0].name}")
    return Traced(tracer.graph, tuple(tracer.guards.values()), len(names))


class Tracer(TracerBase):
    """Collects the graph and the guards."""

    def __init__(self, module: nn.Module, owner: type[nn.Module], training: bool) -> None:
        self.graph = fx.Graph()
        self.scope = Scope("", None)
        self.module_stack = {}
        self.node_name_to_scope = {}
        self.module = module
        self.owner = owner
        self.training = training
        self.guards: dict[tuple[tuple[str, ...], str], Guard] = {}
        self.views: dict[tuple[str, ...], View] = {}
        self.called: set[nn.Module] = set()  # so far, with all inside them

    def proxy(self, node: fx.Node) -> Proxy:
        return Symbol(node, self)

    def guard(self, path: tuple[str, ...], name: str, expected: Any) -> Any:
        """Make the plan depend on what has just been read; returns what was read."""
        self.guards.setdefault((path, name), Guard(path, name, copy.deepcopy(expected)))
        return expected

    def restore(self, guard: Guard) -> bool:
        """Undo what the trace did to a list, dict or set that it read; False if it did."""
        module = self.module.get_submodule(".".join(guard.path))
        value = getattr(module, guard.name, MISSING)
        if not isinstance(guard.expected, (list, dict, set)) or value == guard.expected:
            return True
        value.clear()
        value.extend(guard.expected) if isinstance(value, list) else value.update(guard.expected)
        return False

    def view(self, path: tuple[str, ...], module: nn.Module) -> View:
        """The one stand-in for the child under ``path``."""
        if path not in self.views:
            self.views[path] = View(self, module, path)
        return self.views[path]

    def create_arg(self, a: Any) -> Any:
        kind = type(a)
        if issubclass(kind, Proxy):
            return a.node
        if kind in (tuple, list):
            return kind([self.create_arg(element) for element in a])
        if issubclass(kind, tuple) and hasattr(kind, "_fields"):
            return self.create_node("call_function", kind, tuple(map(self.create_arg, a)), {})
        if kind is dict and all(type(key) in (str, int) for key in a):
            return {key: self.create_arg(value) for key, value in a.items()}
        if kind is slice:
            return slice(*map(self.create_arg, (a.start, a.stop, a.step)))
        if kind not in _LITERALS:
            raise Refused(f"hands on a {kind.__name__}")
        return a

    def to_bool(self, obj: Proxy) -> NoReturn:
        raise Refused("branches on a value that only a call can know")

    def iter(self, obj: Proxy) -> NoReturn:
        raise Refused("iterates over a tensor")

    def keys(self, obj: Proxy) -> NoReturn:
        raise Refused("takes the keys of a value")


class View:
    """What a traced forward gets for ``self`` and for every child."""

    def __init__(self, tracer: Tracer, module: nn.Module, path: tuple[str, ...]) -> None:
        object.__setattr__(self, "_at", (tracer, module, path))

    def __getattribute__(self, name: str) -> Any:
        return _read(self, *object.__getattribute__(self, "_at"), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Proxy:
        tracer, module, path = object.__getattribute__(self, "_at")
        if not path:
            raise Refused("calls itself")
        if any(map(_changeable, (*args, *kwargs.values()))):
            raise Refused(f"hands a list or dict to self.{'.'.join(path)}, which may change it")
        tracer.called.update(module.modules())
        return tracer.create_proxy("call_module", ".".join(path), args, kwargs)

    def __eq__(self, other: object) -> bool:
        if issubclass(type(other), (View, nn.Module)):  # two names may stand for one module
            raise Refused("compares modules")
        return False

    def __bool__(self) -> bool:
        _, module, _ = object.__getattribute__(self, "_at")
        return bool(len(self)) if hasattr(module, "__len__") or hasattr(module, "__bool__") else True

    def __len__(self) -> int:
        return len(_children(self, "__len__"))

    def __iter__(self) -> Iterator[Any]:
        children = _children(self, "__iter__")
        _, module, _ = object.__getattribute__(self, "_at")
        return iter(list(children) if isinstance(module, nn.ModuleDict) else list(children.values()))

    def __contains__(self, name: str) -> bool:
        return name in _children(self, "__contains__")

    def __getitem__(self, key: Any) -> Any:
        children = _children(self, "__getitem__")
        if isinstance(key, str):
            return children[key]
        if not isinstance(key, int):
            raise Refused("slices a container of modules")
        return list(children.values())[key]


def _children(view: View, method: str) -> dict[str, View]:
    """The children of a container that still has torch's own ``method``."""
    tracer, module, path = object.__getattribute__(view, "_at")
    own = getattr(type(module), method, None)
    if not any(own is getattr(container, method, MISSING) for container in _CONTAINERS):
        raise Refused(f"calls {method} of a {type(module).__name__}")
    tracer.guard(path, CHILDREN, tuple(module._modules))
    return {name: tracer.view((*path, name), child) for name, child in module._modules.items()}


def _read(view: View, tracer: Tracer, module: nn.Module, path: tuple[str, ...], name: str) -> Any:
    """Attribute ``name`` of ``module``, looked up in torch.nn.Module's order."""
    if name == "__class__":
        return tracer.guard(path, name, module.__class__) if path else tracer.owner
    if name == "training" and not path:
        return tracer.training
    shown = ".".join(("self", *path, name))
    if name in vars(module):
        return _value(tracer, path, name, vars(module)[name], shown)
    for parent in (type(module) if path else tracer.owner).__mro__:
        if name in vars(parent):
            return _class_attribute(view, tracer, path, name, vars(parent)[name], shown)
    if name in module._modules:
        child = module._modules[name]
        tracer.guard(path, name, None if child is None else CHILD)
        return None if child is None else tracer.view((*path, name), child)
    for tensors in (module._parameters, module._buffers):
        if name in tensors:
            return _value(tracer, path, name, tensors[name], shown)
    tracer.guard(path, name, MISSING)
    raise AttributeError(f"no attribute {name!r}")


def _value(tracer: Tracer, path: tuple[str, ...], name: str, value: Any, shown: str) -> Any:
    if isinstance(value, Tensor):
        tracer.guard(path, name, TENSOR)
        return tracer.create_proxy("get_attr", ".".join((*path, name)), (), {})
    if isinstance(value, (FunctionType, BuiltinFunctionType)):
        check_value(value, shown, tracer.owner)
    elif not _plain(value):
        raise Refused(f"reads {shown}, a {type(value).__name__}")
    if tracer.called and name != "training" and _may_have_changed(tracer, path, value):
        raise Refused(f"reads {shown} after a call that may change it")
    return tracer.guard(path, name, value)


def _class_attribute(
    view: View, tracer: Tracer, path: tuple[str, ...], name: str, value: Any, shown: str
) -> Any:
    if isinstance(value, staticmethod):
        check_value(value.__func__, shown, tracer.owner)
        return value.__func__
    if path and value in (nn.ModuleDict.keys, nn.ModuleDict.values, nn.ModuleDict.items):
        return getattr(_children(view, name), name)
    if isinstance(value, (FunctionType, property)):
        if path:
            raise Refused(f"uses {shown}, a {type(value).__name__}")
        check_forward(value.fget if isinstance(value, property) else value, tracer.owner)
        return value.__get__(view, tracer.owner)
    return _value(tracer, path, name, value, shown)


def _may_have_changed(tracer: Tracer, path: tuple[str, ...], value: Any) -> bool:
    """Whether what has been called by now may have set the attribute ``value`` of the module under ``path``.

    A module may set its own, though torch's do not; any hook may set those of what it holds.
    """
    module = tracer.module.get_submodule(".".join(path))
    if module in tracer.called and not type(module).__module__.startswith(("torch.", "fastdl.")):
        return True
    for called in tracer.called:
        for hook in (*called._forward_pre_hooks.values(), *called._forward_hooks.values()):
            held = (
                [getattr(hook, "__self__", None), *vars(hook).values()] if hasattr(hook, "__dict__") else []
            )
            held += [cell.cell_contents for cell in getattr(hook, "__closure__", None) or ()]
            if any(part is module or part is value for part in held if part is not None):
                return True
    return False


def _changeable(value: Any) -> bool:
    """Whether ``value`` is, or holds, what a callee could change."""
    kind = type(value)
    return issubclass(kind, (list, dict)) or (issubclass(kind, tuple) and any(map(_changeable, value)))


def _tensor(module: nn.Module, name: str) -> Any:
    """What ``module`` stores under ``name``; what a parametrization has taken over is a tensor unseen."""
    for values in (vars(module), module._parameters, module._buffers):
        if name in values:
            return values[name]
    return torch.empty(0) if hasattr(type(module), name) else None


def _plain(value: Any) -> bool:
    if type(value) in (tuple, list, set, torch.Size):
        return all(map(_plain, value))
    if type(value) is dict:
        return all(_plain(key) and _plain(element) for key, element in value.items())
    return type(value) in _LITERALS or isinstance(value, enum.Enum)
