"""grad_theta: sums over a sample's pixels and channels, per program, then over programs in order."""

import torch
import triton
import triton.language as tl

from ._runtime import cdiv, index, launch, program_target
from .affine_grid_sample_coordinates import coordinates, pixel_map
from .sampling_cells import scales
from .sampling_layout import image_strides, options_for, tile_of, tile_pixels
from .sampling_partials import sum_partials
from .sampling_taps import point_gradient


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

    sum_xw = tl.zeros([TH * TW], tl.float32)
    sum_xh, sum_x, sum_yw, sum_yh, sum_y = sum_xw, sum_xw, sum_xw, sum_xw, sum_xw
    for tile in range(start, tl.minimum(start + SPAN, tiles)):
        h, w = tile_pixels(tile, OW, TH, TW)
        live = (h < OH) & (w < OW)
        points = coordinates(map, sizes, h, w, PADDING, ALIGN)
        gx, gy = point_gradient(
            grad_out, (gc, gh, gw), input, (sc, sh, sw), points, h, w, sizes, live, C,
            CHANNELS_LAST, BC, WIDE,
        )  # fmt: skip
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
    partials = result if splits == 1 else theta.new_empty((n, splits, 2, 3), dtype=torch.float32)
    launch(
        _grad_theta_kernel, (n * splits,),
        grad_out, input, theta, partials, *grad_out.stride(), *image_strides(input),
        c, *input.shape[2:], oh, ow, span,
        num_warps=8, **options, **blocks,
    )  # fmt: skip
    if splits > 1:
        sum_partials(partials, result)
    if result is not grad_theta:
        grad_theta.copy_(result)
