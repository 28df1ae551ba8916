"""The backend "fastdl" of torch.compile: fused calls in the graphs that Dynamo captures.

    torch.compile(model, backend="fastdl")
    torch.compile(model, backend="fastdl", options={"inner": "inductor"})

The entry point in pyproject.toml makes the name known to torch, with or without ``import fastdl``. Dynamo's
graph is flat: sequences that lie in several modules are found too, which ``convert`` leaves as they are. It
holds functional calls only, so a fused call stands for good; what Dynamo does not capture runs as written.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from . import functional
from .convert import fused
from .convert.steps import NAMESAKES, Reader, addition, bind, only_user, saves_input, writes

#: Calls that write to nothing and switch nothing: another may be computed behind them instead of before.
_QUIET = (
    functional.conv2d,
    functional.max_pool2d,
    F.avg_pool2d,
    F.adaptive_avg_pool2d,
    torch._C._nn.linear,
    torch.cat,
    torch.flatten,
    operator.add,
    operator.getitem,
    operator.mul,
)


def fastdl(
    graph_module: fx.GraphModule,
    example_inputs: list[Any],
    *,
    mode: str | None = None,
    options: dict[str, Any] | None = None,
) -> Callable[..., Any]:
    """Fuse the calls of ``graph_module`` and hand it to another backend of torch.compile.

    Args:
        graph_module, example_inputs: from Dynamo.
        mode: torch.compile's, for the inner backend.
        options: ``{"inner": name}`` is the backend for the graph then. "eager" (default) runs it call by call
            and follows ``fastdl.use_backend``; "inductor" and others compile in what is in force when they
            compile. Further options are the inner backend's.
    """
    from torch._dynamo.backends.registry import lookup_backend

    rest = dict(options or {})
    inner = lookup_backend(rest.pop("inner", "eager"))
    given = {name: value for name, value in (("mode", mode), ("options", rest)) if value}
    for module in graph_module.modules():  # torch.utils.checkpoint and the like have graphs inside
        if isinstance(module, fx.GraphModule):
            _Rewriter(module).run()
    return inner(graph_module, example_inputs, **given)


def norm_add_act(
    norm: tuple[Any, ...],
    other: Any,
    act: fused.Act | None,
    first: bool,
    add_in_place: bool,
) -> Tensor:
    """``act(batch_norm(*norm) + other)``, or ``other + batch_norm`` unless the norm comes first."""
    options = dict(zip(("activation", "activation_param"), act or (None, None), strict=True))
    if fused.alike(norm[0], other):
        return functional.batch_norm(*norm, residual=other, **options)
    a, b = functional.batch_norm(*norm), other
    a, b = (a, b) if first else (b, a)
    out = a.add_(b) if add_in_place else a + b
    return out if act is None else fused.activate(act, out)


class _Rewriter(Reader):
    """Finds the sequences of a graph at their last calls, like convert's on the graphs that it traces."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.graph = module.graph

    def run(self) -> None:
        for node in self.graph.nodes:
            if node.op == "call_function":
                node.target = NAMESAKES.get(node.target, node.target)
        for fuse in (self._activation, self._addition, self._pool, self._sampling, self._loss):
            for node in list(self.graph.nodes):
                fuse(node)
        self.graph.lint()
        self.module.recompile()

    def _activation(self, act: fx.Node) -> None:
        step = self.step_of(act)
        if step is None or step.act is None or not only_user(act.args[0]):
            return
        if saves_input(step.act[0]) and _overwritten(act):
            return  # the fused call saves its output
        before = act.args[0]
        if addition(before) is not None:
            self._norm_add(before, act, step.act)
            return
        first = before
        if self.kind_of(before) == "pool" and step.kind == "relu" and only_user(before.args[0]):
            first = before.args[0]  # relu commutes with the maximum
        kinds = ("conv",) if first is not before else ("conv", "norm")
        if self.kind_of(first) in kinds and "activation" not in first.kwargs and _same_mode(first, act):
            name, param = step.act
            first.kwargs = {**first.kwargs, "activation": name, "activation_param": param}
            self._replace([act], before)

    def _addition(self, add: fx.Node) -> None:
        if addition(add) is not None:
            self._norm_add(add, None, None)

    def _norm_add(self, add: fx.Node, act: fx.Node | None, spec: fused.Act | None) -> None:
        """The norm that comes last takes the other term, so that none is computed later than written."""
        a, b, in_place = addition(add)
        for norm, other in ((b, a), (a, b)):
            plain = self.kind_of(norm) == "norm" and only_user(norm) and "activation" not in norm.kwargs
            if not plain or a is b or not other < norm or not _undisturbed(norm, add):
                continue
            if in_place and norm is b and not (self.kind_of(a) == "norm" and only_user(a)):
                continue  # the sum must be seen in what it is written to
            if act is None or _same_mode(norm, act):
                break
        else:
            return
        bound = tuple(bind(F.batch_norm, norm).values())
        with self.graph.inserting_before(norm):
            args = (bound, other, spec, norm is a, in_place)
            new = self.graph.create_node("call_function", norm_add_act, args, {})
        self._replace([act, add, norm], new)

    def _pool(self, pool: fx.Node) -> None:
        """conv -> (relu ->) max_pool; any other activation does not commute with the maximum for sure."""
        if self.kind_of(pool) != "pool" or not only_user(pool.args[0]):
            return
        conv = pool.args[0]
        if self.kind_of(conv) != "conv" or conv.kwargs.get("activation") not in (None, "relu"):
            return
        window = fused.plain_pool(None, pool.args[1:], dict(pool.kwargs))
        if window is None or not _same_mode(conv, pool):
            return
        options = {"pool_kernel_size": window[0], "pool_stride": window[1]}
        with self.graph.inserting_before(conv):
            new = self.graph.create_node(
                "call_function", functional.conv2d_max_pool2d, conv.args, {**conv.kwargs, **options}
            )
        self._replace([pool, conv], new)

    def _sampling(self, sample: fx.Node) -> None:
        if (found := self.sampling(sample)) is not None:
            grid, args = found
            if _undisturbed(grid, sample):
                with self.graph.inserting_before(sample):
                    new = self.graph.create_node("call_function", fused.affine_grid_sample, args, {})
                self._replace([sample, grid], new)

    def _loss(self, loss: fx.Node) -> None:
        if (found := self.nll(loss)) is None:
            return
        softmax, target, options = found
        dim = self.softmax_dim(softmax)
        if dim is not None and only_user(softmax) and softmax is not target and _undisturbed(softmax, loss):
            with self.graph.inserting_before(loss):
                args = (dim, None, softmax.args[0], target, options)
                new = self.graph.create_node("call_function", fused.log_softmax_nll, args, {})
            self._replace([loss, softmax], new)

    def _replace(self, old: list[fx.Node | None], new: fx.Node) -> None:
        nodes = [node for node in old if node is not None]
        new.meta = dict(nodes[0].meta)
        nodes[0].replace_all_uses_with(new)
        for node in nodes:
            self.graph.erase_node(node)


def _between(first: fx.Node, last: fx.Node) -> Iterator[fx.Node]:
    node = first.next
    while node is not last:
        yield node
        node = node.next


def _overwritten(act: fx.Node) -> bool:
    """Whether a later call writes to the memory of ``act``, be it through a view."""
    memory = _memory(act)
    later = list(_between(act, next(iter(reversed(act.graph.nodes)))))
    return any(memory in map(_memory, node.all_input_nodes) for node in later if writes(node))


def _memory(node: fx.Node) -> int | None:
    value = node.meta.get("example_value")
    return value.untyped_storage()._cdata if isinstance(value, Tensor) else None


def _same_mode(first: fx.Node, last: fx.Node) -> bool:
    """Whether ``last`` runs with gradients, autocast and the like as ``first``: every call in between gives a
    value, which those that switch a mode do not."""
    return all(node.meta.get("example_value") is not None for node in _between(first, last))


def _undisturbed(first: fx.Node, last: fx.Node) -> bool:
    """Whether ``first`` may be computed at ``last``, and ``last`` at ``first``."""
    return all(node.target in _QUIET for node in _between(first, last))
