"""What all benchmarks share: the implementations, and checking a result before timing it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fastdl.functional
from fastdl import backends, parity

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
#: Half precision is what a GPU trains in; on the CPU it is float32.
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32

implementations = pytest.mark.parametrize("implementation", ["reference", "auto", "triton"])
directions = pytest.mark.parametrize("direction", ["forward", "forward+backward"])


def measure(
    benchmark: Any,
    op: str,
    inputs: dict[str, Tensor],
    grads: tuple[str, ...],
    implementation: str,
    direction: str,
    **options: Any,
) -> None:
    """Time ``fastdl.functional.<op>(**inputs, **options)`` by one implementation.

    "reference" is plain torch. The result is first held against the float64 oracle; a wrong one is not timed.
    On a GPU each round is synchronised.
    """
    device = torch.device(DEVICE, 0 if DEVICE == "cuda" else None)
    if implementation == "triton" and (DEVICE == "cpu" or backends.why_not("triton", device)):
        pytest.skip("Triton kernels are timed on a GPU only")
    inputs = {name: t.detach().to(device).requires_grad_(name in grads) for name, t in inputs.items()}
    function: Callable[..., Tensor] = getattr(fastdl.functional, op)

    def run(tensors: dict[str, Tensor]) -> list[Tensor]:
        out = function(**tensors, **options)
        if direction == "forward":
            return [out]
        return [out, *torch.autograd.grad(out.sum(), [tensors[name] for name in grads])]

    def timed() -> None:
        with backends.use_backend(implementation):
            run(inputs)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    _check(run, inputs, implementation)
    benchmark.extra_info |= {
        "op": op,
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu",
        "dtype": str(DTYPE).removeprefix("torch."),
        "implementation": implementation,
        "direction": direction,
    }
    benchmark.pedantic(timed, rounds=20, warmup_rounds=5, iterations=1)


def _check(
    run: Callable[[dict[str, Tensor]], list[Tensor]], inputs: dict[str, Tensor], implementation: str
) -> None:
    with backends.use_backend(implementation):
        ours = run(inputs)
    doubles = {
        name: (t.detach().double() if t.is_floating_point() else t).requires_grad_(t.requires_grad)
        for name, t in inputs.items()
    }
    with backends.use_backend("reference"):
        torchs, oracle = run(inputs), run(doubles)
    for a, b, c in zip(ours, torchs, oracle, strict=True):
        verdict = parity.judge(a, b, c)
        assert not verdict.failure, f"not timed, the result is wrong: {verdict.failure}"


def image(*size: int, channels_last: bool = False) -> Tensor:
    """A random image batch ``[N, C, H, W]`` in the benchmark's dtype; a tenth of the batch on a CPU."""
    if DEVICE == "cpu":
        size = (max(size[0] // 8, 1), *size[1:])
    x = torch.randn(size, dtype=DTYPE)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x
