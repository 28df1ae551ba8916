"""Backward of the epilogue act(. + bias): the gradient of the pre-activation and its sum, that of the bias.

One pass over grad_out and, with an activation, over out, from which the derivative is computed.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._runtime import cdiv, index, launch, narrow, next_power_of_2
from .activation import activation_grad
from .conv2d_layout import channels_last, flat_images, pixel_at, wide_pixels
from .conv2d_split_k import add_splits, partials_of, split_pixels


@triton.jit
def conv2d_epilogue_backward(
    grad_out,  # [N, K, H, W]
    out,  # [N, K, H, W], or None without an activation
    grad_pre,  # [N, K, H, W] with out's strides, or None: not wanted
    grad_bias,  # splits of [K], or None: not wanted
    param,
    pixels, pixels_per_split, channels, h, w,
    grad_n, grad_k, grad_y, grad_x,
    out_n, out_k, out_y, out_x,
    ACT: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """grad_pre = grad_out * act'(out) and grad_bias[k] = its sum over the pixels of one split.

    Grid: (splits, channel blocks).
    """
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    grad_channels = (index(k, WIDE) * grad_k)[:, None]
    out_channels = (index(k, WIDE) * out_k)[:, None]
    start = index(tl.program_id(0), WIDE) * pixels_per_split
    acc = tl.zeros((BLOCK_K, BLOCK_P), tl.float32)
    for block in range(0, pixels_per_split, BLOCK_P):
        i = start + block + tl.arange(0, BLOCK_P)
        n, y, x = pixel_at(i, h, w)
        live = (k < channels)[:, None] & (i < pixels)[None, :]
        grad_pixels = (n * grad_n + y * grad_y + x * grad_x)[None, :]
        g = tl.load(grad_out + grad_channels + grad_pixels, mask=live, other=0.0).to(tl.float32)
        if out is not None:
            offsets = out_channels + (n * out_n + y * out_y + x * out_x)[None, :]
            value = tl.load(out + offsets, mask=live, other=0.0).to(tl.float32)
            g = activation_grad(g, value, param, ACT)
            if grad_pre is not None:
                tl.store(grad_pre + offsets, narrow(g, grad_pre), mask=live)
        acc += g

    if grad_bias is not None:
        total = narrow(tl.sum(acc, axis=1), grad_bias)
        tl.store(grad_bias + tl.program_id(0) * channels + k, total, mask=k < channels)


def epilogue_backward(
    grad_out: torch.Tensor,
    out: torch.Tensor | None,
    grad_pre: torch.Tensor | None,
    grad_bias: torch.Tensor | None,
    activation: str,
    activation_param: float,
) -> None:
    """Fill ``grad_pre`` (out's strides) and ``grad_bias`` (dense) where wanted; no ``out``: no activation."""
    like = grad_out if out is None else out
    channels = like.shape[1]
    grad_image, out_image = flat_images(grad_out, like)
    block_k, block_p = (min(64, next_power_of_2(channels)), 64) if channels_last(like) else (2, 1024)
    blocks, pixels = cdiv(channels, block_k), out_image.pixels
    splits, per_split = split_pixels(like, pixels, block_p, blocks, waves=2)
    partials = None if grad_bias is None else partials_of(grad_bias, splits)
    launch(
        conv2d_epilogue_backward,
        (splits, blocks),
        grad_out, out, grad_pre, partials, activation_param,
        pixels, per_split, channels, out_image.h, out_image.w, *grad_image.strides, *out_image.strides,
        ACT=activation,
        WIDE=wide_pixels(pixels, grad_out, like),
        BLOCK_K=block_k,
        BLOCK_P=block_p,
    )  # fmt: skip
    if grad_bias is not None:
        add_splits(partials, grad_bias, splits)
