"""Depthwise convolution (a channel per group) directly: nothing is shared that a matrix product could use.

Tiles are pixels x channels. Neighbouring threads hold what neighbours in memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._runtime import cdiv, index, launch, narrow, next_power_of_2
from .activation import activate
from .conv2d_layout import (
    Window,
    channels_last,
    columns,
    pixel_at,
    rows,
    taps_collapse,
    weight_strides,
    wide_pixels,
    window_images,
    within,
)
from .conv2d_split_k import add_splits, partials_of, split_pixels

# ----------------------------------------------------------------------------------------- kernels


@triton.jit
def conv2d_depthwise(
    src,  # [N, C, src_h, src_w]
    weight,  # [C, 1, R, S] at w_c, w_tap
    bias,  # [C] or None
    dst,  # [N, C, dst_h, dst_w], src's dtype
    param, pixels, channels, src_h, src_w, dst_h, dst_w,
    src_n, src_c, src_y, src_x,
    dst_n, dst_c, dst_y, dst_x,
    w_c, w_tap,
    R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    TRANSPOSED: tl.constexpr, CHANNELS_LAST: tl.constexpr, ACT: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dst[pixel, c] = act(bias[c] + sum over taps of src[at(pixel, tap), c] * weight[c, tap]).

    Forward: at = pixel * stride - padding + tap * dilation.
    TRANSPOSED (grad_x): at = (pixel + padding - tap * dilation) / stride, for the taps that divide.
    Grid: (pixel blocks * channel blocks).
    """
    channel_blocks = tl.cdiv(channels, BLOCK_C)
    i = index(tl.program_id(0) // channel_blocks, WIDE) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.program_id(0) % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    n, y, x = pixel_at(i, dst_h, dst_w)
    live = rows(i < pixels, CHANNELS_LAST) & columns(c < channels, CHANNELS_LAST)
    src += rows(n * src_n, CHANNELS_LAST) + columns(index(c, WIDE) * src_c, CHANNELS_LAST)
    y_row, x_row = rows(y, CHANNELS_LAST), rows(x, CHANNELS_LAST)

    acc = tl.zeros(live.shape, tl.float32)
    for r in range(R):
        for s in tl.static_range(S):
            if TRANSPOSED:
                at_y, at_x = y_row + (PAD_H - r * DILATION_H), x_row + (PAD_W - s * DILATION_W)
                hit = (at_y % STRIDE_H == 0) & (at_x % STRIDE_W == 0)
                at_y, at_x = at_y // STRIDE_H, at_x // STRIDE_W
                hit = hit & within(at_y, at_x, src_h, src_w)
            else:
                at_y = y_row * STRIDE_H + (r * DILATION_H - PAD_H)
                at_x = x_row * STRIDE_W + (s * DILATION_W - PAD_W)
                hit = within(at_y, at_x, src_h, src_w)
            value = tl.load(src + at_y * src_y + at_x * src_x, mask=live & hit, other=0.0)
            w = tl.load(weight + c * w_c + (r * S + s) * w_tap, mask=c < channels, other=0.0)
            acc += value.to(tl.float32) * columns(w.to(tl.float32), CHANNELS_LAST)

    if bias is not None:
        b = tl.load(bias + c, mask=c < channels, other=0.0).to(tl.float32)
        acc += columns(b, CHANNELS_LAST)
    acc = activate(acc, param, ACT)
    dst_rows = rows(n * dst_n + y * dst_y + x * dst_x, CHANNELS_LAST)
    dst_columns = columns(index(c, WIDE) * dst_c, CHANNELS_LAST)
    tl.store(dst + dst_rows + dst_columns, narrow(acc, dst), mask=live)


@triton.jit
def conv2d_depthwise_wgrad(
    grad,  # [N, C, out_h, out_w]
    x,  # [N, C, in_h, in_w]
    grad_weight,  # splits of numel elements; c, tap at w_c, w_tap
    numel, pixels, pixels_per_split, channels, in_h, in_w, out_h, out_w,
    grad_n, grad_c, grad_y, grad_x,
    x_n, x_c, x_y, x_x,
    w_c, w_tap,
    R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    WIDE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """grad_weight[c, tap] = sum over the pixels of one split of grad[pixel, c] * x[at(pixel, tap), c].

    at = pixel * stride - padding + tap * dilation. Tiles are [taps, channels, pixels].
    Grid: (channel blocks * tap blocks, splits).
    """
    channel_blocks = tl.cdiv(channels, BLOCK_C)
    c = tl.program_id(0) % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    tap = tl.program_id(0) // channel_blocks * BLOCK_T + tl.arange(0, BLOCK_T)
    move_y = (tap // S * DILATION_H - PAD_H)[:, None, None]
    move_x = (tap % S * DILATION_W - PAD_W)[:, None, None]
    weight_live = (tap < R * S)[:, None] & (c < channels)[None, :]
    grad_channels = (index(c, WIDE) * grad_c)[:, None]
    x_channels = (index(c, WIDE) * x_c)[None, :, None]
    start = index(tl.program_id(1), WIDE) * pixels_per_split
    acc = tl.zeros((BLOCK_T, BLOCK_C, BLOCK_P), tl.float32)
    for block in range(0, pixels_per_split, BLOCK_P):
        i = start + block + tl.arange(0, BLOCK_P)
        n, out_y, out_x = pixel_at(i, out_h, out_w)
        grad_pixels = (n * grad_n + out_y * grad_y + out_x * grad_x)[None, :]
        grad_live = (c < channels)[:, None] & (i < pixels)[None, :]
        g = tl.load(grad + grad_channels + grad_pixels, mask=grad_live, other=0.0).to(tl.float32)
        at_y = (out_y * STRIDE_H)[None, None, :] + move_y
        at_x = (out_x * STRIDE_W)[None, None, :] + move_x
        value = tl.load(
            x + x_channels + (n * x_n)[None, None, :] + at_y * x_y + at_x * x_x,
            mask=weight_live[:, :, None] & (i < pixels)[None, None, :] & within(at_y, at_x, in_h, in_w),
            other=0.0,
        )
        acc += value.to(tl.float32) * g[None, :, :]

    partial = grad_weight + tl.program_id(1).to(tl.int64) * numel
    offsets = (tap * w_tap)[:, None] + (c * w_c)[None, :]
    tl.store(partial + offsets, narrow(tl.sum(acc, axis=2), grad_weight), mask=weight_live)


# --------------------------------------------------------------------------------------- launchers


def is_depthwise(x: torch.Tensor, weight: torch.Tensor, groups: int) -> bool:
    return groups > 1 and groups == x.shape[1] == weight.shape[0]


def depthwise(
    src: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    dst: torch.Tensor,
    window: Window,
    *,
    transposed: bool,
    activation: str = "",
    activation_param: float = 0.0,
) -> None:
    """Fill out (``dst``) from x (``src``) or, transposed, grad_x from grad_out."""
    src_image, dst_image = window_images(src, dst, window)
    pixels, channels = dst_image.pixels, dst.shape[1]
    if channels_last(dst):  # neighbouring threads hold neighbouring channels: so shall their weights
        block_p, block_c = 32, min(64, next_power_of_2(channels))
        weight = weight.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)
    else:
        block_p, block_c = 256, 4
        weight = weight if taps_collapse(weight) else weight.contiguous()
    w_c, _, w_tap = weight_strides(weight)
    launch(
        conv2d_depthwise,
        (cdiv(pixels, block_p) * cdiv(channels, block_c),),
        src, weight, bias, dst, activation_param, pixels, channels,
        src_image.h, src_image.w, dst_image.h, dst_image.w, *src_image.strides, *dst_image.strides,
        w_c, w_tap,
        **window,
        TRANSPOSED=transposed,
        CHANNELS_LAST=channels_last(dst),
        ACT=activation,
        WIDE=wide_pixels(pixels, src, dst),
        BLOCK_P=block_p,
        BLOCK_C=block_c,
    )  # fmt: skip


def depthwise_wgrad(grad: torch.Tensor, x: torch.Tensor, grad_weight: torch.Tensor, window: Window) -> None:
    """Fill ``grad_weight`` (dense) from ``grad``, the gradient of the pre-activation, and ``x``."""
    x_image, out_image = window_images(x, grad, window)
    pixels, channels, taps = out_image.pixels, x.shape[1], window["R"] * window["S"]
    block_t = min(16, next_power_of_2(taps))
    block_p, block_c = (4, min(64, next_power_of_2(channels))) if channels_last(x) else (256, 1)
    blocks = cdiv(channels, block_c) * cdiv(taps, block_t)
    splits, per_split = split_pixels(x, pixels, block_p, blocks, waves=2)
    partials = partials_of(grad_weight, splits)
    w_c, _, w_tap = weight_strides(grad_weight)
    launch(
        conv2d_depthwise_wgrad,
        (blocks, splits),
        grad, x, partials, grad_weight.numel(), pixels, per_split, channels,
        x_image.h, x_image.w, out_image.h, out_image.w, *out_image.strides, *x_image.strides,
        w_c, w_tap,
        **window,
        WIDE=wide_pixels(pixels, grad, x),
        BLOCK_P=block_p,
        BLOCK_C=block_c,
        BLOCK_T=block_t,
    )  # fmt: skip
    add_splits(partials, grad_weight, splits)
