"""A gradient that was computed with the loss, times the incoming gradient."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ._runtime import cdiv, index, launch, narrow, wide


@triton.jit
def cross_entropy_scale(
    grad,  # [SIZE] float
    factor,  # [] float
    SIZE,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    """grad *= factor, which is read here so that nobody waits for it; where it is 1, nothing else is."""
    by = tl.load(factor).to(tl.float32)
    if by != 1.0:
        i = index(tl.program_id(0), WIDE) * BLOCK + tl.arange(0, BLOCK)
        value = tl.load(grad + i, i < SIZE).to(tl.float32)
        tl.store(grad + i, narrow(value * by, grad), i < SIZE)


def scale(grad: Tensor, factor: Tensor) -> None:
    """grad [n] *= factor []."""
    block = 8192  # few programs: most calls have nothing to do
    launch(
        cross_entropy_scale,
        (cdiv(grad.numel(), block),),
        grad,
        factor,
        grad.numel(),
        BLOCK=block,
        WIDE=wide(grad),
        num_warps=8,
    )
