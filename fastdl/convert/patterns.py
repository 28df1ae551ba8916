"""Rewrite a traced graph: sequences that one of our calls can serve become that call.

    conv -> act                      fused.conv_act
    conv -> max_pool -> relu         fused.conv_pool_act
    conv -> relu -> max_pool         fused.conv_act_pool
    batch_norm -> act                fused.norm_act
    batch_norm -> add (-> act)       fused.norm_add_act
    affine_grid -> grid_sample       fused.affine_grid_sample
    log_softmax -> nll_loss          fused.log_softmax_nll
    functional calls of our names    fastdl.functional

Every value inside a sequence has one user, so nothing else can see what is no longer computed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import fx, nn

from .. import functional
from . import fused
from .steps import NAMESAKES, OPS, Reader, Step, addition, only_user, overwritten, saves_input


class Call(NamedTuple):
    """One call of the rewritten forward: shown as ``text``, served by ``op`` ("" for one left as it is)."""

    text: str
    op: str
    children: tuple[str, ...] = ()  # paths of the modules in it, the one with the parameters first
    rewritten: bool = False  # only the plan makes it, not the forward as written
    note: str = ""


def rewrite(graph: fx.Graph, module: nn.Module) -> tuple[list[Call], set[str], set[str]]:
    """Rewrite ``graph``, the trace of ``module``, in place.

    Returns its calls, the children whose types it relies on, and those that it leaves out (nn.Identity).
    """
    rewriter = _Rewriter(graph, module)
    return rewriter.run(), rewriter.relied_on, rewriter.left_out


class _Rewriter(Reader):
    def __init__(self, graph: fx.Graph, module: nn.Module) -> None:
        super().__init__(module)
        self.graph = graph
        self.calls: dict[fx.Node, Call] = {}
        self.left_out: set[str] = set()

    def run(self) -> list[Call]:
        for node in list(self.graph.nodes):
            if node.op == "call_function":
                node.target = NAMESAKES.get(node.target, node.target)
            elif self.child(node, (nn.Identity,)) and len(node.args) == 1:
                self._leave_out(node)
        # A sequence is found at its last node, and only nodes before that one go.
        for fuse in (self._activation, self._pool, self._addition, self._sampling, self._loss):
            for node in list(self.graph.nodes):
                fuse(node)
        return [call for node in self.graph.nodes if (call := self._describe(node)) is not None]

    def _leave_out(self, identity: fx.Node) -> None:
        """Take out the call of an nn.Identity, which stands where a network has no dropout or norm."""
        x = identity.args[0]
        if isinstance(x, fx.Node) and fused.unhooked(self.module.get_submodule(identity.target)):
            self.left_out.add(identity.target)
            identity.replace_all_uses_with(x)
            self.graph.erase_node(identity)

    # -- sequences ------------------------------------------------------------------------------------------

    def _activation(self, act: fx.Node) -> None:
        step = self.step_of(act)
        if step is None or step.kind not in ("act", "relu") or not only_user(act.args[0]):
            return
        if self._saved_by(act, step) == "input" and overwritten(act, self.module):
            return  # the fused call saves its output
        before = act.args[0]
        if (terms := addition(before)) is not None:
            self._norm_add(before, terms, act)
            return
        first, pool = before, None
        if self.kind_of(before) == "pool" and step.kind == "relu" and only_user(before.args[0]):
            first, pool = before.args[0], before
        kind = self.kind_of(first)
        if kind not in (("conv",) if pool is not None else ("conv", "norm")):
            return
        if first.kwargs.get("activation") is not None:  # it has one: this is the second
            return
        nodes = [node for node in (first, pool, act) if node is not None]
        call = Call(" + ".join(self.step_of(node).text for node in nodes), OPS[kind], _targets(nodes), True)
        if first.op == "call_function":  # its own keyword does
            if step.act is not None:
                name, param = step.act
                first.kwargs = {**first.kwargs, "activation": name, "activation_param": param}
                act.replace_all_uses_with(before)
                self.graph.erase_node(act)
                self.calls[first] = call
            elif pool is None:
                with self.graph.inserting_before(first):
                    args = (first.target.__name__, self._module(act), first.args, dict(first.kwargs))
                    new = self.graph.create_node("call_function", fused.function_act, args, {})
                self._replace([act, first], new, call)
            return
        with self.graph.inserting_before(first):
            args = [self._module(first), step.act or self._module(act), first.args[0]]
            if pool is not None:
                functional_pool = pool.op == "call_function"
                args.append(None if functional_pool else self._module(pool))
                args += [pool.args[1:], dict(pool.kwargs)]
                target = fused.conv_pool_act
            else:
                target = fused.conv_act if kind == "conv" else fused.norm_act
            new = self.graph.create_node("call_function", target, tuple(args), {})
        self._replace([act, pool, first], new, call)

    def _pool(self, pool: fx.Node) -> None:
        """conv -> relu, one call by now, -> max_pool; no other activation commutes with the maximum."""
        if self.kind_of(pool) != "pool" or not only_user(pool.args[0]):
            return
        conv = pool.args[0]
        if conv.target is not fused.conv_act or not self._is_relu(conv.args[1]):
            return
        step, before = self.step_of(pool), self.calls[conv]
        child = self.child(pool, fused.POOLS)
        if fused.plain_pool(child, pool.args[1:], dict(pool.kwargs)) is None:
            return
        with self.graph.inserting_before(conv):
            module = None if child is None else self._module(pool)
            args = (*conv.args, module, pool.args[1:], dict(pool.kwargs))
            new = self.graph.create_node("call_function", fused.conv_act_pool, args, {})
        targets = (*before.children, *_targets([pool]))
        self._replace([pool, conv], new, Call(f"{before.text} + {step.text}", "conv2d", targets, True))

    def _is_relu(self, act: fx.Node | fused.Act) -> bool:
        if isinstance(act, tuple):
            return act[0] == "relu"
        return isinstance(self.module.get_submodule(act.target), nn.ReLU)

    def _saved_by(self, act: fx.Node, step: Step) -> str:
        """What torch's own activation saves for backward."""
        if step.act is not None:
            return "input" if saves_input(step.act[0]) else "output"
        kinds = (nn.ReLU, nn.Sigmoid, nn.Tanh)
        return "output" if isinstance(self.module.get_submodule(act.target), kinds) else "input"

    def _addition(self, add: fx.Node) -> None:
        if (terms := addition(add)) is not None:
            self._norm_add(add, terms, None)

    def _norm_add(self, add: fx.Node, terms: tuple[fx.Node, fx.Node, bool], act: fx.Node | None) -> None:
        a, b, in_place = terms
        for norm in (a,) if in_place else (a, b):  # what is written to can only be our own result
            ours = self.kind_of(norm) == "norm" and norm.op == "call_module" and a is not b
            if ours and only_user(norm) and self.movable(norm, add):
                break
        else:
            return
        residual = b if norm is a else a
        step = self.step_of(act) if act is not None else None
        text = f"{self.label(norm)} + add" + (f" + {step.text}" if step else "")
        with self.graph.inserting_before(add):
            chosen = None if step is None else step.act or self._module(act)
            args = (self._module(norm), chosen, norm.args[0], residual, in_place)
            new = self.graph.create_node("call_function", fused.norm_add_act, args, {})
        call = Call(text, "batch_norm", _targets([norm, act]), rewritten=True)
        self._replace([act, add, norm], new, call)

    def _sampling(self, sample: fx.Node) -> None:
        found = self.sampling(sample)
        if found is None or not self.movable(found[0], sample):
            return
        grid, args = found
        with self.graph.inserting_before(sample):
            new = self.graph.create_node("call_function", fused.affine_grid_sample, args, {})
        self._replace(
            [sample, grid], new, Call("affine_grid + grid_sample", "affine_grid_sample", rewritten=True)
        )

    def _loss(self, loss: fx.Node) -> None:
        options: dict[str, Any] = {}
        if (found := self.nll(loss)) is not None:
            softmax, target, options = found
        elif self.child(loss, (nn.NLLLoss,)) and len(loss.args) == 2:
            softmax, target = loss.args
        else:
            return
        if not only_user(softmax) or softmax is target or not self.movable(softmax, loss):
            return
        dim = self.softmax_dim(softmax)
        if dim is None:
            return
        with self.graph.inserting_before(loss):
            args = (
                self._module(softmax) if softmax.op == "call_module" else dim,
                self._module(loss) if loss.op == "call_module" else None,
                softmax.args[0],
                target,
                options,
            )
            new = self.graph.create_node("call_function", fused.log_softmax_nll, args, {})
        call = Call("log_softmax + nll_loss", "cross_entropy", _targets([loss, softmax]), rewritten=True)
        self._replace([loss, softmax], new, call)

    # -- nodes ----------------------------------------------------------------------------------------------

    def _module(self, node: fx.Node) -> fx.Node:
        return self.graph.create_node("get_attr", node.target, (), {})

    def _replace(self, old: list[fx.Node | None], new: fx.Node, call: Call) -> None:
        nodes = [node for node in old if node is not None]
        nodes[0].replace_all_uses_with(new)
        for node in nodes:
            self.graph.erase_node(node)
        self.calls[new] = call

    def _describe(self, node: fx.Node) -> Call | None:
        """What explain says of a node that is left as it is, or None for one that is none of our business."""
        if node in self.calls:
            return self.calls[node]
        step = self.step_of(node)
        if step is not None and step.kind in OPS:
            return Call(step.text, OPS[step.kind], _targets([node]), rewritten=node.op == "call_function")
        if node.op == "call_module":
            kind = type(self.module.get_submodule(node.target))
            for types, op in fused.OPS:
                if kind in types:
                    return Call(self.label(node), op, (node.target,))
        if step is not None:
            return Call(step.text, "", _targets([node]), note=f"not fused: {self._why(node)}")
        if node.target in (functional.cross_entropy, functional.max_pool2d):
            return Call(node.target.__name__, node.target.__name__, rewritten=True)
        if node.target in (F.affine_grid, F.grid_sample, F.nll_loss):
            return Call(node.target.__name__, "", note="not fused: its counterpart is not called next to it")
        return None

    def _why(self, act: fx.Node) -> str:
        before = act.args[0]
        kind = self.kind_of(before)
        if overwritten(act, self.module):
            return "its value is overwritten afterwards"
        if kind in ("conv", "norm") and len(before.users) > 1:
            return "what it is applied to is used elsewhere too"
        if before.op == "call_module":
            return f"it follows {self.label(before)}"
        return f"it follows {before.target if isinstance(before.target, str) else before.target.__name__}"


def _targets(nodes: list[fx.Node | None]) -> tuple[str, ...]:
    return tuple(node.target for node in nodes if node is not None and node.op == "call_module")
