"""What is left to gain on a CPU: how fast a call or a training step could be if what is ours cost nothing.

    python -m fastdl.bench.floors [NAME ...]

Small calls: what autograd takes for a node that does nothing. Dense convolutions: oneDNN's alone, and eager
and ours with relu over it. For the training steps of ``fastdl bench --models``: eager's time, the part of it
inside oneDNN's convolutions and the matrix products (told by torch.profiler), and one over that part: the
speedup of a step in which all else costs nothing. Beside it ours, taken in turns with eager, and the part of
ours inside them. Names are of steps.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from . import conv2d, models, timers
from .case import Case
from .peers import EAGER, OURS, ours

LIBRARY = ("aten::mkldnn_convolution", "aten::convolution_backward", "aten::addmm", "aten::mm")
OWN = (*LIBRARY, "fastdl::conv2d_forward", "fastdl::conv2d_backward", "fastdl::conv2d_max_pool2d")


def share(once: Callable[[], object], names: tuple[str, ...]) -> float:
    """Of the time inside operators, the part inside these."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(10):
            once()
    times = {event.key: event.self_cpu_time_total for event in found.key_averages()}
    return sum(times.get(name, 0.0) for name in names) / sum(times.values())


def medians(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """In milliseconds, taken in turns."""
    samples = timers.interleaved(calls, seconds)
    return {name: 1e3 * statistics.median(some) for name, some in samples.items()}


def node() -> float:
    """Milliseconds of a call with its gradient, neither of which does anything."""
    x = torch.zeros((), requires_grad=True)
    once = lambda: torch.autograd.grad(torch.ops.aten.alias(x), x)  # noqa: E731
    return medians({"": once}, 0.5)[""]


def convolution(case: Case) -> None:
    """Forward calls of torch's own convolution, with bias and relu by eager and by us, over it alone."""
    tensors = case.draw(torch.device("cpu"), torch.float32)
    x, weight, bias = tensors.values()
    window = {name: value for name, value in case.options.items() if name != "activation"}
    calls = {
        "alone": lambda: torch.nn.functional.conv2d(x, weight, bias, **window),
        EAGER: lambda: case.eager(**tensors, **case.options),
        OURS: lambda: ours(case)(**tensors, **case.options),
    }
    with torch.no_grad():
        times = medians(calls, 2.0)
    eager, own = times[EAGER] / times["alone"], times[OURS] / times["alone"]
    print(f"conv2d {case.name}, {case.layout}: {times['alone']:.2f} ms")
    print(f"    with relu: eager {eager:.2f}, ours {own:.2f}")


def main(names: list[str]) -> None:
    timers.keep_heap()
    if not names:
        print(f"an autograd node that does nothing: {1e3 * node():.1f} us")
        for case in conv2d.cpu():
            if case.options.get("groups", 1) == 1 and case.name[:3] in ("1x1", "3x3"):
                convolution(case)
    for step in models.cpu():
        if names and not any(name in step.name for name in names):
            continue
        once = models.training(step, torch.device("cpu"))
        calls = {name: once(name) for name in (EAGER, OURS)}
        times = medians(calls, 8.0)
        library, own = share(calls[EAGER], LIBRARY), share(calls[OURS], OWN)
        print(f"{step.name}, {step.layout}: eager {times[EAGER]:.1f} ms")
        print(f"    {library:.0%} in convolutions and products: at most {1 / library:.2f}")
        print(f"    ours {times[EAGER] / times[OURS]:.2f}, {own:.0%} in them")


if __name__ == "__main__":
    main(sys.argv[1:])
