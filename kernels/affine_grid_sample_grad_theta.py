"""grad_theta: sums over a sample's pixels and channels, per program, then over programs in order."""

import torch
import triton
import triton.language as tl

from ._runtime import cdiv, index, launch, next_power_of_2, program_target, wide
from .affine_grid_sample_coordinates import cell_of, coordinates, pixel_map, scales
from .affine_grid_sample_layout import (
    along_channels,
    along_pixels,
    corner,
    image_strides,
    options_for,
    tile_of,
    tile_pixels,
)


@triton.jit
def _grad_theta_kernel(
    grad_out,  # [N, C, OH, OW] any float dtype
    input,  # [N or 1, C, IH, IW] any float dtype; sn is 0 where one image serves all samples
    theta,  # [N, 2, 3] any float dtype, contiguous
    partials,  # [N, SPLITS, 2, 3] float32, or grad_theta itself with SPLITS = 1
    gn, gc, gh, gw,  # strides of grad_out
    sn, sc, sh, sw,  # strides of input
    C, IH, IW, OH, OW, SPAN,
    PADDING: tl.constexpr, ALIGN: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    TH: tl.constexpr, TW: tl.constexpr, BC: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """grad_theta = sum over pixels and channels of grad_out (d out / d(ix, iy)) (xn, yn, 1) S / 2.

    A program sums SPAN tiles of one sample. Pixels outside the input count as zeros, also in d out.
    """
    sizes = IH, IW, OH, OW
    tiles = tl.cdiv(OH, TH) * tl.cdiv(OW, TW)
    splits = tl.maximum(tl.cdiv(tiles, SPAN), 1)
    pid = tl.program_id(0)
    n = pid // splits
    start = pid % splits * SPAN
    map = pixel_map(theta, n, sizes, ALIGN, WIDE)
    input += index(n, WIDE) * sn
    grad_out += index(n, WIDE) * gn
    channel_axis: tl.constexpr = 1 if CHANNELS_LAST else 0

    sum_xw = tl.zeros([TH * TW], tl.float32)
    sum_xh, sum_x, sum_yw, sum_yh, sum_y = sum_xw, sum_xw, sum_xw, sum_xw, sum_xw
    for tile in range(start, tl.minimum(start + SPAN, tiles)):
        h, w = tile_pixels(tile, OW, TH, TW)
        live = (h < OH) & (w < OW)
        ix, slope_x, iy, slope_y = coordinates(map, sizes, h, w, PADDING, ALIGN)
        x, fx = cell_of(ix, IW, False)
        y, fy = cell_of(iy, IH, False)
        p00, in00 = corner(x, y, sh, sw, sizes, live, CHANNELS_LAST, WIDE)
        p01, in01 = corner(x + 1, y, sh, sw, sizes, live, CHANNELS_LAST, WIDE)
        p10, in10 = corner(x, y + 1, sh, sw, sizes, live, CHANNELS_LAST, WIDE)
        p11, in11 = corner(x + 1, y + 1, sh, sw, sizes, live, CHANNELS_LAST, WIDE)
        fx, fy = along_pixels(fx, CHANNELS_LAST), along_pixels(fy, CHANNELS_LAST)
        pixel = along_pixels(index(h, WIDE) * gh + index(w, WIDE) * gw, CHANNELS_LAST)
        live_tile = along_pixels(live, CHANNELS_LAST)

        dx = tl.zeros([TH * TW, BC] if CHANNELS_LAST else [BC, TH * TW], tl.float32)
        dy = dx
        for first in range(0, C, BC):
            channel = first + tl.arange(0, BC)
            real = along_channels(channel < C, CHANNELS_LAST)
            image = input + along_channels(index(channel, WIDE) * sc, CHANNELS_LAST)
            g = grad_out + pixel + along_channels(index(channel, WIDE) * gc, CHANNELS_LAST)
            g = tl.load(g, mask=live_tile & real, other=0.0).to(tl.float32)
            v00 = tl.load(image + p00, mask=in00 & real, other=0.0).to(tl.float32)
            v01 = tl.load(image + p01, mask=in01 & real, other=0.0).to(tl.float32)
            v10 = tl.load(image + p10, mask=in10 & real, other=0.0).to(tl.float32)
            v11 = tl.load(image + p11, mask=in11 & real, other=0.0).to(tl.float32)
            dx += tl.where(live_tile & real, g * ((v01 - v00) * (1.0 - fy) + (v11 - v10) * fy), 0.0)
            dy += tl.where(live_tile & real, g * ((v10 - v00) * (1.0 - fx) + (v11 - v01) * fx), 0.0)
        gx = tl.sum(dx, channel_axis) * slope_x
        gy = tl.sum(dy, channel_axis) * slope_y
        w = (2 * w + 1 - OW).to(tl.float32)
        h = (2 * h + 1 - OH).to(tl.float32)
        sum_xw += gx * w
        sum_xh += gx * h
        sum_x += gx
        sum_yw += gy * w
        sum_yh += gy * h
        sum_y += gy

    sx, sy, size_w, size_h = scales(sizes, ALIGN)
    partials += index(pid, WIDE) * 6
    tl.store(partials, tl.sum(sum_xw) * (sx / size_w))
    tl.store(partials + 1, tl.sum(sum_xh) * (sx / size_h))
    tl.store(partials + 2, tl.sum(sum_x) * sx)
    tl.store(partials + 3, tl.sum(sum_yw) * (sy / size_w))
    tl.store(partials + 4, tl.sum(sum_yh) * (sy / size_h))
    tl.store(partials + 5, tl.sum(sum_y) * sy)


@triton.jit
def _sum_partials_kernel(
    partials,  # [N, SPLITS, 6] float32
    grad_theta,  # [N, 6] any float dtype
    SPLITS,
    BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """grad_theta[n] = sum over splits of partials[n, split]."""
    n = index(tl.program_id(0), WIDE)
    column = tl.arange(0, 8)[None, :]
    total = tl.zeros([BLOCK, 8], tl.float32)
    for first in range(0, SPLITS, BLOCK):
        row = first + tl.arange(0, BLOCK)[:, None]
        where = partials + (n * SPLITS + row) * 6 + column
        total += tl.load(where, mask=(row < SPLITS) & (column < 6), other=0.0)
    column = tl.arange(0, 8)
    total = tl.sum(total, 0).to(grad_theta.dtype.element_ty)
    tl.store(grad_theta + n * 6 + column, total, mask=column < 6)


def sum_grad_theta(
    grad_out: torch.Tensor,
    input: torch.Tensor,
    theta: torch.Tensor,
    grad_theta: torch.Tensor,
    padding_mode: str,
    align_corners: bool,
) -> None:
    """Fill ``grad_theta`` (bilinear) from ``grad_out`` (not empty), ``input`` and ``theta`` (contiguous)."""
    n, c, oh, ow = grad_out.shape
    options = options_for(input, padding_mode, align_corners, theta, grad_out)
    blocks = tile_of(oh, ow, c, options["CHANNELS_LAST"], pixels=512, elements=512)
    tiles = cdiv(oh, blocks["TH"]) * cdiv(ow, blocks["TW"])
    # Up to four tiles are not worth a second launch.
    span = tiles if tiles <= 4 else cdiv(tiles, cdiv(program_target(input), n))
    splits = cdiv(tiles, span)
    result = grad_theta if grad_theta.is_contiguous() else torch.empty_like(theta, dtype=grad_theta.dtype)
    partials = result if splits == 1 else theta.new_empty((n, splits, 6), dtype=torch.float32)
    launch(
        _grad_theta_kernel, (n * splits,),
        grad_out, input, theta, partials, *grad_out.stride(), *image_strides(input),
        c, *input.shape[2:], oh, ow, span,
        num_warps=8, **options, **blocks,
    )  # fmt: skip
    if splits > 1:
        launch(
            _sum_partials_kernel, (n,), partials, result, splits,
            num_warps=1, BLOCK=min(next_power_of_2(splits), 64), WIDE=wide(partials),
        )  # fmt: skip
    if result is not grad_theta:
        grad_theta.copy_(result)
