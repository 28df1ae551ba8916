"""Say which calls of a model are served by which op and backend, which are not, and why."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from itertools import chain
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from .. import backends
from . import fused
from .patterns import Call
from .swap import LEAVES, is_converted, make_plan, not_traced, original_class


@dataclass(frozen=True)
class Row:
    """One call: ``call`` in the forward of the module at ``path``, served by ``op`` ("" for none of ours)."""

    path: str
    call: str
    op: str = ""
    backend: str = ""
    note: str = ""


@dataclass(frozen=True)
class Explanation:
    """What ``explain`` found. Print it for a table.

    ``rows`` are the calls in the order of the modules; ``calls`` what a run on example inputs chose, by
    (op, backend, reason), empty without inputs.
    """

    rows: tuple[Row, ...]
    calls: Counter[tuple[str, str, str]]

    def counts(self) -> Counter[str]:
        """How many calls each op serves; those of none under ""."""
        return Counter(row.op for row in self.rows)

    def __str__(self) -> str:
        table = Table("module", "call", "op", "backend", "note", title="fastdl.explain")
        for row in self.rows:
            table.add_row(row.path or "(model)", row.call, row.op or "-", row.backend or "-", row.note)
        parts: list[Any] = [table]
        if self.calls:
            run = Table("op", "backend", "calls", "why", title="one run on the example inputs")
            for (op, backend, reason), number in sorted(self.calls.items()):
                run.add_row(op, backend, str(number), reason)
            parts.append(run)
        console = Console(file=StringIO(), width=140, color_system=None)
        for part in parts:
            console.print(part)
        return console.file.getvalue().rstrip()


def explain(model: nn.Module, *example_inputs: Any) -> Explanation:
    """Which calls of ``model`` are served by which op and backend, and why the others are not.

    Args:
        model: converted or not; of one that is not converted it tells what stands in the way.
        example_inputs: for one forward of a copy of the model, in its mode and without gradients, to see
            which backends its calls choose.

    Raises:
        TypeError: if model is not a torch.nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"fastdl.explain: expected model to be a torch.nn.Module, got {type(model).__name__}")
    rows = tuple(_rows(model))
    calls: Counter[tuple[str, str, str]] = Counter()
    if example_inputs:
        trial = copy.deepcopy(model)
        with torch.no_grad(), backends.record() as choices:
            trial(*example_inputs)
        calls = Counter((choice.op, choice.backend, choice.reason) for choice in choices)
    return Explanation(rows, calls)


def _rows(model: nn.Module) -> Iterator[Row]:
    modules = {module: path for path, module in model.named_modules()}
    traced = [module for module in modules if not_traced(module, original_class(module)) is None]
    plans = {module: make_plan(module, module.training) for module in traced}
    called = {  # the leaves that have a row in the forward that calls them
        module.get_submodule(name)
        for module in plans
        for call in plans[module].calls
        for name in call.children
    }
    others: Counter[str] = Counter()
    for module, path in modules.items():
        if module in plans:
            if isinstance(module, tuple(LEAVES)) and not any(call.op for call in plans[module].calls):
                yield _subclass_row(path, module)
            elif plans[module].reason:
                yield Row(path, "forward", note=plans[module].reason)
            for call in plans[module].calls:
                yield _call_row(path, module, call)
        elif module not in called:
            row = _leaf_row(path, module)
            if row is None:
                others[original_class(module).__name__] += 1
            else:
                yield row
    for kind, number in sorted(others.items()):
        yield Row("", f"{kind} x {number}", note="left as it is: none of our ops")


def _call_row(path: str, module: nn.Module, call: Call) -> Row:
    if call.rewritten and not is_converted(module):
        return Row(path, call.text, note="not converted")
    if not call.op:
        return Row(path, call.text, note=call.note)
    backend, reason = _backend(call.op, module.get_submodule(call.children[0]) if call.children else module)
    return Row(path, call.text, call.op, backend, reason)


def _leaf_row(path: str, module: nn.Module) -> Row | None:
    """The row of a module that no traced forward calls, or None if it has nothing to do with our ops."""
    name = type(module).__name__
    for types, op in fused.OPS:
        if type(module) in types:
            backend, reason = _backend(op, module)
            return Row(path, name, op, backend, reason)
    if type(module) in LEAVES:
        return Row(path, name, note="not converted")
    if isinstance(module, tuple(LEAVES)):
        return Row(
            path, name, note=f"a subclass of {type(module).__mro__[1].__name__} may compute something else"
        )
    if type(module) in fused.ACTS:
        return Row(path, name, note="not fused: the forward that calls it is not traced")
    reason = not_traced(module, original_class(module))
    if isinstance(module, (nn.ModuleList, nn.ModuleDict)) or not any(True for _ in module.children()):
        return None
    return reason and Row(path, "forward", note=reason)


def _subclass_row(path: str, module: nn.Module) -> Row:
    base = next(base.__name__ for base in LEAVES if isinstance(module, base))
    return Row(path, type(module).__name__, note=f"left: a subclass of {base} may compute something else")


def _backend(op: str, module: nn.Module) -> tuple[str, str]:
    """What would serve a call of ``op`` on tensors like those of ``module``, and why not a kernel."""
    tensor = next(chain(module.parameters(), module.buffers()), torch.empty(0))
    try:
        choice = backends.choose(op, tensor.device, tensor.dtype)
    except RuntimeError as error:  # the backend in force was named and cannot
        return "", str(error)
    return choice.backend, choice.reason
