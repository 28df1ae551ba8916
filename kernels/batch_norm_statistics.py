"""Mean and variance per channel: of the batch, in one launch or two, or the running ones.

The batch's come from one pass of sums about a pivot. Programs that see their channels whole are done with
that; splits of a channel write partials, which a second launch combines in index order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._runtime import cdiv, index, launch, narrow
from .batch_norm_tiles import Plan, combination, over_channel, per_channel, place, tile, tile_count

# ----------------------------------------------------------------------------------- device helpers


@triton.jit
def invstd_of(var, eps):
    return tl.div_rn(1.0, tl.sqrt_rn(var + eps))


@triton.jit
def moments(
    x_ptr, block, c, exists, first, step, N, C, S, BN: tl.constexpr, BV: tl.constexpr, VEC: tl.constexpr,
    ROWS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Count, pivot, mean - pivot and M2 = sum (x - mean)^2 over tiles first, first + step, ...

    One pass of sums about a pivot: sum (x - p) and sum (x - p)^2. With the mean of the first tile as p,
    (p - mean)^2 is at most var * tiles, which bounds the cancellation in M2 by the number of tiles.
    That mean is taken about the channel's first element, so a constant channel gets M2 = 0 exactly; the
    mean stays in two parts, so that it can be far larger than what sets the splits' means apart.
    """
    origin = tl.load(x_ptr + index(c, WIDE) * S, mask=exists, other=0.0).to(tl.float32)
    offsets, inside, count = tile(first, block, N, C, S, BN, BV, VEC, ROWS, WIDE)
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    pivot = origin + over_channel(tl.where(inside, x - origin, 0.0), ROWS) / count.to(tl.float32)
    pivot = tl.where(tl.abs(pivot) < float("inf"), pivot, 0.0)  # inf - inf would make the mean NaN
    total = tl.zeros([BN, BV], tl.float32)
    squares = tl.zeros([BN, BV], tl.float32)
    count = count * 0
    for t in range(first, tile_count(N, S, BN, BV, ROWS), step):
        offsets, inside, elements = tile(t, block, N, C, S, BN, BV, VEC, ROWS, WIDE)
        x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        shifted = tl.where(inside, x - pivot, 0.0)
        total += shifted
        squares += shifted * shifted
        count += elements
    count = count.to(tl.float32)
    total = over_channel(total, ROWS)
    squares = over_channel(squares, ROWS)
    m2 = squares - tl.div_rn(total, count) * total
    m2 = tl.where(m2 < 0.0, 0.0, m2)
    # Finite values whose squares overflow have infinite variance, as in torch, not inf - inf.
    m2 = tl.where((squares == float("inf")) & (tl.abs(total) < float("inf")), squares, m2)
    return count, pivot, tl.div_rn(total, count), m2


@triton.jit
def write_statistics(
    c, exists, count, mean, m2, mean_ptr, invstd_ptr, running_mean_ptr, running_var_ptr, momentum, eps
):  # fmt: skip
    """Write mean and invstd [C] float32, move the running statistics; returns mean and invstd."""
    invstd = invstd_of(tl.div_rn(m2, count), eps)
    tl.store(mean_ptr + c, mean, mask=exists)
    tl.store(invstd_ptr + c, invstd, mask=exists)
    if running_mean_ptr is not None:
        old = tl.load(running_mean_ptr + c, mask=exists, other=0.0).to(tl.float32)
        moved = momentum * mean + (1.0 - momentum) * old
        tl.store(running_mean_ptr + c, narrow(moved, running_mean_ptr), mask=exists)
    if running_var_ptr is not None:
        old = tl.load(running_var_ptr + c, mask=exists, other=0.0).to(tl.float32)
        moved = momentum * tl.div_rn(m2, count - 1.0) + (1.0 - momentum) * old
        tl.store(running_var_ptr + c, narrow(moved, running_var_ptr), mask=exists)
    return mean, invstd


# ------------------------------------------------------------------------------------------ kernels


@triton.jit
def batch_norm_statistics(
    x_ptr,  # [N, C, S] any float dtype
    partials_ptr,  # [4, splits, C] float32: count, pivot, mean - pivot, M2
    N, C, S,
    BN: tl.constexpr, BV: tl.constexpr, VEC: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Count, mean and M2 of each split of each channel."""
    block, c, exists, split, splits = place(C, BV, ROWS)
    count, pivot, shift, m2 = moments(
        x_ptr, block, c, exists, split, splits, N, C, S, BN, BV, VEC, ROWS, WIDE
    )
    tl.store(partials_ptr + split * C + c, count + tl.zeros_like(shift), mask=exists)
    tl.store(partials_ptr + (splits + split) * C + c, pivot, mask=exists)
    tl.store(partials_ptr + (2 * splits + split) * C + c, shift, mask=exists)
    tl.store(partials_ptr + (3 * splits + split) * C + c, m2, mask=exists)


@triton.jit
def batch_norm_combine_statistics(
    partials_ptr,  # [4, splits, C] float32: count, pivot, mean - pivot, M2
    mean_ptr, invstd_ptr,  # [C] float32
    running_mean_ptr, running_var_ptr,  # [C] any float dtype
    splits, C, momentum, eps,
    SPLITS: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """mean = sum n_i mean_i / n, M2 = sum (M2_i + n_i (mean_i - mean)^2): Chan's formula for many parts."""
    split = tl.arange(0, SPLITS)[:, None]
    c = tl.program_id(0) * BC + tl.arange(0, BC)[None, :]
    offsets = split * C + c
    inside = (split < splits) & (c < C)
    counts = tl.load(partials_ptr + offsets, mask=inside, other=0.0)
    pivots = tl.load(partials_ptr + splits * C + offsets, mask=inside, other=0.0)
    shifts = tl.load(partials_ptr + 2 * splits * C + offsets, mask=inside, other=0.0)
    m2s = tl.load(partials_ptr + 3 * splits * C + offsets, mask=inside, other=0.0)
    pivot = tl.load(partials_ptr + splits * C + c, mask=c < C, other=0.0)  # the first split's, for all
    shifts = tl.where(inside, pivots - pivot + shifts, 0.0)
    count = tl.sum(counts, 0, keep_dims=True)
    shift = tl.div_rn(tl.sum(counts * shifts, 0, keep_dims=True), count)
    rest = shifts - shift
    m2 = tl.sum(m2s + counts * rest * rest, 0, keep_dims=True)
    write_statistics(
        c, c < C, count, pivot + shift, m2, mean_ptr, invstd_ptr, running_mean_ptr, running_var_ptr,
        momentum, eps,
    )  # fmt: skip


@triton.jit
def batch_norm_eval_statistics(
    running_mean_ptr, running_var_ptr,  # [C] any float dtype
    mean_ptr, invstd_ptr,  # [C] float32
    C, eps, BC: tl.constexpr,
):  # fmt: skip
    """mean = running_mean, invstd = 1 / sqrt(running_var + eps), for a backward through fixed statistics."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    tl.store(mean_ptr + c, per_channel(running_mean_ptr, c, c < C, 0.0), mask=c < C)
    tl.store(invstd_ptr + c, invstd_of(per_channel(running_var_ptr, c, c < C, 1.0), eps), mask=c < C)


# ---------------------------------------------------------------------------------------- launchers


def batch_statistics(
    x: torch.Tensor,
    mean: torch.Tensor,
    invstd: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    momentum: float,
    eps: float,
    plan: Plan,
) -> None:
    """Fill mean and invstd [C] with the batch's and move the running statistics, where given."""
    splits, c = plan.splits(x), x.shape[1]
    partials = torch.empty(4, splits, c, dtype=torch.float32, device=x.device)
    launch(
        batch_norm_statistics, (splits * plan.blocks,), x, partials, *plan.sizes,
        num_warps=plan.num_warps, **plan.constexprs,
    )  # fmt: skip
    grid, constexprs = combination(splits, c)
    launch(
        batch_norm_combine_statistics, grid, partials, mean, invstd, running_mean, running_var, splits, c,
        momentum, eps, **constexprs,
    )  # fmt: skip


def eval_statistics(
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    mean: torch.Tensor,
    invstd: torch.Tensor,
    eps: float,
) -> None:
    """Fill mean and invstd [C] with the running ones."""
    c = mean.numel()
    grid = (cdiv(c, 256),)
    launch(batch_norm_eval_statistics, grid, running_mean, running_var, mean, invstd, c, eps, BC=256)
