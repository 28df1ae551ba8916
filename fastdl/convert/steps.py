"""Recognise the calls that patterns are made of, whether written as modules, functions or methods."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn

from .. import activations, functional
from . import fused


class Step(NamedTuple):
    """A node that patterns know, whether written as a module, a function or a method."""

    kind: str  # conv, norm, pool, act, relu (an act that commutes with the maximum)
    text: str
    act: tuple[str, float | None] | None = None  # of a functional activation


_ACT_FUNCTIONS: dict[Any, str] = {
    **dict.fromkeys([F.relu, torch.relu, torch.relu_, F.relu_, "relu", "relu_"], "relu"),
    **dict.fromkeys([F.leaky_relu, F.leaky_relu_], "leaky_relu"),
    **dict.fromkeys([F.elu, F.elu_], "elu"),
    **dict.fromkeys([torch.sigmoid, torch.sigmoid_, F.sigmoid, "sigmoid", "sigmoid_"], "sigmoid"),
    **dict.fromkeys([torch.tanh, torch.tanh_, F.tanh, "tanh", "tanh_"], "tanh"),
    F.softplus: "softplus",
}
NAMESAKES: dict[Any, Callable[..., Any]] = {
    F.conv2d: functional.conv2d,
    torch.conv2d: functional.conv2d,
    F.batch_norm: functional.batch_norm,
    F.max_pool2d: functional.max_pool2d,
    torch.max_pool2d: functional.max_pool2d,
    F.cross_entropy: functional.cross_entropy,
}
_KINDS = {functional.conv2d: "conv", functional.batch_norm: "norm", functional.max_pool2d: "pool"}
OPS = {"conv": "conv2d", "norm": "batch_norm", "pool": "max_pool2d"}
_MODULES = (
    (fused.CONVS, "conv"),
    (fused.NORMS, "norm"),
    (fused.POOLS, "pool"),
    ((nn.ReLU,), "relu"),
    (fused.ACTS, "act"),
)
#: What writes to its first argument in the graphs of torch.compile.
_IN_PLACE = {operator.setitem, *(getattr(operator, name) for name in fused.IN_PLACE)}
#: Modules whose result is memory of their own, and that write nowhere else.
_FRESH = (*fused.CONVS, nn.Conv1d, nn.Conv3d, nn.Linear, *fused.NORMS)


class Reader:
    """Reads the graph of ``module``'s forward."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.relied_on: set[str] = set()  # children that must stay of the type that they are, for `movable`

    def child(self, node: fx.Node, types: tuple[type[nn.Module], ...]) -> nn.Module | None:
        """The child that ``node`` calls, if it is of exactly one of these types."""
        if node.op != "call_module" or node.kwargs:
            return None
        child = self.module.get_submodule(node.target)
        return child if type(child) in types else None

    def step_of(self, node: fx.Node) -> Step | None:
        if not node.args or not isinstance(node.args[0], fx.Node):
            return None
        if node.op == "call_module":
            for types, kind in _MODULES:
                child = self.child(node, types)
                if child is not None and len(node.args) == 1:
                    if kind == "act" and fused.activation_spec(child) is None:
                        return None
                    return Step(kind, self.label(node))
        elif node.op == "call_function" and node.target in _KINDS:
            kind = _KINDS[node.target]
            if kind == "pool":  # with indices, or with what a call knows only: not moved behind a relu
                bound = bind(functional.max_pool2d, node)
                if bound["return_indices"] or any(isinstance(v, fx.Node) for v in list(bound.values())[1:]):
                    return None
            return Step(kind, node.target.__name__)
        elif node.op in ("call_function", "call_method") and node.target in _ACT_FUNCTIONS:
            name = _ACT_FUNCTIONS[node.target]
            act = _functional_act(name, node)
            return act and Step("relu" if name == "relu" else "act", name, act)
        return None

    def label(self, node: fx.Node) -> str:
        """How explain shows the call of a child: its name, and its type where the name is a number."""
        number = node.target.rpartition(".")[2].isdigit()
        kind = type(self.module.get_submodule(node.target)).__name__
        return f"{node.target} ({kind})" if number else node.target

    def kind_of(self, node: Any) -> str | None:
        step = self.step_of(node) if isinstance(node, fx.Node) else None
        return step and step.kind

    def softmax_dim(self, node: fx.Node) -> int | None:
        if not node.args or not isinstance(node.args[0], fx.Node):
            return None
        if child := self.child(node, (nn.LogSoftmax,)):
            return child.dim
        known = node.target in (F.log_softmax, torch.log_softmax, "log_softmax")
        if not known or len(node.args) > 2 or node.kwargs.get("dtype") is not None:
            return None
        dim = node.args[1] if len(node.args) == 2 else node.kwargs.get("dim")
        return dim if type(dim) is int else None

    def sampling(self, sample: fx.Node) -> tuple[fx.Node, tuple[Any, ...]] | None:
        """The affine_grid whose only user is ``sample``, a grid_sample, and the fused call's arguments."""
        if sample.target is not F.grid_sample:
            return None
        outer = bind(F.grid_sample, sample)
        grid = outer["grid"]
        if not only_user(grid) or grid.target is not F.affine_grid or outer["input"] is grid:
            return None
        inner = bind(F.affine_grid, grid)
        if bool(inner["align_corners"]) != bool(outer["align_corners"]):
            return None
        args = (inner["theta"], inner["size"], outer["align_corners"])
        return grid, (*args, outer["input"], outer["mode"], outer["padding_mode"])

    def nll(self, loss: fx.Node) -> tuple[Any, Any, dict[str, Any]] | None:
        """Input, target and options of ``loss``, a functional nll_loss."""
        if loss.target is not F.nll_loss:
            return None
        options = bind(F.nll_loss, loss)
        if options.pop("size_average") is not None or options.pop("reduce") is not None:
            return None
        return options.pop("input"), options.pop("target"), options

    def movable(self, node: fx.Node, to: fx.Node) -> bool:
        """Whether ``node`` may be computed only at ``to``: nothing between may write to its input."""
        between = []
        following = node.next
        while following is not to:
            between.append(following)
            following = following.next
        names = [n.target for n in between if n.op == "call_module"]
        called = [self.module.get_submodule(name) for name in names]
        if node.op == "call_module":
            child = self.module.get_submodule(node.target)
            if any(child is part for module in called for part in module.modules()):
                return False  # its running statistics would be updated in another order
        source = node.args[0] if node.args else None
        if only_user(source) and self.child(source, _FRESH):
            names = [source.target]
        elif not all(type(module) in _FRESH for module in called) or any(map(writes, between)):
            return False
        if between:
            self.relied_on.update(names)
        return True


def saves_input(act: str) -> bool:
    """Whether torch's own activation of that name saves its input for backward, not its output."""
    return act not in ("relu", "sigmoid", "tanh")


def overwritten(node: fx.Node, module: nn.Module) -> bool:
    """Whether a call writes into the value of ``node``: autograd must not have saved it then."""
    for user in node.users:
        if user.op == "call_module":
            if getattr(module.get_submodule(user.target), "inplace", False):
                return True
        elif writes(user) and node in (user.args[1:2] if user.target is fused.in_place else user.args[:1]):
            return True
    return False


def only_user(node: Any) -> bool:
    return isinstance(node, fx.Node) and len(node.users) == 1


def addition(node: fx.Node) -> tuple[fx.Node, fx.Node, bool] | None:
    """The two values that ``node`` adds, and whether it writes the sum into the first."""
    args = node.args
    in_place = node.target == "add_"
    if node.target is fused.in_place and args[0] == "iadd":
        args, in_place = args[1:], True
    elif node.target is operator.iadd:
        in_place = True
    elif node.target not in (operator.add, torch.add, "add", "add_"):
        return None
    if node.kwargs or len(args) != 2 or not all(isinstance(arg, fx.Node) for arg in args):
        return None
    return args[0], args[1], in_place


def _functional_act(name: str, node: fx.Node) -> tuple[str, float | None] | None:
    """Name and parameter of a functional activation, or None where kernels have none like it."""
    key = {"leaky_relu": "negative_slope", "elu": "alpha"}.get(name)
    options = {k: v for k, v in node.kwargs.items() if k != "inplace"}
    given = list(node.args[1:])
    if key is None:
        if name in ("sigmoid", "tanh", "softplus") and given:
            return None
        return None if options or len(given) > 1 else (name, None)
    param = given[0] if given else options.pop(key, activations.ACTIVATIONS[name].param)
    if options or len(given) > 2 or type(param) not in (int, float):
        return None
    return (name, float(param)) if param > 0 or (name == "leaky_relu" and param == 0) else None


def bind(function: Callable[..., Any], node: fx.Node) -> dict[str, Any]:
    """The arguments of ``node`` by name, with the defaults of ``function``."""
    bound = inspect.signature(function).bind(*node.args, **node.kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def writes(node: fx.Node) -> bool:
    """Whether ``node``, not the call of a module, may write into an argument."""
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.is_mutable
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "_")
    flags = node.args if getattr(node.target, "__module__", "") == F.__name__ else ()  # F.relu(x, True)
    in_place = node.target is fused.in_place or node.target in _IN_PLACE or node.kwargs.get("inplace", False)
    in_place = in_place or node.kwargs.get("out") is not None or any(flag is True for flag in flags)
    return node.op in ("call_function", "call_method") and (name.endswith("_") or in_place)
