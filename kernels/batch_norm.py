"""Batch norm: out = act((x - mean) * invstd * weight + bias + residual), with its gradients.

Layouts: x is dense, seen as [N, C, S] with S contiguous (NCHW, S = H * W) or as rows [N * H * W, C] with
C contiguous (channels-last and 2-D input; S = 1). A program owns a block of channels and walks tiles
[BN, BV] of it, BV along the contiguous axis: S for one channel, or C for a block of channels. Values
per channel are scalars in the first case, [1, BV] in the second, so that one code serves both.

Training takes three launches: partial statistics (channel blocks times splits, to fill the card), their
combination (which writes mean, invstd and the running statistics), and the elementwise pass. A kernel
that ends with "the last block combines" would save the second one, at the price of a counter that
streams must not share and that something must zero. Channels of few tiles, where a launch costs more
than the work, take one launch instead: each program computes and applies the statistics of its
channels. Backward has the same shape. No atomics: partials are combined in index order.

Saved for backward: mean and invstd [C] float32, and for relu behind a residual one bit per element. All
else is recomputed: forward and backward share ``_preactivation``, so that they agree to the last bit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from ._runtime import INTERPRET, cdiv, index, launch, narrow, next_power_of_2, program_target, wide
from .activation import activate, activation_grad

#: Elements of a tile, and how many tiles per program are quicker in one launch than split over three.
_TILE = 4096
_ONE_LAUNCH_TILES = 8


@triton.jit
def _place(C, BV: tl.constexpr, ROWS: tl.constexpr):
    """This program's channel block, its channels ([1, BV] or one) and which exist, first tile, step."""
    if ROWS:
        blocks = tl.cdiv(C, BV)
        block = tl.program_id(0) % blocks
        c = block * BV + tl.arange(0, BV)[None, :]
    else:
        blocks = C
        block = tl.program_id(0) % blocks
        c = block
    return block, c, c < C, tl.program_id(0) // blocks, tl.num_programs(0) // blocks


@triton.jit
def _tiles(N, S, BN: tl.constexpr, BV: tl.constexpr, ROWS: tl.constexpr):
    """How many tiles a channel block has."""
    if ROWS:
        tiles = tl.cdiv(N, BN)
    else:
        tiles = tl.cdiv(N, BN) * tl.cdiv(S, BV)
    return tiles


@triton.jit
def _tile(
    t, block, N, C, S, BN: tl.constexpr, BV: tl.constexpr, VEC: tl.constexpr,
    ROWS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Offsets [BN, BV] of tile t, which of them exist, and how many elements of a channel it has."""
    t = tl.cast(t, tl.int32)  # the interpreter's loops count in plain ints
    # The contiguous size is a multiple of VEC; dividing and multiplying lets the compiler know it too.
    if ROWS:
        first = index(t, WIDE) * BN
        n = first + tl.arange(0, BN)[:, None]
        c = block * BV + tl.arange(0, BV)[None, :]
        offsets = n * (C // VEC * VEC) + c
        inside = (n < N) & (c < C // VEC * VEC)
        count = tl.minimum(N - first, BN)
    else:
        columns = tl.cdiv(S, BV)
        first = index(t // columns, WIDE) * BN
        column = t % columns * BV
        n = first + tl.arange(0, BN)[:, None]
        s = column + tl.arange(0, BV)[None, :]
        offsets = (n * C + block) * (S // VEC * VEC) + s
        inside = (n < N) & (s < S // VEC * VEC)
        count = tl.minimum(N - first, BN) * tl.minimum(S - column, BV)
    return offsets, inside, count


@triton.jit
def _over_channel(values, ROWS: tl.constexpr):
    """Sum of a tile over all axes but the channels: [1, BV] or a scalar."""
    if ROWS:
        if INTERPRET:  # it adds along axis 0 one by one; along the last axis in pairs, as a GPU does
            flat = tl.reshape(tl.trans(values), [values.shape[0] * values.shape[1]])
            values = tl.sum(tl.reshape(flat, [values.shape[1], values.shape[0]]), 1)[None, :]
        else:
            values = tl.sum(values, 0, keep_dims=True)
    else:
        values = tl.sum(values)
    return values


@triton.jit
def _per_channel(ptr, c, exists, default):
    """float32 values of channels c; ``default`` where there is no array."""
    if ptr is not None:
        values = tl.load(ptr + c, mask=exists, other=0.0).to(tl.float32)
    else:
        values = tl.full(c.shape, default, tl.float32)
    return values


@triton.jit
def _invstd(var, eps):
    return tl.div_rn(1.0, tl.sqrt_rn(var + eps))


@triton.jit
def _moments(
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
    offsets, inside, count = _tile(first, block, N, C, S, BN, BV, VEC, ROWS, WIDE)
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    pivot = origin + _over_channel(tl.where(inside, x - origin, 0.0), ROWS) / count.to(tl.float32)
    pivot = tl.where(tl.abs(pivot) < float("inf"), pivot, 0.0)  # inf - inf would make the mean NaN
    total = tl.zeros([BN, BV], tl.float32)
    squares = tl.zeros([BN, BV], tl.float32)
    count = count * 0
    for t in range(first, _tiles(N, S, BN, BV, ROWS), step):
        offsets, inside, elements = _tile(t, block, N, C, S, BN, BV, VEC, ROWS, WIDE)
        x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        shifted = tl.where(inside, x - pivot, 0.0)
        total += shifted
        squares += shifted * shifted
        count += elements
    count = count.to(tl.float32)
    total = _over_channel(total, ROWS)
    squares = _over_channel(squares, ROWS)
    m2 = squares - tl.div_rn(total, count) * total
    m2 = tl.where(m2 < 0.0, 0.0, m2)
    # Finite values whose squares overflow have infinite variance, as in torch, not inf - inf.
    m2 = tl.where((squares == float("inf")) & (tl.abs(total) < float("inf")), squares, m2)
    return count, pivot, tl.div_rn(total, count), m2


@triton.jit
def _write_statistics(
    c, exists, count, mean, m2, mean_ptr, invstd_ptr, running_mean_ptr, running_var_ptr, momentum, eps
):  # fmt: skip
    """Write mean and invstd [C] float32, move the running statistics; returns mean and invstd."""
    invstd = _invstd(tl.div_rn(m2, count), eps)
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


@triton.jit
def _preactivation(x, mean, scale, bias):
    """(x - mean) * scale + bias with one fused rounding, whatever surrounds it."""
    return tl.fma(x - mean, scale, bias)


@triton.jit
def _pack(y, BN: tl.constexpr, BV: tl.constexpr):
    """Bytes [BN, BV / 8] of a tile of relu's output; bit j of byte i is set unless y[8 * i + j] <= 0."""
    bits = tl.where(y <= 0.0, 0, 1).reshape(BN, BV // 8, 8)
    return tl.sum(bits << tl.arange(0, 8)[None, None, :], 2).to(tl.uint8)


@triton.jit
def _statistics_kernel(
    x_ptr,  # [N, C, S] any float dtype
    partials_ptr,  # [4, splits, C] float32: count, pivot, mean - pivot, M2
    N, C, S,
    BN: tl.constexpr, BV: tl.constexpr, VEC: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Count, mean and M2 of each split of each channel."""
    block, c, exists, split, splits = _place(C, BV, ROWS)
    count, pivot, shift, m2 = _moments(
        x_ptr, block, c, exists, split, splits, N, C, S, BN, BV, VEC, ROWS, WIDE
    )
    tl.store(partials_ptr + split * C + c, count + tl.zeros_like(shift), mask=exists)
    tl.store(partials_ptr + (splits + split) * C + c, pivot, mask=exists)
    tl.store(partials_ptr + (2 * splits + split) * C + c, shift, mask=exists)
    tl.store(partials_ptr + (3 * splits + split) * C + c, m2, mask=exists)


@triton.jit
def _combine_kernel(
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
    _write_statistics(
        c, c < C, count, pivot + shift, m2, mean_ptr, invstd_ptr, running_mean_ptr, running_var_ptr,
        momentum, eps,
    )  # fmt: skip


@triton.jit
def _eval_statistics_kernel(
    running_mean_ptr, running_var_ptr,  # [C] any float dtype
    mean_ptr, invstd_ptr,  # [C] float32
    C, eps, BC: tl.constexpr,
):  # fmt: skip
    """mean = running_mean, invstd = 1 / sqrt(running_var + eps), for a backward through fixed statistics."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    tl.store(mean_ptr + c, _per_channel(running_mean_ptr, c, c < C, 0.0), mask=c < C)
    tl.store(invstd_ptr + c, _invstd(_per_channel(running_var_ptr, c, c < C, 1.0), eps), mask=c < C)


@triton.jit
def _forward_kernel(
    x_ptr, residual_ptr, out_ptr,  # [N, C, S] one float dtype
    weight_ptr, bias_ptr,  # [C] any float dtype
    running_mean_ptr, running_var_ptr,  # [C] any float dtype
    mean_ptr, invstd_ptr,  # [C] float32
    mask_ptr,  # [numel / 8] uint8
    N, C, S, momentum, eps, param,
    MOMENTS: tl.constexpr, ACT: tl.constexpr,
    BN: tl.constexpr, BV: tl.constexpr, VEC: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """out = act((x - mean) * scale + bias + residual) with scale = weight * invstd.

    MOMENTS says where mean and invstd come from: "compute" (this program sees its channels whole),
    "load", or "running" (invstd from running_var).
    """
    block, c, exists, first, step = _place(C, BV, ROWS)
    if MOMENTS == "compute":
        count, pivot, shift, m2 = _moments(
            x_ptr, block, c, exists, first, step, N, C, S, BN, BV, VEC, ROWS, WIDE
        )
        mean, invstd = _write_statistics(
            c, exists, count, pivot + shift, m2, mean_ptr, invstd_ptr, running_mean_ptr, running_var_ptr,
            momentum, eps,
        )  # fmt: skip
    elif MOMENTS == "load":
        mean = _per_channel(mean_ptr, c, exists, 0.0)
        invstd = _per_channel(invstd_ptr, c, exists, 1.0)
    else:
        mean = _per_channel(running_mean_ptr, c, exists, 0.0)
        invstd = _invstd(_per_channel(running_var_ptr, c, exists, 1.0), eps)
    scale = _per_channel(weight_ptr, c, exists, 1.0) * invstd
    bias = _per_channel(bias_ptr, c, exists, 0.0)
    tiles = _tiles(N, S, BN, BV, ROWS)
    for i in range(first, tiles, step):
        t = tiles - 1 - i  # backwards: what the statistics read last is still in the cache
        offsets, inside, _ = _tile(t, block, N, C, S, BN, BV, VEC, ROWS, WIDE)
        x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        y = _preactivation(x, mean, scale, bias)
        if residual_ptr is not None:
            y += tl.load(residual_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        y = narrow(activate(y, param, ACT), out_ptr)
        tl.store(out_ptr + offsets, y, mask=inside)
        if mask_ptr is not None:  # its bytes lie like x with the contiguous size over 8
            if ROWS:
                offsets, inside, _ = _tile(t, block, N, C // 8, S, BN, BV // 8, 1, ROWS, WIDE)
            else:
                offsets, inside, _ = _tile(t, block, N, C, S // 8, BN, BV // 8, 1, ROWS, WIDE)
            tl.store(mask_ptr + offsets, _pack(y.to(tl.float32), BN, BV), mask=inside)


@triton.jit
def _pack_kernel(
    out_ptr,  # [numel] any float dtype
    mask_ptr,  # [ceil(numel / 8)] uint8
    numel, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The mask from relu's output, for layouts in which a byte straddles two channels' rows."""
    byte = index(tl.program_id(0), WIDE) * (BLOCK // 8) + tl.arange(0, BLOCK // 8)[None, :]
    i = index(tl.program_id(0), WIDE) * BLOCK + tl.arange(0, BLOCK)[None, :]
    y = tl.load(out_ptr + i, mask=i < numel, other=0.0).to(tl.float32)
    tl.store(mask_ptr + byte, _pack(y, 1, BLOCK), mask=byte * 8 < numel)


@triton.jit
def _incoming(
    grad_out_ptr, out_ptr, mask_ptr, offsets, inside, x, mean, scale, bias, param, ACT: tl.constexpr,
    VEC: tl.constexpr,
):  # fmt: skip
    """grad_out times act' of a tile, 0 outside: from the mask, from out, or from x all over again."""
    grad = tl.load(grad_out_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    if ACT != "":
        if mask_ptr is not None:
            byte = offsets >> 3  # one byte for eight neighbours, which spares their addresses
            if VEC >= 8:
                byte = tl.max_constancy(byte, [1, 8])
            bits = tl.load(mask_ptr + byte, mask=inside, other=0).to(tl.int32)
            grad = tl.where((bits >> (offsets & 7).to(tl.int32)) & 1 != 0, grad, 0.0)
        else:
            if out_ptr is not None:
                y = tl.load(out_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
            else:
                y = activate(_preactivation(x, mean, scale, bias), param, ACT)
            grad = tl.where(inside, activation_grad(grad, y, param, ACT), 0.0)
    return grad


@triton.jit
def _gradient_sums(
    grad_out_ptr, x_ptr, out_ptr, mask_ptr, block, first, step, mean, scale, bias, param, N, C, S,
    ACT: tl.constexpr, BN: tl.constexpr, BV: tl.constexpr, VEC: tl.constexpr, ROWS: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """sum dz and sum dz * (x - mean) over tiles first, first + step, ...; dz = grad_out * act'."""
    total = tl.zeros([BN, BV], tl.float32)
    product = tl.zeros([BN, BV], tl.float32)
    for t in range(first, _tiles(N, S, BN, BV, ROWS), step):
        offsets, inside, _ = _tile(t, block, N, C, S, BN, BV, VEC, ROWS, WIDE)
        x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        grad = _incoming(
            grad_out_ptr, out_ptr, mask_ptr, offsets, inside, x, mean, scale, bias, param, ACT, VEC
        )
        total += grad
        product += tl.where(inside, grad * (x - mean), 0.0)
    return _over_channel(total, ROWS), _over_channel(product, ROWS)


@triton.jit
def _write_parameter_gradients(grad_weight_ptr, grad_bias_ptr, c, exists, total, product, invstd, N, S):
    """grad_weight = sum dz * xhat, grad_bias = sum dz; returns mean(dz) and mean(dz * xhat)."""
    product = product * invstd
    if grad_weight_ptr is not None:
        tl.store(grad_weight_ptr + c, narrow(product, grad_weight_ptr), mask=exists)
    if grad_bias_ptr is not None:
        tl.store(grad_bias_ptr + c, narrow(total, grad_bias_ptr), mask=exists)
    count = tl.cast(N, tl.float32) * S
    return tl.div_rn(total, count), tl.div_rn(product, count)


@triton.jit
def _gradient_sums_kernel(
    grad_out_ptr, x_ptr, out_ptr,  # [N, C, S] one float dtype
    mask_ptr,  # [ceil(numel / 8)] uint8
    weight_ptr, bias_ptr,  # [C] any float dtype
    mean_ptr, invstd_ptr,  # [C] float32
    partials_ptr,  # [2, splits, C] float32: sum dz, sum dz * (x - mean)
    N, C, S, param,
    ACT: tl.constexpr,
    BN: tl.constexpr, BV: tl.constexpr, VEC: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The two sums of each split of each channel."""
    block, c, exists, split, splits = _place(C, BV, ROWS)
    mean = _per_channel(mean_ptr, c, exists, 0.0)
    scale = _per_channel(weight_ptr, c, exists, 1.0) * _per_channel(invstd_ptr, c, exists, 1.0)
    bias = _per_channel(bias_ptr, c, exists, 0.0)
    total, product = _gradient_sums(
        grad_out_ptr, x_ptr, out_ptr, mask_ptr, block, split, splits, mean, scale, bias, param, N, C, S,
        ACT, BN, BV, VEC, ROWS, WIDE,
    )  # fmt: skip
    tl.store(partials_ptr + split * C + c, total, mask=exists)
    tl.store(partials_ptr + (splits + split) * C + c, product, mask=exists)


@triton.jit
def _combine_gradients_kernel(
    partials_ptr,  # [2, splits, C] float32: sum dz, sum dz * (x - mean)
    invstd_ptr,  # [C] float32
    grad_weight_ptr, grad_bias_ptr,  # [C] any float dtype
    means_ptr,  # [2, C] float32: mean(dz), mean(dz * xhat)
    splits, N, C, S,
    SPLITS: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Adds the splits up, in a fixed order."""
    split = tl.arange(0, SPLITS)[:, None]
    c = tl.program_id(0) * BC + tl.arange(0, BC)[None, :]
    inside = (split < splits) & (c < C)
    totals = tl.load(partials_ptr + split * C + c, mask=inside, other=0.0)
    products = tl.load(partials_ptr + (splits + split) * C + c, mask=inside, other=0.0)
    total = tl.sum(totals, 0, keep_dims=True)
    product = tl.sum(products, 0, keep_dims=True)
    invstd = tl.load(invstd_ptr + c, mask=c < C, other=0.0)
    mean_dz, mean_product = _write_parameter_gradients(
        grad_weight_ptr, grad_bias_ptr, c, c < C, total, product, invstd, N, S
    )
    if means_ptr is not None:
        tl.store(means_ptr + c, mean_dz, mask=c < C)
        tl.store(means_ptr + C + c, mean_product, mask=c < C)


@triton.jit
def _backward_kernel(
    grad_out_ptr, x_ptr, out_ptr,  # [N, C, S] one float dtype
    mask_ptr,  # [ceil(numel / 8)] uint8
    weight_ptr, bias_ptr,  # [C] any float dtype
    mean_ptr, invstd_ptr,  # [C] float32
    means_ptr,  # [2, C] float32: mean(dz), mean(dz * xhat)
    grad_x_ptr, grad_residual_ptr,  # [N, C, S] x's dtype
    grad_weight_ptr, grad_bias_ptr,  # [C] any float dtype
    N, C, S, param,
    MEANS: tl.constexpr, TRAINING: tl.constexpr, ACT: tl.constexpr,
    BN: tl.constexpr, BV: tl.constexpr, VEC: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """grad_x = (dz - mean(dz) - xhat * mean(dz * xhat)) * scale, or dz * scale with fixed statistics.

    dz = grad_out * act' is grad_residual, xhat = (x - mean) * invstd. MEANS: "compute" (this program sees
    its channels whole and writes grad_weight and grad_bias), "load", or "" where none is needed.
    """
    block, c, exists, first, step = _place(C, BV, ROWS)
    mean = _per_channel(mean_ptr, c, exists, 0.0)
    invstd = _per_channel(invstd_ptr, c, exists, 1.0)
    scale = _per_channel(weight_ptr, c, exists, 1.0) * invstd
    bias = _per_channel(bias_ptr, c, exists, 0.0)
    tiles = _tiles(N, S, BN, BV, ROWS)
    if MEANS == "compute":
        total, product = _gradient_sums(
            grad_out_ptr, x_ptr, out_ptr, mask_ptr, block, first, step, mean, scale, bias, param, N, C, S,
            ACT, BN, BV, VEC, ROWS, WIDE,
        )  # fmt: skip
        mean_dz, mean_product = _write_parameter_gradients(
            grad_weight_ptr, grad_bias_ptr, c, exists, total, product, invstd, N, S
        )
    elif MEANS == "load":
        mean_dz = tl.load(means_ptr + c, mask=exists, other=0.0)
        mean_product = tl.load(means_ptr + C + c, mask=exists, other=0.0)
    if grad_x_ptr is not None or grad_residual_ptr is not None:
        for i in range(first, tiles, step):
            t = tiles - 1 - i  # backwards: what the sums read last is still in the cache
            offsets, inside, _ = _tile(t, block, N, C, S, BN, BV, VEC, ROWS, WIDE)
            x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
            dz = _incoming(
                grad_out_ptr, out_ptr, mask_ptr, offsets, inside, x, mean, scale, bias, param, ACT, VEC
            )
            if grad_residual_ptr is not None:
                tl.store(grad_residual_ptr + offsets, narrow(dz, grad_residual_ptr), mask=inside)
            if grad_x_ptr is not None:
                if TRAINING:
                    dz = dz - mean_dz - (x - mean) * invstd * mean_product
                tl.store(grad_x_ptr + offsets, narrow(dz * scale, grad_x_ptr), mask=inside)


class _Plan(NamedTuple):
    """How a call is cut: the sizes [N, C, S], its channel blocks, the tiles of each, and the constants."""

    sizes: tuple[int, int, int]
    blocks: int
    tiles: int
    whole: bool  # one program does all tiles of a channel block, in one launch
    num_warps: int
    constexprs: dict[str, Any]

    def splits(self, x: torch.Tensor) -> int:
        """Programs per channel block in a reduction: enough to fill the card, a tile or more for each."""
        return max(1, min(self.tiles, program_target(x) // self.blocks))

    def programs(self, x: torch.Tensor) -> int:
        """Programs of the elementwise pass: a tile each, or several once that leaves four times enough."""
        tiles_each = max(1, min(8, self.blocks * self.tiles // (4 * program_target(x))))
        return self.blocks * (1 if self.whole else cdiv(self.tiles, tiles_each))


def _plan(x: torch.Tensor, reduces: bool) -> _Plan:
    """``reduces``: the call needs sums over channels, which few tiles do in one launch."""
    c = x.shape[1]
    s = x.numel() // (x.shape[0] * c)
    rows = s == 1 or not x.is_contiguous()
    n, s = (x.shape[0] * s, 1) if rows else (x.shape[0], s)
    if rows:
        # Wide blocks stream best; narrow ones (a 32-byte sector) make more programs of a short batch.
        short = reduces and n <= _ONE_LAUNCH_TILES * _TILE // 16
        bv = min(next_power_of_2(c), 16 if short else 64)
        bn = min(next_power_of_2(n), max(_TILE // bv, 1))
        blocks, tiles = cdiv(c, bv), cdiv(n, bn)
    else:
        bn = min(next_power_of_2(n), max(_TILE // min(next_power_of_2(s), 512), 1))
        bv = min(next_power_of_2(s), _TILE // bn)
        blocks, tiles = c, cdiv(n, bn) * cdiv(s, bv)
    whole = reduces and (tiles <= _ONE_LAUNCH_TILES or program_target(x) < 2 * blocks)
    vec = 16
    while (c if rows else s) % vec:
        vec //= 2
    constexprs = {"BN": bn, "BV": bv, "VEC": vec, "ROWS": rows, "WIDE": wide(x)}
    num_warps = max(1, min(8, bn * bv // 512))
    return _Plan((n, c, s), blocks, tiles, whole, num_warps, constexprs)


def _combination(splits: int, channels: int) -> tuple[tuple[int], dict[str, int]]:
    """Grid and constants of a kernel that adds up ``splits`` partials per channel."""
    padded = next_power_of_2(splits)
    block = min(next_power_of_2(channels), max(2048 // padded, 1))
    return (cdiv(channels, block),), {"SPLITS": padded, "BC": block}


def forward(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    out: torch.Tensor,
    mean: torch.Tensor | None,
    invstd: torch.Tensor | None,
    mask: torch.Tensor | None,
    *,
    training: bool,
    momentum: float,
    eps: float,
    activation: str,
    activation_param: float,
) -> None:
    """Fill out, the batch's mean and invstd [C] float32, and mask; move the running statistics.

    x, residual, out [N, C, *] dense with the same strides; weight, bias, running_* [C]. In evaluation mean
    and invstd are the running ones, written where wanted. mask: one bit per element in x's memory order,
    set where relu passes the gradient.
    """
    if x.numel() == 0:
        if training:  # no batch, no statistics: the running ones stay
            mean.zero_()
            invstd.zero_()
        elif mean is not None and x.shape[1]:
            _fill_eval_statistics(running_mean, running_var, mean, invstd, eps)
        return
    plan = _plan(x, reduces=training)
    _, c, s = plan.sizes
    if not training:
        moments = "running" if mean is None else "load"
        if mean is not None:
            _fill_eval_statistics(running_mean, running_var, mean, invstd, eps)
    elif plan.whole:
        moments = "compute"
    else:
        moments = "load"
        splits = plan.splits(x)
        partials = torch.empty(4, splits, c, dtype=torch.float32, device=x.device)
        launch(
            _statistics_kernel, (splits * plan.blocks,), x, partials, *plan.sizes,
            num_warps=plan.num_warps, **plan.constexprs,
        )  # fmt: skip
        grid, constexprs = _combination(splits, c)
        launch(
            _combine_kernel, grid, partials, mean, invstd, running_mean, running_var, splits, c, momentum,
            eps, **constexprs,
        )  # fmt: skip
    # The kernel writes the mask where each program owns whole bytes of it.
    owns_bytes = (c if plan.constexprs["ROWS"] else s) % 8 == 0
    launch(
        _forward_kernel, (plan.programs(x),), x, residual, out, weight, bias,
        running_mean, running_var, mean, invstd, mask if owns_bytes else None, *plan.sizes, momentum, eps,
        activation_param, MOMENTS=moments, ACT=activation, num_warps=plan.num_warps, **plan.constexprs,
    )  # fmt: skip
    if mask is not None and not owns_bytes:
        launch(_pack_kernel, (cdiv(x.numel(), _TILE),), out, mask, x.numel(), BLOCK=_TILE, WIDE=wide(x))


def _fill_eval_statistics(
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    mean: torch.Tensor,
    invstd: torch.Tensor,
    eps: float,
) -> None:
    c = mean.numel()
    launch(_eval_statistics_kernel, (cdiv(c, 256),), running_mean, running_var, mean, invstd, c, eps, BC=256)


def backward(
    grad_out: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    out: torch.Tensor | None,
    mean: torch.Tensor,
    invstd: torch.Tensor,
    mask: torch.Tensor | None,
    grad_x: torch.Tensor | None,
    grad_weight: torch.Tensor | None,
    grad_bias: torch.Tensor | None,
    grad_residual: torch.Tensor | None,
    *,
    training: bool,
    activation: str,
    activation_param: float,
) -> None:
    """Fill the gradients that are not None.

    grad_out has x's strides. The activation's derivative comes from mask (relu), else from out, else from
    the pre-activation recomputed from x (which has no residual in it).
    """
    if x.numel() == 0:
        for grad in (grad_weight, grad_bias):
            if grad is not None:
                grad.zero_()
        return
    parameters = grad_weight is not None or grad_bias is not None
    elements = grad_x is not None or grad_residual is not None
    batch = training and grad_x is not None  # the batch's statistics depend on x
    plan = _plan(x, reduces=parameters or batch)
    saved = (grad_out, x, out, mask, weight, bias, mean, invstd)
    means, source = None, ""
    if plan.whole:
        source = "compute"
    elif parameters or batch:
        splits, c = plan.splits(x), x.shape[1]
        partials = torch.empty(2, splits, c, dtype=torch.float32, device=x.device)
        launch(
            _gradient_sums_kernel, (splits * plan.blocks,), *saved, partials, *plan.sizes, activation_param,
            ACT=activation, num_warps=plan.num_warps, **plan.constexprs,
        )  # fmt: skip
        if batch:
            means, source = torch.empty(2, c, dtype=torch.float32, device=x.device), "load"
        grid, constexprs = _combination(splits, c)
        launch(
            _combine_gradients_kernel, grid, partials, invstd, grad_weight, grad_bias, means, splits,
            *plan.sizes, **constexprs,
        )  # fmt: skip
    if elements or source == "compute":
        launch(
            _backward_kernel, (plan.programs(x),), *saved, means, grad_x,
            grad_residual, grad_weight, grad_bias, *plan.sizes, activation_param, MEANS=source,
            TRAINING=batch, ACT=activation, num_warps=plan.num_warps, **plan.constexprs,
        )  # fmt: skip
