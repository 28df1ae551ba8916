"""How much faster a training step could be if the libraries' convolutions and products stay as they are.

    python -m fastdl.bench.floors [NAME ...]

For the training steps of ``fastdl bench --models`` on a CPU: eager's time, the part of it inside oneDNN's
convolutions and the matrix products (told by torch.profiler), and one over that part: the speedup of a step
in which all else costs nothing. Beside it ours, taken in turns with eager, and the part of ours inside them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from . import models, timers
from .peers import EAGER, OURS

LIBRARY = ("aten::mkldnn_convolution", "aten::convolution_backward", "aten::addmm", "aten::mm")
OWN = (*LIBRARY, "fastdl::conv2d_forward", "fastdl::conv2d_backward", "fastdl::conv2d_max_pool2d")


def share(once: Callable[[], object], names: tuple[str, ...]) -> float:
    """Of the time inside operators, the part inside these."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(10):
            once()
    times = {event.key: event.self_cpu_time_total for event in found.key_averages()}
    return sum(times.get(name, 0.0) for name in names) / sum(times.values())


def main(names: list[str]) -> None:
    timers.keep_heap()
    for step in models.cpu():
        if names and not any(name in step.name for name in names):
            continue
        once = models.training(step, torch.device("cpu"))
        calls = {name: once(name) for name in (EAGER, OURS)}
        samples = timers.interleaved(calls, 8.0)
        times = {name: sorted(some)[len(some) // 2] for name, some in samples.items()}
        library, own = share(calls[EAGER], LIBRARY), share(calls[OURS], OWN)
        print(f"{step.name}, {step.layout}: eager {1e3 * times[EAGER]:.1f} ms")
        print(f"    {library:.0%} in convolutions and products: at most {1 / library:.2f}")
        print(f"    ours {times[EAGER] / times[OURS]:.2f}, {own:.0%} in them")


if __name__ == "__main__":
    main(sys.argv[1:])
