"""Whole training steps (forward, loss, backward, SGD) by PyTorch and by the converted twin of the network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as T
from torch import Tensor, nn

import fastdl
import fastdl.functional
from fastdl import models
from fastdl.models.vgg import VGG

from . import timers
from .case import Goal
from .peers import EAGER, OURS
from .row import Row, compare

#: What can be asked for by ``--peers``; those with a graph replay a whole step from a CUDA graph.
IMPLEMENTATIONS = (EAGER, "compile", OURS, "eager_graph", "fastdl_graph")


@dataclass(frozen=True)
class Step:
    """One network in training.

    Attributes:
        name: in results.
        make: builds it.
        shape: of the input.
        classes: of the target.
        goal: ours against eager and torch.compile.
        layout: of the weights and the input, ours and everybody's.
        amp: under autocast to bfloat16.
        goal_for: the implementation that the goal is of.
    """

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    classes: int = 10
    goal: Goal | None = None
    layout: str = "contiguous"
    amp: bool = False
    goal_for: str = OURS


def vgg11_bn() -> nn.Module:
    """VGG-11 (Simonyan & Zisserman, 2014, arXiv:1409.1556) with batch norm and one linear layer."""
    return VGG(((64,), (128,), (256, 256), (512, 512), (512, 512)), (), 3, 10, 32, batch_norm=True)


def cpu() -> Iterator[Step]:
    yield Step("STN, MNIST, batch 64", models.STN, (64, 1, 42, 42), goal=Goal(1.5, 1.0))
    yield Step("Net, MNIST, batch 64", models.Net, (64, 1, 28, 28), goal=Goal(1.0, 1.0))
    for layout in ("contiguous", "channels_last"):
        for name, make in ("ResNet-18", lambda: models.resnet18(classes=10)), ("VGG-11-BN", vgg11_bn):
            goal = Goal(1.3, 1.0) if layout == "contiguous" else Goal(1.0, 1.0)
            yield Step(f"{name}, 32x32, batch 64", make, (64, 3, 32, 32), goal=goal, layout=layout)


def cuda() -> Iterator[Step]:
    yield Step("STN, MNIST, batch 64", models.STN, (64, 1, 42, 42), goal=Goal(5.0), goal_for="fastdl_graph")
    yield Step("Net, MNIST, batch 64", models.Net, (64, 1, 28, 28), goal=Goal(5.0), goal_for="fastdl_graph")
    half = {"layout": "channels_last", "amp": True}
    name = "ResNet-50, 224x224, batch 64, bfloat16 channels_last"
    yield Step(name, models.resnet50, (64, 3, 224, 224), 1000, goal=Goal(1.3, 1.1), **half)
    yield Step("VGG-11-BN, 32x32, batch 256, bfloat16 channels_last", vgg11_bn, (256, 3, 32, 32), **half)


def measure(step: Step, device: torch.device, wanted: Sequence[str], seconds: float = 2.0) -> Iterator[Row]:
    """Rows of ``wanted`` implementations, eager always among them."""
    dtype = "bfloat16" if step.amp else "float32"
    rows = against(step.name, training(step, device), wanted, device, seconds, dtype, step.layout)
    if step.goal is not None and step.goal_for in rows:
        row = rows[step.goal_for]
        row.goal_vs_eager, row.goal_vs_compile = step.goal
    yield from rows.values()


def against(
    name: str,
    once: Callable[[str], Callable[[], object]],
    wanted: Sequence[str],
    device: torch.device,
    seconds: float,
    dtype: str = "float32",
    layout: str = "contiguous",
) -> dict[str, Row]:
    """Rows of the training step ``name`` by implementation, eager among them; ``once`` makes each's step."""
    calls, rows = {}, {}
    for implementation in dict.fromkeys((EAGER, *wanted)):
        row = rows[implementation] = Row("step", name, dtype, layout, "step", "wall", implementation)
        if device.type != "cuda" and implementation.endswith("_graph"):
            row.status, row.note = "skipped", "for GPUs"
            continue
        try:
            calls[implementation] = once(implementation)
            calls[implementation]()
        except Exception as error:
            row.status, row.note = "failed", f"{type(error).__name__}: {error}".split("\n")[0][:200]
            calls.pop(implementation, None)
    samples = timers.host(calls, repeats=10) if device.type == "cuda" else timers.interleaved(calls, seconds)
    for implementation, times in samples.items():
        rows[implementation].fill(times, None, device, torch.float32)
        if device.type == "cuda":
            rows[implementation].peak_mb = _peak(calls[implementation])
    compare(rows.values(), None)
    return rows


def training(step: Step, device: torch.device) -> Callable[[str], Callable[[], object]]:
    """What makes one training step by an implementation, all from the same weights and on the same batch."""
    torch.manual_seed(0)
    stock = step.make().to(device).train()
    x = torch.randn(step.shape, device=device)
    target = torch.randint(step.classes, step.shape[:1], device=device)
    if step.layout == "channels_last":
        stock, x = (t.to(memory_format=torch.channels_last) for t in (stock, x))
    return lambda name: _training(step, name, copy.deepcopy(stock), x, target)


def _training(step: Step, name: str, model: nn.Module, x: Tensor, target: Tensor) -> Callable[[], object]:
    loss = T.cross_entropy
    if name.startswith(OURS):
        model, loss = fastdl.convert(model), fastdl.functional.cross_entropy
    if name == "compile":
        model = torch.compile(model, dynamic=False)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, foreach=True)

    def once() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=step.amp):
            value = loss(model(x), target)
        value.backward()
        optimizer.step()
        return value

    if not name.endswith("_graph"):
        return once
    return timers.Graph(lambda: [once], at_least=1).graph.replay


def _peak(call: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 1e6
