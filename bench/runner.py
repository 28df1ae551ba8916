"""Measure cases: check every result first, then time those that are right, in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from fastdl import parity

from . import machine, timers
from .case import Case, Tensors, size
from .peers import EAGER, PEERS, Function
from .row import Row, compare


def measure(
    case: Case,
    direction: str,
    device: torch.device,
    dtype: torch.dtype,
    peers: Sequence[str],
    seconds: float = 1.0,
) -> Iterator[Row]:
    """Rows of all ``peers``; eager is always among them, since all are held against it."""
    inputs = case.draw(device, dtype)
    rows: dict[str, Row] = {}
    functions: dict[str, Function] = {}
    truth = Truth(case, inputs, direction)
    for name in dict.fromkeys((EAGER, *peers)):
        row = rows[name] = Row(
            case.op, case.name, str(dtype).removeprefix("torch."), case.layout, direction, "", name
        )
        row.note = PEERS[name].why_not(case, direction, device) or ""
        if row.note:
            row.status = "skipped"
            continue
        try:
            functions[name] = PEERS[name].make(case)
            row.first_ms = first(case, functions[name], inputs, direction)
            row.error, row.note = check(case, functions[name], inputs, direction, truth)
            row.status = "wrong" if row.note else "measured"
            if row.status == "measured":
                again = run(case, functions[name], _copies(inputs), direction)
                for _ in range(2):  # as it will be timed
                    again()
        except Exception as error:  # a peer that crashes is a result, not the end
            row.status, row.note = "failed", f"{type(error).__name__}: {error}".split("\n")[0][:200]
        if row.status != "measured":
            functions.pop(name, None)
    del truth

    work = case.work(inputs, case.options, direction)
    clocks = _on_cuda if device.type == "cuda" else _on_cpu
    for timer, samples in clocks(case, direction, inputs, functions, seconds):
        some = [rows[n] for n in rows if n in samples or (rows[n].status != "measured" and timer != "l2_hot")]
        timed = [Row(**{**asdict(row), "timer": timer}) for row in some]
        for row in timed:
            if row.implementation in samples:
                row.fill(samples[row.implementation], work, device, dtype)
        compare(timed, case.directions.get(direction))
        yield from timed


def run(case: Case, function: Function, inputs: Tensors, direction: str) -> Callable[[], object]:
    """What is timed, on inputs of its own; for the gradients alone, forward runs here, once."""
    leaves = case.asking(inputs)
    wanted = [leaves[name] for name in case.grads]
    if direction == "forward":
        return torch.no_grad()(lambda: function(**leaves, **case.options))
    out = function(**leaves, **case.options)
    grad_out = torch.ones_like(out)
    if direction == "backward":
        return lambda: torch.autograd.grad(out, wanted, grad_out, retain_graph=True)
    return lambda: torch.autograd.grad(function(**leaves, **case.options), wanted, grad_out)


def first(case: Case, function: Function, inputs: Tensors, direction: str) -> float:
    """Milliseconds of a call that may have to compile first; with the forward pass of a backward one."""
    inputs = _copies(inputs)
    device = next(t.device for t in inputs.values() if t is not None)
    machine.wait(device)
    start = time.perf_counter()
    run(case, function, inputs, direction)()
    machine.wait(device)
    return 1e3 * (time.perf_counter() - start)


def results(case: Case, function: Function, inputs: Tensors, direction: str) -> list[Tensor]:
    """The output and, unless it is forward alone, the gradients, for random incoming ones."""
    leaves = case.asking(_copies(inputs))  # running statistics are updated in place
    if direction == "forward":
        with torch.no_grad():
            return [function(**leaves, **case.options)]
    out = function(**leaves, **case.options)
    generator = torch.Generator().manual_seed(0)
    grad_out = torch.randn(out.shape, generator=generator).to(out)
    wanted = [leaves[name] for name in case.grads]
    return [out.detach(), *torch.autograd.grad(out, wanted, grad_out)]


def _copies(inputs: Tensors) -> Tensors:
    return {name: None if t is None else t.detach().clone() for name, t in inputs.items()}


class Truth:
    """What a case should give: eager's results and those of eager in float64."""

    def __init__(self, case: Case, inputs: Tensors, direction: str) -> None:
        wide = {
            name: t.detach().double() if t is not None and t.is_floating_point() else t
            for name, t in inputs.items()
        }
        self.eager = results(case, case.eager, inputs, direction)
        self.oracle = results(case, case.eager, wide, direction)


def check(
    case: Case, function: Function, inputs: Tensors, direction: str, truth: Truth | None = None
) -> tuple[float, str]:
    """The largest error, and what is wrong beyond the rule ("": nothing)."""
    truth = truth or Truth(case, inputs, direction)
    got = results(case, function, inputs, direction)
    error, failure = 0.0, ""
    for i, values in enumerate(zip(got, truth.eager, truth.oracle, strict=True)):
        verdict = parity.judge(*values)
        error = max(error, verdict.error)
        if verdict.failure and not failure:
            failure = f"{('output', *case.grads)[i]}: {verdict.failure}"
    return error, failure


def _on_cpu(
    case: Case, direction: str, inputs: Tensors, functions: dict[str, Function], seconds: float
) -> Iterator[tuple[str, dict[str, list[float]]]]:
    calls = {name: run(case, f, _copies(inputs), direction) for name, f in functions.items()}
    yield "wall", timers.interleaved(calls, seconds)


def _on_cuda(
    case: Case, direction: str, inputs: Tensors, functions: dict[str, Function], seconds: float
) -> Iterator[tuple[str, dict[str, list[float]]]]:
    footprint = max(sum(size(t) for t in inputs.values()), 1)
    enough = -(-machine.rotation(next(iter(inputs.values())).device) // footprint)
    copies = max(2, min(enough, 256))
    for timer, number in (("graph", copies), ("l2_hot", 1)):
        graphs = {}
        for name, function in functions.items():
            if name == "compile_reduce_overhead":  # has graphs of its own
                continue

            def make(function: Function = function, number: int = number) -> list[timers.Call]:
                return [run(case, function, _copies(inputs), direction) for _ in range(number)]

            try:
                graphs[name] = timers.Graph(make)
            except RuntimeError:  # it cannot be captured: the host's time is all there is
                torch.cuda.synchronize()
        yield timer, timers.replays(graphs)
    calls = {name: run(case, f, _copies(inputs), direction) for name, f in functions.items()}
    yield "host", timers.host(calls)
