"""2-D convolution with bias and activation: implicit GEMM, and direct kernels for depthwise.

    out[n, k, p, q] = act(bias[k] + sum over c, r, s of
                          x[n, c, p * stride - padding + r * dilation, ...] * weight[k, c, r, s])

with the channels split into ``groups``. Both sides are ``[N, C, H, W]``, read and written through their
strides; each tile is laid out so that the axis that is contiguous in memory runs along the threads.

How the sums become matrix products (``pixel`` = one of N*H*W positions, ``tap`` = one (r, s)):

    forward   dst[pixel, k] = sum over (tap, c) of gathered x[pixel, tap, c] * weight[k, c, tap]
    grad_x    dst[pixel, c] = sum over (tap, k) of gathered grad[pixel, tap, k] * weight[k, c, tap]
    grad_w    dst[k, (tap, c)] = sum over pixels of grad[pixel, k] * gathered x[pixel, tap, c]

The first two are one kernel: they differ in where a tap of a pixel lies. The summed (tap, channel) axis
takes one tap at a time in blocks of channels; with few channels it is *packed*: one axis of
taps * channels, padded once. A 1x1 convolution of stride 1 sees its pixels as a single axis.

Saved for backward: x, weight and, with an activation, out. Sums are float32; split sums go through
float32 partials that are added in index order, so every result is deterministic.
"""

from __future__ import annotations

from math import gcd
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ._runtime import cdiv, index, launch, narrow, next_power_of_2, program_target, tensor_cores, wide
from .activation import activate, activation_grad

# ---------------------------------------------------------------------------------- device helpers


@triton.jit
def _rows(v, ROWS_FIRST: tl.constexpr):
    """``v`` along the rows of a tile that lies in registers as [rows, columns] or, else, transposed."""
    return v[:, None] if ROWS_FIRST else v[None, :]


@triton.jit
def _columns(v, ROWS_FIRST: tl.constexpr):
    """``v`` along the columns of such a tile."""
    return v[None, :] if ROWS_FIRST else v[:, None]


@triton.jit
def _pixel(i, H, W):
    """Pixel number -> (n, y, x) on a grid of H x W."""
    return i // W // H, i // W % H, i % W


@triton.jit
def _within(y, x, H, W):
    return (y >= 0) & (y < H) & (x >= 0) & (x < W)


@triton.jit
def _first_tap(phase, TAPS: tl.constexpr, STRIDE: tl.constexpr, PAD: tl.constexpr, DILATION: tl.constexpr):
    """The first tap t with (phase + PAD - t * DILATION) divisible by STRIDE; TAPS if there is none."""
    first = TAPS
    for i in tl.static_range(TAPS):
        tap = TAPS - 1 - i
        first = tl.where((phase + PAD - tap * DILATION) % STRIDE == 0, tap, first)
    return first


@triton.jit
def _dot(a, b, acc, PRECISION: tl.constexpr, TENSOR_CORES: tl.constexpr):
    if not TENSOR_CORES:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


# ----------------------------------------------------------------------------------------- kernels


@triton.jit
def conv2d_gemm(
    src,  # [N, groups * src_channels, src_h, src_w]
    weight,  # element (dst channel j, src channel i, tap) of a group at j * w_dst + i * w_src + tap * w_tap
    bias,  # [groups * dst_channels] or None
    dst,  # [N, groups * dst_channels, dst_h, dst_w], src's dtype
    param,
    pixels,  # rows of the product: pixels of dst (of one phase)
    src_channels, dst_channels, src_h, src_w, dst_h, dst_w,
    src_n, src_c, src_y, src_x,
    dst_n, dst_c, dst_y, dst_x,
    w_dst, w_src, w_tap,
    R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    STEP_H: tl.constexpr, STEP_W: tl.constexpr,
    TRANSPOSED: tl.constexpr, PACKED: tl.constexpr, SRC_CHANNELS_LAST: tl.constexpr,
    DST_CHANNELS_LAST: tl.constexpr,
    ACT: tl.constexpr,
    PRECISION: tl.constexpr, TENSOR_CORES: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dst[pixel, j] = act(bias[j] + sum over (tap, i) of src[at(pixel, tap), i] * weight[j, i, tap]).

    Forward: at = pixel * stride - padding + tap * dilation.
    TRANSPOSED (grad_x): at = (pixel + padding - tap * dilation) / stride, for the taps that divide. These
    are every STEP-th tap from a first one, the same for all pixels of one phase (pixel modulo stride): so
    phases are a grid axis, and each is a dense convolution of stride 1 over its own taps.
    Grid: (pixel blocks * channel blocks, groups, phases).
    """
    channel_blocks = tl.cdiv(dst_channels, BLOCK_N)
    m = index(tl.program_id(0) // channel_blocks, WIDE) * BLOCK_M + tl.arange(0, BLOCK_M)
    j = tl.program_id(0) % channel_blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    group = tl.program_id(1)

    # (y, x): the pixel of dst; (base_y, base_x): where its first tap lies in src
    if TRANSPOSED:
        phase_y, phase_x = tl.program_id(2) // STRIDE_W, tl.program_id(2) % STRIDE_W
        n, y, x = _pixel(m, tl.cdiv(dst_h, STRIDE_H), tl.cdiv(dst_w, STRIDE_W))
        y, x = y * STRIDE_H + phase_y, x * STRIDE_W + phase_x
        first_r = _first_tap(phase_y, R, STRIDE_H, PAD_H, DILATION_H)
        first_s = _first_tap(phase_x, S, STRIDE_W, PAD_W, DILATION_W)
        taps_r, taps_s = tl.cdiv(R - first_r, STEP_H), tl.cdiv(S - first_s, STEP_W)
        base_y = (y + PAD_H - first_r * DILATION_H) // STRIDE_H
        base_x = (x + PAD_W - first_s * DILATION_W) // STRIDE_W
        MOVE_Y: tl.constexpr = -(STEP_H * DILATION_H // STRIDE_H)
        MOVE_X: tl.constexpr = -(STEP_W * DILATION_W // STRIDE_W)
        weight += group * src_channels * w_src
    else:
        n, y, x = _pixel(m, dst_h, dst_w)
        first_r, first_s, taps_r, taps_s = 0, 0, R, S
        base_y, base_x = y * STRIDE_H - PAD_H, x * STRIDE_W - PAD_W
        MOVE_Y: tl.constexpr = DILATION_H
        MOVE_X: tl.constexpr = DILATION_W
        weight += group * dst_channels * w_dst
    live = (m < pixels) & (y < dst_h) & (x < dst_w)
    src += index(group, WIDE) * src_channels * src_c
    src_rows = _rows(n * src_n, SRC_CHANNELS_LAST)
    live_rows = _rows(live, SRC_CHANNELS_LAST)
    base_y, base_x = _rows(base_y, SRC_CHANNELS_LAST), _rows(base_x, SRC_CHANNELS_LAST)
    WEIGHT_K_LAST: tl.constexpr = not TRANSPOSED
    weight_rows = _rows(j * w_dst, WEIGHT_K_LAST)
    weight_live = _rows(j < dst_channels, WEIGHT_K_LAST)

    taps = taps_r * taps_s
    blocks_per_tap = tl.cdiv(src_channels, BLOCK_K)
    if PACKED:
        steps = tl.cdiv(taps * src_channels, BLOCK_K)
    else:
        steps = taps * blocks_per_tap
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(steps):
        # i: source channels [BLOCK_K]; tap: one number or, packed, [BLOCK_K]
        if PACKED:
            k = step * BLOCK_K + tl.arange(0, BLOCK_K)
            tap, i = k // src_channels, k % src_channels
            k_live = tap < taps
            r, s = tap // taps_s, tap % taps_s
            tap = (first_r + r * STEP_H) * S + first_s + s * STEP_W
            r, s = _columns(r, SRC_CHANNELS_LAST), _columns(s, SRC_CHANNELS_LAST)
            tap = _columns(tap, WEIGHT_K_LAST)
        else:
            tap = step // blocks_per_tap
            i = step % blocks_per_tap * BLOCK_K + tl.arange(0, BLOCK_K)
            k_live = i < src_channels
            r, s = tap // taps_s, tap % taps_s
            tap = (first_r + r * STEP_H) * S + first_s + s * STEP_W
        at_y, at_x = base_y + r * MOVE_Y, base_x + s * MOVE_X
        a = tl.load(
            src
            + src_rows
            + at_y * src_y
            + at_x * src_x
            + _columns(index(i, WIDE) * src_c, SRC_CHANNELS_LAST),
            mask=live_rows & _within(at_y, at_x, src_h, src_w) & _columns(k_live, SRC_CHANNELS_LAST),
            other=0.0,
        )
        b = tl.load(
            weight + weight_rows + _columns(i * w_src, WEIGHT_K_LAST) + tap * w_tap,
            mask=weight_live & _columns(k_live, WEIGHT_K_LAST),
            other=0.0,
        )
        if not SRC_CHANNELS_LAST:
            a = tl.trans(a)
        if WEIGHT_K_LAST:
            b = tl.trans(b)
        acc = _dot(a, b, acc, PRECISION, TENSOR_CORES)

    if bias is not None:
        acc += tl.load(bias + group * dst_channels + j, mask=j < dst_channels, other=0.0).to(tl.float32)[
            None, :
        ]
    acc = activate(acc, param, ACT)
    if not DST_CHANNELS_LAST:
        acc = tl.trans(acc)
    dst_columns = index(group * dst_channels + j, WIDE) * dst_c
    tl.store(
        dst
        + _rows(n * dst_n + y * dst_y + x * dst_x, DST_CHANNELS_LAST)
        + _columns(dst_columns, DST_CHANNELS_LAST),
        narrow(acc, dst),
        mask=_rows(live, DST_CHANNELS_LAST) & _columns(j < dst_channels, DST_CHANNELS_LAST),
    )


@triton.jit
def conv2d_wgrad(
    grad,  # [N, groups * out_channels, out_h, out_w]
    x,  # [N, groups * in_channels, in_h, in_w]
    grad_weight,  # splits of numel elements; k (all groups), c, tap at w_k, w_c, w_tap
    numel, pixels, pixels_per_split,
    in_channels, out_channels, in_h, in_w, out_h, out_w,
    grad_n, grad_c, grad_y, grad_x,
    x_n, x_c, x_y, x_x,
    w_k,
    w_c, w_tap,
    R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    PACKED: tl.constexpr, GRAD_CHANNELS_LAST: tl.constexpr, X_CHANNELS_LAST: tl.constexpr,
    PRECISION: tl.constexpr, TENSOR_CORES: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """grad_weight[k, (tap, c)] = sum over the pixels of one split of grad[pixel, k] * x[at(pixel, tap), c].

    Grid: (blocks of k * blocks of (tap, c), groups, splits).
    """
    if PACKED:
        column_blocks = tl.cdiv(R * S * in_channels, BLOCK_N)
        column = tl.program_id(0) % column_blocks * BLOCK_N + tl.arange(0, BLOCK_N)
        tap, c = column // in_channels, column % in_channels
        column_live = tap < R * S
        r, s = _columns(tap // S, X_CHANNELS_LAST), _columns(tap % S, X_CHANNELS_LAST)
        tap_offset = (tap * w_tap)[None, :]
    else:
        blocks_per_tap = tl.cdiv(in_channels, BLOCK_N)
        column_blocks = R * S * blocks_per_tap
        column_block = tl.program_id(0) % column_blocks
        tap = column_block // blocks_per_tap
        c = column_block % blocks_per_tap * BLOCK_N + tl.arange(0, BLOCK_N)
        column_live = c < in_channels
        r, s = tap // S, tap % S
        tap_offset = tap * w_tap
    group = tl.program_id(1)
    k = tl.program_id(0) // column_blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    k_live = k < out_channels

    x_columns = _columns(index(group * in_channels + c, WIDE) * x_c, X_CHANNELS_LAST)
    x_live = _columns(column_live, X_CHANNELS_LAST)
    grad_columns = _columns(index(group * out_channels + k, WIDE) * grad_c, GRAD_CHANNELS_LAST)
    grad_live = _columns(k_live, GRAD_CHANNELS_LAST)
    move_y, move_x = r * DILATION_H - PAD_H, s * DILATION_W - PAD_W
    start = index(tl.program_id(2), WIDE) * pixels_per_split
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for block in range(0, pixels_per_split, BLOCK_K):
        m = start + block + tl.arange(0, BLOCK_K)
        n, oy, ox = _pixel(m, out_h, out_w)
        g = tl.load(
            grad + _rows(n * grad_n + oy * grad_y + ox * grad_x, GRAD_CHANNELS_LAST) + grad_columns,
            mask=_rows(m < pixels, GRAD_CHANNELS_LAST) & grad_live,
            other=0.0,
        )
        at_y = _rows(oy * STRIDE_H, X_CHANNELS_LAST) + move_y
        at_x = _rows(ox * STRIDE_W, X_CHANNELS_LAST) + move_x
        b = tl.load(
            x + _rows(n * x_n, X_CHANNELS_LAST) + at_y * x_y + at_x * x_x + x_columns,
            mask=_rows(m < pixels, X_CHANNELS_LAST) & _within(at_y, at_x, in_h, in_w) & x_live,
            other=0.0,
        )
        if GRAD_CHANNELS_LAST:
            g = tl.trans(g)
        if not X_CHANNELS_LAST:
            b = tl.trans(b)
        acc = _dot(g, b, acc, PRECISION, TENSOR_CORES)

    tl.store(
        grad_weight
        + tl.program_id(2).to(tl.int64) * numel
        + ((group * out_channels + k) * w_k)[:, None]
        + (c * w_c)[None, :]
        + tap_offset,
        narrow(acc, grad_weight),
        mask=k_live[:, None] & column_live[None, :],
    )


@triton.jit
def conv2d_depthwise(
    src,  # [N, C, src_h, src_w]
    weight,  # [C, 1, R, S] at w_c, w_tap
    bias,  # [C] or None
    dst,  # [N, C, dst_h, dst_w], src's dtype
    param, pixels,
    channels, src_h, src_w, dst_h, dst_w,
    src_n, src_c, src_y, src_x,
    dst_n, dst_c, dst_y, dst_x,
    w_c, w_tap,
    R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ACT: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dst[pixel, c] = act(bias[c] + sum over taps of src[at(pixel, tap), c] * weight[c, tap]).

    ``at`` is conv2d_gemm's. Grid: (pixel blocks * channel blocks).
    """
    channel_blocks = tl.cdiv(channels, BLOCK_C)
    m = index(tl.program_id(0) // channel_blocks, WIDE) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.program_id(0) % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    n, y, x = _pixel(m, dst_h, dst_w)
    live = _rows(m < pixels, CHANNELS_LAST) & _columns(c < channels, CHANNELS_LAST)
    src_base = _rows(n * src_n, CHANNELS_LAST) + _columns(index(c, WIDE) * src_c, CHANNELS_LAST)
    y_row, x_row = _rows(y, CHANNELS_LAST), _rows(x, CHANNELS_LAST)

    acc = tl.zeros(live.shape, tl.float32)
    for r in range(R):
        for s in tl.static_range(S):
            if TRANSPOSED:
                at_y, at_x = y_row + (PAD_H - r * DILATION_H), x_row + (PAD_W - s * DILATION_W)
                hit = (at_y % STRIDE_H == 0) & (at_x % STRIDE_W == 0)
                at_y, at_x = at_y // STRIDE_H, at_x // STRIDE_W
                hit = hit & _within(at_y, at_x, src_h, src_w)
            else:
                at_y = y_row * STRIDE_H + (r * DILATION_H - PAD_H)
                at_x = x_row * STRIDE_W + (s * DILATION_W - PAD_W)
                hit = _within(at_y, at_x, src_h, src_w)
            value = tl.load(src + src_base + at_y * src_y + at_x * src_x, mask=live & hit, other=0.0)
            w = tl.load(weight + c * w_c + (r * S + s) * w_tap, mask=c < channels, other=0.0)
            acc += value.to(tl.float32) * _columns(w.to(tl.float32), CHANNELS_LAST)

    if bias is not None:
        b = tl.load(bias + c, mask=c < channels, other=0.0).to(tl.float32)
        acc += _columns(b, CHANNELS_LAST)
    acc = activate(acc, param, ACT)
    dst_rows = _rows(n * dst_n + y * dst_y + x * dst_x, CHANNELS_LAST)
    dst_columns = _columns(index(c, WIDE) * dst_c, CHANNELS_LAST)
    tl.store(dst + dst_rows + dst_columns, narrow(acc, dst), mask=live)


@triton.jit
def conv2d_depthwise_wgrad(
    grad,  # [N, C, out_h, out_w]
    x,  # [N, C, in_h, in_w]
    grad_weight,  # splits of numel elements; c, tap at w_c, w_tap
    numel, pixels, pixels_per_split,
    channels, in_h, in_w, out_h, out_w,
    grad_n, grad_c, grad_y, grad_x,
    x_n, x_c, x_y, x_x,
    w_c, w_tap,
    R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """grad_weight[c, tap] = sum over the pixels of one split of grad[pixel, c] * x[at(pixel, tap), c].

    Tiles are [taps, pixels, channels], the last two the other way round where pixels are contiguous.
    Grid: (channel blocks * tap blocks, splits).
    """
    channel_blocks = tl.cdiv(channels, BLOCK_C)
    c = tl.program_id(0) % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    tap = tl.program_id(0) // channel_blocks * BLOCK_T + tl.arange(0, BLOCK_T)
    move_y = (tap // S * DILATION_H - PAD_H)[:, None, None]
    move_x = (tap % S * DILATION_W - PAD_W)[:, None, None]
    tap_live = (tap < R * S)[:, None, None]
    c_live = _columns(c < channels, CHANNELS_LAST)
    x_columns = _columns(index(c, WIDE) * x_c, CHANNELS_LAST)
    grad_columns = _columns(index(c, WIDE) * grad_c, CHANNELS_LAST)
    start = index(tl.program_id(1), WIDE) * pixels_per_split
    if CHANNELS_LAST:
        acc = tl.zeros((BLOCK_T, BLOCK_P, BLOCK_C), tl.float32)
    else:
        acc = tl.zeros((BLOCK_T, BLOCK_C, BLOCK_P), tl.float32)
    for block in range(0, pixels_per_split, BLOCK_P):
        m = start + block + tl.arange(0, BLOCK_P)
        n, oy, ox = _pixel(m, out_h, out_w)
        live = _rows(m < pixels, CHANNELS_LAST) & c_live
        grad_rows = _rows(n * grad_n + oy * grad_y + ox * grad_x, CHANNELS_LAST)
        g = tl.load(grad + grad_rows + grad_columns, mask=live, other=0.0).to(tl.float32)
        at_y = _rows(oy * STRIDE_H, CHANNELS_LAST)[None, :, :] + move_y
        at_x = _rows(ox * STRIDE_W, CHANNELS_LAST)[None, :, :] + move_x
        value = tl.load(
            x + (_rows(n * x_n, CHANNELS_LAST) + x_columns)[None, :, :] + at_y * x_y + at_x * x_x,
            mask=live[None, :, :] & tap_live & _within(at_y, at_x, in_h, in_w),
            other=0.0,
        )
        acc += value.to(tl.float32) * g[None, :, :]

    total = tl.sum(acc, axis=1 if CHANNELS_LAST else 2)
    tl.store(
        grad_weight + tl.program_id(1).to(tl.int64) * numel + (tap * w_tap)[:, None] + (c * w_c)[None, :],
        narrow(total, grad_weight),
        mask=(tap < R * S)[:, None] & (c < channels)[None, :],
    )


@triton.jit
def conv2d_pre_grad(
    grad_out,  # [N, K, H, W]
    out,  # [N, K, H, W], or None without an activation
    grad_pre,  # [N, K, H, W] with out's strides, or None: not wanted
    grad_bias,  # splits of [K], or None: not wanted
    param, pixels, pixels_per_split,
    channels, h, w,
    grad_n, grad_c, grad_y, grad_x,
    out_n, out_c, out_y, out_x,
    CHANNELS_LAST: tl.constexpr,
    ACT: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """grad_pre = grad_out * act'(out) and grad_bias[k] = its sum over the pixels of one split, in one pass.

    Grid: (splits, channel blocks).
    """
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    c_live = _columns(c < channels, CHANNELS_LAST)
    grad_columns = _columns(index(c, WIDE) * grad_c, CHANNELS_LAST)
    out_columns = _columns(index(c, WIDE) * out_c, CHANNELS_LAST)
    start = index(tl.program_id(0), WIDE) * pixels_per_split
    if CHANNELS_LAST:
        acc = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    else:
        acc = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
    for block in range(0, pixels_per_split, BLOCK_P):
        m = start + block + tl.arange(0, BLOCK_P)
        n, y, x = _pixel(m, h, w)
        live = _rows(m < pixels, CHANNELS_LAST) & c_live
        grad_rows = _rows(n * grad_n + y * grad_y + x * grad_x, CHANNELS_LAST)
        g = tl.load(grad_out + grad_rows + grad_columns, mask=live, other=0.0).to(tl.float32)
        if out is not None:
            offsets = _rows(n * out_n + y * out_y + x * out_x, CHANNELS_LAST) + out_columns
            g = activation_grad(g, tl.load(out + offsets, mask=live, other=0.0).to(tl.float32), param, ACT)
            if grad_pre is not None:
                tl.store(grad_pre + offsets, narrow(g, grad_pre), mask=live)
        acc += g

    if grad_bias is not None:
        tl.store(
            grad_bias + tl.program_id(0) * channels + c,
            narrow(tl.sum(acc, axis=0 if CHANNELS_LAST else 1), grad_bias),
            mask=c < channels,
        )


@triton.jit
def conv2d_sum_splits(
    partials,  # [splits, numel] float32
    out,  # [numel]
    splits, numel,
    BLOCK_S: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out[i] = sum over splits of partials[split, i]."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK_S, BLOCK), tl.float32)
    for first in range(0, splits, BLOCK_S):
        split = first + tl.arange(0, BLOCK_S)
        live = (split < splits)[:, None] & (i < numel)[None, :]
        acc += tl.load(partials + split.to(tl.int64)[:, None] * numel + i[None, :], mask=live, other=0.0)
    tl.store(out + i, narrow(tl.sum(acc, axis=0), out), mask=i < numel)


# --------------------------------------------------------------------------------------- launchers


class _Geometry(NamedTuple):
    """Sizes of one convolution; ``x`` and ``out`` are (N, H, W, stride n, c, y, x) of the two images."""

    x: tuple[int, ...]
    out: tuple[int, ...]
    taps: dict[str, int]
    in_channels: int
    out_channels: int
    groups: int


def _image(t: torch.Tensor) -> tuple[int, ...]:
    return t.shape[0], t.shape[2], t.shape[3], *t.stride()


def _flatten(*images: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Same-sized images with N, H, W as (1, 1, N*H*W), or else (N, 1, H*W), where all strides allow it."""
    n, h, w = images[0][:3]
    if not all(h == 1 or y == w * x for *_, y, x in images):
        return list(images)
    pixels = h * w
    if all(n == 1 or first == pixels * x for _, _, _, first, _, _, x in images):
        n, pixels = 1, n * pixels
    # stride 0 for the axes that are gone: a multiple of 16 does not stand in the way of wide loads
    return [(n, 1, pixels, first if n > 1 else 0, c, 0, x) for _, _, _, first, c, _, x in images]


def _geometry(
    x: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> _Geometry:
    taps = {"R": weight.shape[2], "S": weight.shape[3]}
    for name, (h, w) in {"STRIDE": stride, "PAD": padding, "DILATION": dilation}.items():
        taps[f"{name}_H"], taps[f"{name}_W"] = h, w
    images = [_image(x), _image(out)]
    if (*weight.shape[2:], *stride, *padding) == (1, 1, 1, 1, 0, 0):
        images = _flatten(*images)
    return _Geometry(images[0], images[1], taps, weight.shape[1], weight.shape[0] // groups, groups)


def _channels_last(t: torch.Tensor) -> bool:
    """Whether neighbouring channels, not neighbouring pixels, are neighbours in memory."""
    return t.stride(1) == 1 and (t.stride(3) != 1 or t.shape[3] == 1)


def _is_depthwise(x: torch.Tensor, weight: torch.Tensor, groups: int) -> bool:
    return groups > 1 and groups == x.shape[1] == weight.shape[0]


def _taps_collapse(weight: torch.Tensor) -> bool:
    """Whether weight[k, c] has its R * S taps at one stride."""
    _, _, r, s = weight.shape
    return r == 1 or s == 1 or weight.stride(2) == s * weight.stride(3)


def _weight_strides(weight: torch.Tensor) -> tuple[int, int, int]:
    """Strides of k, c and tap."""
    _, _, r, s = weight.shape
    tap = weight.stride(3) if s > 1 else weight.stride(2) if r > 1 else 0
    return weight.stride(0), weight.stride(1), tap


def _precision(dtype: torch.dtype, allow_tf32: bool) -> str:
    return "tf32" if allow_tf32 and dtype == torch.float32 else "ieee"


def _wide(pixels: int, *tensors: torch.Tensor) -> bool:
    """Pixel numbers, rounded up to whole blocks, must fit as well as the offsets."""
    return wide(*tensors) or pixels > 2**31 - 2**16


def _splits(pixels: int, block: int, programs: int, target: int) -> tuple[int, int]:
    """(splits, pixels per split): ``programs`` x splits reach ``target``, with four blocks each at least."""
    splits = max(1, min(target // max(programs, 1), cdiv(pixels, 4 * block), 65535))
    per_split = cdiv(cdiv(pixels, splits), block) * block
    return cdiv(pixels, per_split), per_split


def _partials(out: torch.Tensor, splits: int) -> torch.Tensor:
    """Where ``splits`` partial results of ``out`` go: out itself if there is one."""
    return out if splits == 1 else torch.empty(splits * out.numel(), dtype=torch.float32, device=out.device)


def _sum_splits(partials: torch.Tensor, out: torch.Tensor, splits: int) -> None:
    """Add the partials into ``out`` (dense: both are walked in memory order)."""
    if splits > 1:
        block_s = min(64, next_power_of_2(splits))
        block = 2048 // block_s
        grid = (cdiv(out.numel(), block),)
        launch(conv2d_sum_splits, grid, partials, out, splits, out.numel(), BLOCK_S=block_s, BLOCK=block)


def _gemm(
    src: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    dst: torch.Tensor,
    geometry: _Geometry,
    *,
    transposed: bool,
    activation: str = "",
    activation_param: float = 0.0,
    allow_tf32: bool,
) -> None:
    """conv2d_gemm from x to out or, transposed, from grad_out to grad_x."""
    taps, groups = geometry.taps, geometry.groups
    src_image, dst_image = geometry.x, geometry.out
    src_channels, dst_channels = geometry.in_channels, geometry.out_channels
    phase_h = phase_w = 1
    if transposed:
        src_image, dst_image = dst_image, src_image
        src_channels, dst_channels = dst_channels, src_channels
        phase_h, phase_w = taps["STRIDE_H"], taps["STRIDE_W"]
    n, dst_h, dst_w = dst_image[:3]
    pixels = n * cdiv(dst_h, phase_h) * cdiv(dst_w, phase_w)

    # few channels: blocks across taps; else per tap, in the largest blocks that pad the least
    packed = taps["R"] * taps["S"] > 1 and src_channels < 32 and src_channels % 16 != 0
    depth = 64 if src.element_size() == 2 else 32
    if packed:
        block_k = min(32, max(16, next_power_of_2(src_channels * taps["R"] * taps["S"])))
    else:
        block_k = min((depth, depth // 2, 16), key=lambda block: cdiv(src_channels, block) * block)
    if not _taps_collapse(weight) or (not packed and weight.shape[1] > 1 and weight.stride(1) != 1):
        weight = weight.contiguous(memory_format=torch.channels_last)  # rows of channels: whole sectors
    w_dst, w_src, w_tap = _weight_strides(weight)
    if transposed:
        w_dst, w_src = w_src, w_dst

    precision = _precision(src.dtype, allow_tf32)
    block_n = min(128 if src.element_size() == 2 else 64, max(16, next_power_of_2(dst_channels)))
    block_m = 64 if precision == "ieee" and src.dtype == torch.float32 else 128
    programs = groups * phase_h * phase_w * cdiv(dst_channels, block_n) * cdiv(pixels, block_m)
    if programs < program_target(src) // 4:  # less than one per multiprocessor
        block_m, block_n = 64, min(64, block_n)

    launch(
        conv2d_gemm,
        (cdiv(pixels, block_m) * cdiv(dst_channels, block_n), groups, phase_h * phase_w),
        *(src, weight, bias, dst, activation_param, pixels, src_channels, dst_channels),
        *(*src_image[1:3], dst_h, dst_w, *src_image[3:], *dst_image[3:], w_dst, w_src, w_tap),
        **taps,
        STEP_H=phase_h // gcd(phase_h, taps["DILATION_H"]),
        STEP_W=phase_w // gcd(phase_w, taps["DILATION_W"]),
        TRANSPOSED=transposed,
        PACKED=packed,
        SRC_CHANNELS_LAST=_channels_last(src),
        DST_CHANNELS_LAST=_channels_last(dst),
        ACT=activation,
        PRECISION=precision,
        TENSOR_CORES=tensor_cores(src),
        WIDE=_wide(pixels, src, dst),
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        num_warps=8 if block_m == 128 else 4,
        num_stages=3,
    )


def _depthwise(
    src: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    dst: torch.Tensor,
    geometry: _Geometry,
    *,
    transposed: bool,
    activation: str = "",
    activation_param: float = 0.0,
) -> None:
    """conv2d_depthwise from x to out or, transposed, from grad_out to grad_x."""
    src_image, dst_image = geometry.x, geometry.out
    if transposed:
        src_image, dst_image = dst_image, src_image
    channels_last = _channels_last(dst)
    if channels_last:  # neighbouring threads hold neighbouring channels: so shall their weights
        weight = weight.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)
    elif not _taps_collapse(weight):
        weight = weight.contiguous()
    w_c, _, w_tap = _weight_strides(weight)
    n, dst_h, dst_w = dst_image[:3]
    pixels, channels = n * dst_h * dst_w, src.shape[1]
    block_p, block_c = (32, min(64, next_power_of_2(channels))) if channels_last else (256, 4)
    launch(
        conv2d_depthwise,
        (cdiv(pixels, block_p) * cdiv(channels, block_c),),
        *(src, weight, bias, dst, activation_param, pixels, channels, *src_image[1:3], dst_h, dst_w),
        *(*src_image[3:], *dst_image[3:], w_c, w_tap),
        **geometry.taps,
        TRANSPOSED=transposed,
        CHANNELS_LAST=channels_last,
        ACT=activation,
        WIDE=_wide(pixels, src, dst),
        BLOCK_P=block_p,
        BLOCK_C=block_c,
    )


def _wgrad(
    grad: torch.Tensor, x: torch.Tensor, grad_weight: torch.Tensor, geometry: _Geometry, *, allow_tf32: bool
) -> None:
    """grad_weight (dense) by conv2d_wgrad."""
    taps, groups, in_channels = geometry.taps, geometry.groups, geometry.in_channels
    tap_count = taps["R"] * taps["S"]
    n, out_h, out_w = geometry.out[:3]
    pixels = n * out_h * out_w
    widest = 128 if x.element_size() == 2 else 64
    block_m = min(widest, max(16, next_power_of_2(geometry.out_channels)))
    # per tap where whole blocks of channels fit one, else blocks across taps
    block_n = next((block for block in (widest, widest // 2, 32) if in_channels % block == 0), 0)
    packed = block_n == 0
    if packed:
        block_n = min(widest, max(16, next_power_of_2(in_channels * tap_count)))
        columns = cdiv(in_channels * tap_count, block_n)
    else:
        columns = tap_count * (in_channels // block_n)
    block_k = 64 if x.element_size() == 2 and _channels_last(x) and not packed else 32
    tiles = cdiv(geometry.out_channels, block_m) * columns
    splits, per_split = _splits(pixels, block_k, tiles * groups, program_target(x) // 2)
    partials = _partials(grad_weight, splits)
    launch(
        conv2d_wgrad,
        (tiles, groups, splits),
        *(grad, x, partials, grad_weight.numel(), pixels, per_split, in_channels, geometry.out_channels),
        *(*geometry.x[1:3], out_h, out_w, *geometry.out[3:], *geometry.x[3:], *_weight_strides(grad_weight)),
        **taps,
        PACKED=packed,
        GRAD_CHANNELS_LAST=_channels_last(grad),
        X_CHANNELS_LAST=_channels_last(x),
        PRECISION=_precision(x.dtype, allow_tf32),
        TENSOR_CORES=tensor_cores(x),
        WIDE=_wide(pixels, grad, x),
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        num_warps=8 if block_m * block_n >= 128 * 64 else 4,
        num_stages=3,
    )
    _sum_splits(partials, grad_weight, splits)


def _depthwise_wgrad(
    grad: torch.Tensor, x: torch.Tensor, grad_weight: torch.Tensor, geometry: _Geometry
) -> None:
    """grad_weight (dense) by conv2d_depthwise_wgrad."""
    tap_count = geometry.taps["R"] * geometry.taps["S"]
    n, out_h, out_w = geometry.out[:3]
    pixels, channels = n * out_h * out_w, x.shape[1]
    block_t = min(16, next_power_of_2(tap_count))
    block_p, block_c = (4, min(64, next_power_of_2(channels))) if _channels_last(x) else (256, 1)
    blocks = cdiv(channels, block_c) * cdiv(tap_count, block_t)
    splits, per_split = _splits(pixels, block_p, blocks, 2 * program_target(x))
    partials = _partials(grad_weight, splits)
    w_c, _, w_tap = _weight_strides(grad_weight)
    launch(
        conv2d_depthwise_wgrad,
        (blocks, splits),
        *(
            grad,
            x,
            partials,
            grad_weight.numel(),
            pixels,
            per_split,
            channels,
            *geometry.x[1:3],
            out_h,
            out_w,
        ),
        *(*geometry.out[3:], *geometry.x[3:], w_c, w_tap),
        **geometry.taps,
        CHANNELS_LAST=_channels_last(x),
        WIDE=_wide(pixels, grad, x),
        BLOCK_P=block_p,
        BLOCK_C=block_c,
        BLOCK_T=block_t,
    )
    _sum_splits(partials, grad_weight, splits)


def _pre_grad(
    grad_out: torch.Tensor,
    out: torch.Tensor | None,
    grad_pre: torch.Tensor | None,
    grad_bias: torch.Tensor | None,
    activation: str,
    activation_param: float,
) -> None:
    """grad_pre and grad_bias (dense) by conv2d_pre_grad."""
    like = grad_out if out is None else out
    grad_image, out_image = _flatten(_image(grad_out), _image(like))
    n, h, w = out_image[:3]
    pixels, channels = n * h * w, like.shape[1]
    channels_last = _channels_last(like)
    block_p, block_c = (64, min(64, next_power_of_2(channels))) if channels_last else (1024, 2)
    blocks = cdiv(channels, block_c)
    splits, per_split = _splits(pixels, block_p, blocks, 2 * program_target(like))
    partials = None if grad_bias is None else _partials(grad_bias, splits)
    launch(
        conv2d_pre_grad,
        (splits, blocks),
        *(grad_out, out, grad_pre, partials, activation_param, pixels, per_split, channels),
        *(h, w, *grad_image[3:], *out_image[3:]),
        CHANNELS_LAST=channels_last,
        ACT=activation,
        WIDE=_wide(pixels, grad_out, like),
        BLOCK_P=block_p,
        BLOCK_C=block_c,
    )
    if grad_bias is not None:
        _sum_splits(partials, grad_bias, splits)


def forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    *,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    activation: str,
    activation_param: float,
    allow_tf32: bool,
) -> None:
    """Fill ``out`` = act(conv2d(x, weight) + bias).

    x [N, C, H, W], weight [K, C/groups, R, S], bias [K] or None, out [N, K, OH, OW]: one dtype, any strides.
    """
    if out.numel() == 0:
        return
    geometry = _geometry(x, weight, out, stride, padding, dilation, groups)
    act = {"activation": activation, "activation_param": activation_param}
    if _is_depthwise(x, weight, groups):
        _depthwise(x, weight, bias, out, geometry, transposed=False, **act)
    else:
        _gemm(x, weight, bias, out, geometry, transposed=False, allow_tf32=allow_tf32, **act)


def backward(
    grad_out: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor | None,
    grad_x: torch.Tensor | None,
    grad_weight: torch.Tensor | None,
    grad_bias: torch.Tensor | None,
    *,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    activation: str,
    activation_param: float,
    allow_tf32: bool,
) -> None:
    """Fill those of ``grad_x``, ``grad_weight`` and ``grad_bias`` that are wanted (None: not wanted).

    ``out`` is forward's result with an activation, None without.
    """
    if grad_out.numel() == 0:  # no image: nothing flows back, and sums over nothing are zero
        for grad in (grad_x, grad_weight, grad_bias):
            if grad is not None:
                grad.zero_()
        return
    grad = grad_out
    if activation and (grad_x is not None or grad_weight is not None):
        grad = torch.empty_strided(out.shape, out.stride(), dtype=out.dtype, device=out.device)
    if grad_bias is not None or grad is not grad_out:
        pre = None if grad is grad_out else grad
        _pre_grad(grad_out, out if activation else None, pre, grad_bias, activation, activation_param)

    depthwise = _is_depthwise(x, weight, groups)
    if grad_x is not None:
        geometry = _geometry(grad_x, weight, grad, stride, padding, dilation, groups)
        if depthwise:
            _depthwise(grad, weight, None, grad_x, geometry, transposed=True)
        else:
            _gemm(grad, weight, None, grad_x, geometry, transposed=True, allow_tf32=allow_tf32)
    if grad_weight is not None:
        geometry = _geometry(x, weight, grad, stride, padding, dilation, groups)
        dense = grad_weight
        if not (dense.is_contiguous() or dense.is_contiguous(memory_format=torch.channels_last)):
            dense = torch.empty_like(dense, memory_format=torch.contiguous_format)
        if depthwise:
            _depthwise_wgrad(grad, x, dense, geometry)
        else:
            _wgrad(grad, x, dense, geometry, allow_tf32=allow_tf32)
        if dense is not grad_weight:
            grad_weight.copy_(dense)
