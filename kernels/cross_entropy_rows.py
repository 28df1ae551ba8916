"""How logits [N, C, D] are cut into blocks of rows and classes, and what a row's target and weights are.

Row r = n*D + d is the C logits of one (n, d). A program takes BLOCK_R rows and walks their classes in blocks
of BLOCK_C.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ._runtime import index, next_power_of_2

# ----------------------------------------------------------------------------------- device helpers


@triton.jit
def rows_of(R, D, BLOCK_R: tl.constexpr, WIDE: tl.constexpr):
    """This program's rows r as [BLOCK_R] (n, d), and which of them exist."""
    r = index(tl.program_id(0), WIDE) * BLOCK_R + tl.arange(0, BLOCK_R)
    return r, r // D, r % D, r < R


@triton.jit
def classes_of(target, rows, C, IGNORE: tl.constexpr):
    """(t, kept, ignored) of class targets: t is a class wherever kept, and 0 elsewhere."""
    t = tl.load(target, rows, other=0).to(tl.int64)
    ignored = ~rows | (t == IGNORE)
    kept = ~ignored & (t >= 0) & (t < C)
    return tl.where(kept, t, 0), kept, ignored


@triton.jit
def weights_of(weight, c, mask):
    """weight[c] in float32, or ones; 0 outside ``mask``."""
    if weight is not None:
        return tl.load(weight + c, mask, other=0.0).to(tl.float32)
    else:
        return tl.where(mask, 1.0, 0.0)


@triton.jit
def probabilities_of(target, mask, C, label_smoothing):
    """q' = (1 - ls) * q + ls/C, 0 outside ``mask``."""
    q = tl.load(target, mask, other=0.0).to(tl.float32)
    return tl.where(mask, (1.0 - label_smoothing) * q + label_smoothing / C, 0.0)


@triton.jit
def fast_exp(x):
    """exp(x), 0 where that is denormal: half the instructions of tl.exp, in what sets the pace."""
    return tl.exp2(x * 1.4426950408889634)


@triton.jit
def aligned(size, ALIGN: tl.constexpr):
    """``size``, a multiple of ALIGN, such that the compiler sees it (it looks out for 16 only by itself)."""
    return size // ALIGN * ALIGN


@triton.jit
def finite(x):
    """x, or 0 where it is -inf: what may be subtracted from -inf without giving NaN."""
    return tl.where(x == float("-inf"), 0.0, x)


# ------------------------------------------------------------------------------------ for launchers


def target_strides(target: Tensor) -> tuple[int, int, int]:
    """(n, c, d); class indices have no class axis."""
    return target.stride() if target.dim() == 3 else (target.stride(0), 0, target.stride(1))


def alignment(*tensors: Tensor) -> int:
    """What divides C and the strides along n and d of all [N, C, D] among ``tensors``, 16 at most."""
    whole = [t for t in tensors if t.dim() == 3]
    strides = [t.stride(i) for t in whole for i in (0, 2) if t.shape[i] > 1]
    return math.gcd(16, whole[0].shape[1], *strides)


class Blocks(NamedTuple):
    """What a program takes: rows and classes at a time, and warps."""

    rows: int
    classes: int
    warps: int


def blocks_of(input: Tensor, reduce: bool) -> Blocks:
    """How the logits are cut.

    Lanes run along whichever of classes and rows is contiguous. A small problem that is to be reduced fits
    in one program, and so in one launch.
    """
    n, c, d = input.shape
    classes = next_power_of_2(c)
    if reduce and next_power_of_2(n * d) * classes <= 8192:
        rows = next_power_of_2(n * d)
    elif d > 1 and input.stride(2) < input.stride(1):
        classes = min(classes, 64)
        rows = min(4096 // classes, 256)
    else:
        classes = min(classes, 4096)
        rows = max(1024 // classes, 1)
    # bytes in flight count for long rows, latency for short ones, registers where sums outlive a block
    per_thread = 8 if classes <= 64 else 32 if c <= classes else 16
    return Blocks(rows, classes, min(max(rows * classes // (32 * per_thread), 1), 8))
