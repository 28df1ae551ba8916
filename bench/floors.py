"""How much faster a training step could be if oneDNN's convolutions stay as they are.

    python bench/floors.py [NAME ...]

For the training steps of bench/cpu.py: eager's time, the part of it inside oneDNN's convolutions and the
matrix products (told by torch.profiler), and one over that part: the speedup of a step in which all else
costs nothing. Beside it ours, taken in turns with eager, and the part of ours in convolutions and products.
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable
from typing import Any

import cpu
import torch
import torch.nn.functional as T
from torch.profiler import ProfilerActivity, profile

import fastdl
import fastdl.functional as F

LIBRARY = ("aten::mkldnn_convolution", "aten::convolution_backward", "aten::addmm", "aten::mm")
OURS = (*LIBRARY, "fastdl::conv2d_forward", "fastdl::conv2d_backward", "fastdl::conv2d_max_pool2d")


def step(model: torch.nn.Module, loss: Callable[..., torch.Tensor], s: cpu.Step) -> Callable[[], Any]:
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    target = torch.randint(0, s.classes, (s.inputs.shape[0],))

    def once() -> None:
        optimizer.zero_grad()
        loss(model(s.inputs), target).backward()
        optimizer.step()

    return once


def share(once: Callable[[], Any], names: tuple[str, ...]) -> float:
    """Of the time inside operators, the part inside these."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(10):
            once()
    times = {event.key: event.self_cpu_time_total for event in found.key_averages()}
    return sum(times.get(name, 0.0) for name in names) / sum(times.values())


def main() -> None:
    if any(os.environ.get(key) != value for key, value in cpu.ALLOCATOR.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | cpu.ALLOCATOR)
    for s in cpu.steps():
        if sys.argv[1:] and not any(name in s.name for name in sys.argv[1:]):
            continue
        eager = step(copy.deepcopy(s.model), T.cross_entropy, s)
        ours = step(fastdl.convert(copy.deepcopy(s.model)), F.cross_entropy, s)
        times = cpu.interleaved({"eager": eager, "ours": ours}, 8.0)
        library, own = share(eager, LIBRARY), share(ours, OURS)
        print(f"{s.name}: eager {1e3 * times['eager']:.1f} ms, {library:.0%} in convolutions and products:")
        print(f"    at most {1 / library:.2f}; ours {times['eager'] / times['ours']:.2f}, {own:.0%} in them")


if __name__ == "__main__":
    main()
