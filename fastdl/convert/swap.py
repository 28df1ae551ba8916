"""Change what a module runs by changing its class, and back: its contents are never touched.

A leaf (nn.Conv2d) gets the class of its fastdl.nn namesake and a mark. A module with a forward of its own
gets a subclass, made once per class, whose forward runs a plan; the plan is an attribute of the instance. It
holds names, not modules, so replicas may share it; copies and pickles are without it and make their own.
"""

from __future__ import annotations

import copyreg
import functools
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.module import _has_any_global_hook

from .. import nn as fast
from .patterns import Call, rewrite
from .rules import Refused
from .trace import BARE, Guard, trace

MARK = "_fastdl_swapped"
PLANS = "_fastdl_plans"
_ORIGINAL = "_fastdl_original"
_REPLANS = 8  # after so many the forward is not worth planning: something that it reads keeps changing

LEAVES: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: fast.Conv2d,
    nn.BatchNorm1d: fast.BatchNorm1d,
    nn.BatchNorm2d: fast.BatchNorm2d,
    nn.BatchNorm3d: fast.BatchNorm3d,
    nn.MaxPool2d: fast.MaxPool2d,
    nn.CrossEntropyLoss: fast.CrossEntropyLoss,
}
_TORCH = {ours: theirs for theirs, ours in LEAVES.items()}
_converted: dict[type[nn.Module], type[nn.Module]] = {}


class Plan(NamedTuple):
    """How a forward runs in one mode; ``run`` is None where it runs as written, and ``reason`` says why."""

    run: Callable[..., Any] | None
    arity: int = 0
    guards: tuple[Guard, ...] = ()
    calls: tuple[Call, ...] = ()
    reason: str = ""
    remade: int = 0


class Plans(dict[bool, Plan]):
    """The plan of an instance for each mode; a copy or a pickle of it is empty, to be filled when needed."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Plans, ()


def original_class(module: nn.Module) -> type[nn.Module]:
    """The class of ``module`` before any conversion (others may have put a class of theirs on top since)."""
    return getattr(type(module), _ORIGINAL, type(module))


def is_converted(module: nn.Module) -> bool:
    """Whether ``module``'s forward runs a plan."""
    return hasattr(type(module), _ORIGINAL)


def swap_leaf(module: nn.Module) -> None:
    """Give a leaf of exactly torch's type the class of its namesake here."""
    if type(module) in LEAVES and "forward" not in module.__dict__:
        module.__class__ = LEAVES[type(module)]
        module.__dict__[MARK] = True


def swap_container(module: nn.Module) -> None:
    """Give a module a forward that runs a plan, if a plan would do better than its own."""
    plans = Plans({training: make_plan(module, training) for training in (True, False)})
    if any(plan.run is not None for plan in plans.values()):
        try:
            module.__class__ = _converted_class(type(module))
        except Exception:  # a class that cannot have subclasses: its __init_subclass__ or metaclass objects
            return
        module.__dict__[PLANS] = plans


def restore(module: nn.Module) -> None:
    """Undo swap_leaf or swap_container; not under a class that others put on top, as parametrize does."""
    if MARK in module.__dict__ and type(module) in _TORCH:
        module.__class__ = _TORCH[type(module)]
        del module.__dict__[MARK]
    if _ORIGINAL in type(module).__dict__:
        module.__class__ = original_class(module)
        module.__dict__.pop(PLANS, None)


def make_plan(module: nn.Module, training: bool) -> Plan:
    """The plan for ``module`` in one mode, from a trace of its forward."""
    owner = original_class(module)
    if (reason := not_traced(module, owner)) is not None:
        return Plan(None, reason=reason)
    try:
        traced = trace(module, owner, training)
    except Refused as refusal:
        return Plan(None, reason=f"{owner.__name__}.forward {refusal}")
    try:
        calls, relied_on, left_out = rewrite(traced.graph, module)
        run = _function(traced.graph, f"{owner.__qualname__}, {'training' if training else 'evaluation'}")
    except Exception as error:  # no graph of a user is worth an error: it runs as written
        return Plan(None, reason=f"{owner.__name__}.forward cannot be rewritten ({error!r})")
    if not any(call.rewritten for call in calls):
        return Plan(None, calls=tuple(calls))
    types = [
        Guard(tuple(name.split(".")), "__class__", type(module.get_submodule(name))) for name in relied_on
    ]
    identities = [Guard(tuple(name.split(".")), BARE, nn.Identity) for name in left_out]
    return Plan(run, traced.arity, (*traced.guards, *types, *identities), tuple(calls))


def not_traced(module: nn.Module, owner: type[nn.Module]) -> str | None:
    """Why the forward of ``module`` is not even tried; None if it is."""
    name = owner.__name__
    if isinstance(module, torch.jit.ScriptModule):
        return f"{name} is compiled by TorchScript"
    if isinstance(module, fx.GraphModule):
        return f"{name} is a torch.fx graph already"
    if "forward" in module.__dict__:
        return f"the forward of this {name} was replaced on the instance"
    written_in = getattr(owner.forward, "__module__", None) or ""
    if written_in == fast.__name__:
        return f"{name} is fastdl's own"
    if written_in.split(".")[0] == "torch" and owner.forward is not nn.Sequential.forward:
        return f"{name} runs torch's own forward"
    return None


def _function(graph: fx.Graph, name: str) -> Callable[..., Any]:
    code = graph.python_code("self")
    filename = f"<fastdl: {name} {zlib.crc32(code.src.encode()):08x}>"
    namespace = dict(code.globals)
    exec(compile(code.src, filename, "exec"), namespace)
    return namespace["forward"]


def _current_plan(module: nn.Module) -> Plan | None:
    """The plan for the mode that ``module`` is in, made anew where what it was made for has changed.

    None while there are hooks on all modules: they are to see every call.
    """
    if _has_any_global_hook():
        return None
    plans = module.__dict__.get(PLANS)
    plan = None if plans is None else plans.get(module.training)
    if plan is not None:
        for guard in plan.guards:
            if not guard.holds(module):
                break
        else:
            return plan
    if torch.compiler.is_compiling():
        return None  # the forward as written: a trace cannot make a plan
    remade = 0 if plan is None else plan.remade + 1
    if remade < _REPLANS:
        plan = make_plan(module, module.training)._replace(remade=remade)
    else:
        plan = Plan(None, reason="what the forward reads keeps changing")
    module.__dict__.setdefault(PLANS, Plans())[module.training] = plan
    return plan


def _converted_class(owner: type[nn.Module]) -> type[nn.Module]:
    """The subclass of ``owner`` that runs plans; it passes for ``owner`` in everything that is printed."""
    if owner in _converted:
        return _converted[owner]
    original = owner.forward

    @functools.wraps(original)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not kwargs and all([isinstance(arg, Tensor) for arg in args]):
            plan = _current_plan(self)
            if plan is not None and plan.run is not None and plan.arity == len(args):
                return plan.run(self, *args)
        return original(self, *args, **kwargs)

    def __reduce_ex__(self: nn.Module, protocol: Any) -> Any:
        reduced = owner.__reduce_ex__(self, protocol)
        if not isinstance(reduced, tuple) or reduced[0] is not copyreg.__newobj__:
            return reduced  # a way of its own
        return _rebuild, (owner, *reduced[1][1:]), *reduced[2:]

    namespace = {
        "forward": forward,
        "__reduce_ex__": __reduce_ex__,
        "__module__": owner.__module__,
        "__qualname__": owner.__qualname__,
        "__doc__": owner.__doc__,
        _ORIGINAL: owner,
    }
    _converted[owner] = type(owner)(owner.__name__, (owner,), namespace)
    return _converted[owner]


def _rebuild(owner: type[nn.Module], *args: Any) -> nn.Module:
    """An empty instance of the converted class, for copies and pickles."""
    return owner.__new__(_converted_class(owner), *args)
