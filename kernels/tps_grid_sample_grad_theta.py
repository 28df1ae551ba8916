"""grad_theta: sums over a sample's pixels and channels, per program, then over programs in order."""

import torch
import triton
import triton.language as tl

from ._runtime import cdiv, index, launch, next_power_of_2, program_target
from .sampling_cells import scales
from .sampling_layout import image_strides, options_for, tile_of, tile_pixels
from .sampling_partials import sum_partials
from .sampling_taps import point_gradient
from .tps_grid_sample_coordinates import base_points, coordinates, radial, spline_of


@triton.jit
def _grad_theta_kernel(
    grad_out,  # [N, C, OH, OW] any float dtype
    input,  # [N or 1, C, IH, IW] any float dtype; sn is 0 where one image serves all samples
    theta,  # [N, 2, 3 + K] float32, contiguous
    controls,  # [K, 2] float32, contiguous
    partials,  # [N, SPLITS, 2, 3 + K] float32, or grad_theta itself with SPLITS = 1
    gn, gc, gh, gw,  # strides of grad_out
    sn, sc, sh, sw,  # strides of input
    K, C, IH, IW, OH, OW, SPAN,
    PADDING: tl.constexpr, ALIGN: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    TH: tl.constexpr, TW: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """grad_theta = sum over pixels and channels of grad_out (d out / d(ix, iy)) (xn, yn, 1, U_k) S / 2.

    A program sums SPAN tiles of one sample, for BK control points; the first also for (xn, yn, 1).
    """
    sizes = IH, IW, OH, OW
    tiles = tl.cdiv(OH, TH) * tl.cdiv(OW, TW)
    splits = tl.maximum(tl.cdiv(tiles, SPAN), 1)
    blocks = tl.cdiv(K, BK)
    pid = tl.program_id(0)
    split = pid // blocks
    n = split // splits
    start = split % splits * SPAN
    spline = spline_of(theta, n, K, WIDE)
    input += index(n, WIDE) * sn
    grad_out += index(n, WIDE) * gn
    k = pid % blocks * BK + tl.arange(0, BK)
    cx = tl.load(controls + 2 * k, mask=k < K, other=0.0).to(tl.float32)[None, :]
    cy = tl.load(controls + 2 * k + 1, mask=k < K, other=0.0).to(tl.float32)[None, :]

    sum_xw = tl.zeros([TH * TW], tl.float32)
    sum_xh, sum_x, sum_yw, sum_yh, sum_y = sum_xw, sum_xw, sum_xw, sum_xw, sum_xw
    sum_xu = tl.zeros([TH * TW, BK], tl.float32)
    sum_yu = sum_xu
    for tile in range(start, tl.minimum(start + SPAN, tiles)):
        h, w = tile_pixels(tile, OW, TH, TW)
        live = (h < OH) & (w < OW)
        xn, yn = base_points(h, w, sizes, ALIGN)
        points = coordinates(spline, controls, K, sizes, xn, yn, PADDING, ALIGN)
        gx, gy = point_gradient(
            grad_out, (gc, gh, gw), input, (sc, sh, sw), points, h, w, sizes, live, C,
            CHANNELS_LAST, BC, WIDE,
        )  # fmt: skip
        sum_xw += gx * xn
        sum_xh += gx * yn
        sum_x += gx
        sum_yw += gy * xn
        sum_yh += gy * yn
        sum_y += gy
        u = radial(xn[:, None], yn[:, None], cx, cy)
        sum_xu += gx[:, None] * u
        sum_yu += gy[:, None] * u

    sx, sy, _, _ = scales(sizes, ALIGN)
    partials += index(split, WIDE) * (2 * (3 + K))
    if pid % blocks == 0:
        tl.store(partials, tl.sum(sum_xw) * sx)
        tl.store(partials + 1, tl.sum(sum_xh) * sx)
        tl.store(partials + 2, tl.sum(sum_x) * sx)
        tl.store(partials + 3 + K, tl.sum(sum_yw) * sy)
        tl.store(partials + 4 + K, tl.sum(sum_yh) * sy)
        tl.store(partials + 5 + K, tl.sum(sum_y) * sy)
    tl.store(partials + 3 + k, tl.sum(sum_xu, 0) * sx, mask=k < K)
    tl.store(partials + 6 + K + k, tl.sum(sum_yu, 0) * sy, mask=k < K)


def sum_grad_theta(
    grad_out: torch.Tensor,
    input: torch.Tensor,
    theta: torch.Tensor,
    controls: torch.Tensor,
    grad_theta: torch.Tensor,
    padding_mode: str,
    align_corners: bool,
) -> None:
    """Fill ``grad_theta`` (bilinear, contiguous) from ``grad_out`` (not empty), ``input``, ``theta`` and
    ``controls`` (both contiguous)."""
    n, c, oh, ow = grad_out.shape
    count = controls.shape[0]
    options = options_for(input, padding_mode, align_corners, theta, grad_out)
    bk = min(next_power_of_2(count), 64)
    blocks = tile_of(oh, ow, c, options["CHANNELS_LAST"], pixels=2048 // max(bk, 16), elements=512)
    tiles = cdiv(oh, blocks["TH"]) * cdiv(ow, blocks["TW"])
    # Up to four tiles are not worth a second launch.
    span = tiles if tiles <= 4 else cdiv(tiles, cdiv(program_target(input), n))
    splits = cdiv(tiles, span)
    partials = grad_theta if splits == 1 else theta.new_empty((n, splits, 2, 3 + count))
    launch(
        _grad_theta_kernel, (n * splits * cdiv(count, bk),),
        grad_out, input, theta, controls, partials, *grad_out.stride(), *image_strides(input),
        count, c, *input.shape[2:], oh, ow, span,
        num_warps=8, BK=bk, **options, **blocks,
    )  # fmt: skip
    if splits > 1:
        sum_partials(partials, grad_theta)
