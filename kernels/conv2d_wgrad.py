"""grad_weight of a convolution as an implicit GEMM: out channels x (tap, in channel), summed over pixels.

The columns are blocks of the channels of one tap where whole blocks fit, else *packed*: blocks across the
taps * channels axis. The long sum over pixels is cut into splits (conv2d_split_k).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._runtime import cdiv, index, launch, narrow, next_power_of_2, tensor_cores
from .conv2d_gemm import dot, dot_precision
from .conv2d_layout import (
    Window,
    channels_last,
    columns,
    pixel_at,
    rows,
    weight_strides,
    wide_pixels,
    window_images,
    within,
)
from .conv2d_split_k import add_splits, partials_of, split_pixels


@triton.jit
def conv2d_wgrad(
    grad,  # [N, groups * out_channels, out_h, out_w]
    x,  # [N, groups * in_channels, in_h, in_w]
    grad_weight,  # splits of numel elements; k (all groups), c, tap at w_k, w_c, w_tap
    numel, pixels, pixels_per_split,
    in_channels, out_channels, in_h, in_w, out_h, out_w,
    grad_n, grad_c, grad_y, grad_x,
    x_n, x_c, x_y, x_x,
    w_k, w_c, w_tap,
    R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    PACKED: tl.constexpr, GRAD_CHANNELS_LAST: tl.constexpr, X_CHANNELS_LAST: tl.constexpr,
    PRECISION: tl.constexpr, TENSOR_CORES: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """grad_weight[k, (tap, c)] = sum over the pixels of one split of grad[pixel, k] * x[at(pixel, tap), c].

    at = pixel * stride - padding + tap * dilation. Grid: (blocks of k * blocks of (tap, c), groups, splits).
    """
    # c: input channels [BLOCK_N]; tap: one number or, packed, [BLOCK_N]
    if PACKED:
        column_blocks = tl.cdiv(R * S * in_channels, BLOCK_N)
        column = tl.program_id(0) % column_blocks * BLOCK_N + tl.arange(0, BLOCK_N)
        tap, c = column // in_channels, column % in_channels
        column_live = tap < R * S
        r, s = columns(tap // S, X_CHANNELS_LAST), columns(tap % S, X_CHANNELS_LAST)
        tap = tap[None, :]
    else:
        blocks_per_tap = tl.cdiv(in_channels, BLOCK_N)
        column_blocks = R * S * blocks_per_tap
        column_block = tl.program_id(0) % column_blocks
        tap = column_block // blocks_per_tap
        c = column_block % blocks_per_tap * BLOCK_N + tl.arange(0, BLOCK_N)
        column_live = c < in_channels
        r, s = tap // S, tap % S
    group = tl.program_id(1)
    k = tl.program_id(0) // column_blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    k_live = k < out_channels

    # tiles are [pixel, channel], transposed if memory is
    grad_columns = columns(index(group * out_channels + k, WIDE) * grad_c, GRAD_CHANNELS_LAST)
    grad_live = columns(k_live, GRAD_CHANNELS_LAST)
    x_columns = columns(index(group * in_channels + c, WIDE) * x_c, X_CHANNELS_LAST)
    x_live = columns(column_live, X_CHANNELS_LAST)
    move_y, move_x = r * DILATION_H - PAD_H, s * DILATION_W - PAD_W
    start = index(tl.program_id(2), WIDE) * pixels_per_split
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for block in range(0, pixels_per_split, BLOCK_K):
        i = start + block + tl.arange(0, BLOCK_K)
        n, out_y, out_x = pixel_at(i, out_h, out_w)
        g = tl.load(
            grad + rows(n * grad_n + out_y * grad_y + out_x * grad_x, GRAD_CHANNELS_LAST) + grad_columns,
            mask=rows(i < pixels, GRAD_CHANNELS_LAST) & grad_live,
            other=0.0,
        )
        at_y = rows(out_y * STRIDE_H, X_CHANNELS_LAST) + move_y
        at_x = rows(out_x * STRIDE_W, X_CHANNELS_LAST) + move_x
        b = tl.load(
            x + rows(n * x_n, X_CHANNELS_LAST) + at_y * x_y + at_x * x_x + x_columns,
            mask=rows(i < pixels, X_CHANNELS_LAST) & within(at_y, at_x, in_h, in_w) & x_live,
            other=0.0,
        )
        if GRAD_CHANNELS_LAST:
            g = tl.trans(g)
        if not X_CHANNELS_LAST:
            b = tl.trans(b)
        acc = dot(g, b, acc, PRECISION, TENSOR_CORES)

    partial = grad_weight + tl.program_id(2).to(tl.int64) * numel
    weight_rows = ((group * out_channels + k) * w_k)[:, None]
    tl.store(
        partial + weight_rows + (c * w_c)[None, :] + tap * w_tap,
        narrow(acc, grad_weight),
        mask=k_live[:, None] & column_live[None, :],
    )


def wgrad(
    grad: torch.Tensor,
    x: torch.Tensor,
    grad_weight: torch.Tensor,
    window: Window,
    groups: int,
    *,
    allow_tf32: bool,
) -> None:
    """Fill ``grad_weight`` (dense) from ``grad``, the gradient of the pre-activation, and ``x``."""
    taps, half = window["R"] * window["S"], x.element_size() == 2
    in_channels, out_channels = grad_weight.shape[1], grad_weight.shape[0] // groups
    x_image, out_image = window_images(x, grad, window)
    pixels = out_image.pixels

    widest = 128 if half else 64
    block_m = min(widest, max(16, next_power_of_2(out_channels)))
    block_n = next((block for block in (widest, widest // 2, 32) if in_channels % block == 0), 0)
    packed = block_n == 0
    if packed:
        block_n = min(widest, max(16, next_power_of_2(in_channels * taps)))
        column_blocks = cdiv(in_channels * taps, block_n)
    else:
        column_blocks = taps * (in_channels // block_n)
    block_k = 64 if half and channels_last(x) and not packed else 32
    tiles = cdiv(out_channels, block_m) * column_blocks
    splits, per_split = split_pixels(x, pixels, block_k, tiles * groups, waves=0.5)
    partials = partials_of(grad_weight, splits)
    launch(
        conv2d_wgrad,
        (tiles, groups, splits),
        grad, x, partials, grad_weight.numel(), pixels, per_split, in_channels, out_channels,
        x_image.h, x_image.w, out_image.h, out_image.w, *out_image.strides, *x_image.strides,
        *weight_strides(grad_weight),
        **window,
        PACKED=packed,
        GRAD_CHANNELS_LAST=channels_last(grad),
        X_CHANNELS_LAST=channels_last(x),
        PRECISION=dot_precision(x.dtype, allow_tf32),
        TENSOR_CORES=tensor_cores(x),
        WIDE=wide_pixels(pixels, grad, x),
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        num_warps=8 if block_m * block_n >= 128 * 64 else 4,
        num_stages=3,
    )  # fmt: skip
    add_splits(partials, grad_weight, splits)
