"""grad_input, gathered: each input pixel p adds up the outputs q that sampled it.

A spline has no inverse to be written down. So a first launch finds, for each tile of 4 x 4 outputs, the box
of input pixels that it samples, after padding: folds, clamped edges and reflections are boxes like others. In
the second each program walks over the boxes of a sample, and where one meets its tile of input pixels it
pairs all of the one with all of the other. The weights are those of forward, to the bit.
"""

import torch
import triton
import triton.language as tl

from ._runtime import cdiv, index, launch, next_power_of_2
from .sampling_cells import cell_weight
from .sampling_layout import along_channels, along_pixels, options_for, tile_pixels
from .tps_grid_sample_coordinates import locate, spline_of

#: Output pixels in a tile: SIDE x SIDE.
_SIDE = 4

SIDE = tl.constexpr(_SIDE)


@triton.jit
def _boxes_kernel(
    theta,  # [N, 2, 3 + K] float32, contiguous
    controls,  # [K, 2] float32, contiguous
    boxes,  # [N, 4, tiles of outputs] int32: left, right, top, bottom, all within; left > right: empty
    K, IH, IW, OH, OW,
    NEAREST: tl.constexpr, PADDING: tl.constexpr, ALIGN: tl.constexpr, BT: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The box of the input pixels that take part in each tile of outputs, BT tiles of one sample."""
    sizes = IH, IW, OH, OW
    across = tl.cdiv(OW, SIDE)
    tiles = tl.cdiv(OH, SIDE) * across
    programs = tl.cdiv(tiles, BT)
    pid = tl.program_id(0)
    n = pid // programs
    tile = pid % programs * BT + tl.arange(0, BT)
    i = tl.arange(0, SIDE * SIDE)[None, :]
    h, w = tile[:, None] // across * SIDE + i // SIDE, tile[:, None] % across * SIDE + i % SIDE
    x, _, y, _ = locate(spline_of(theta, n, K, WIDE), controls, K, sizes, h, w, NEAREST, PADDING, ALIGN)

    reach: tl.constexpr = 0 if NEAREST else 1
    none: tl.constexpr = 1 << 30
    inside = (h < OH) & (w < OW) & (x >= -reach) & (x < IW) & (y >= -reach) & (y < IH)
    boxes += index(n, WIDE) * 4 * tiles + tile
    tl.store(boxes, tl.min(tl.where(inside, x, none), 1), mask=tile < tiles)
    tl.store(boxes + tiles, tl.max(tl.where(inside, x + reach, -none), 1), mask=tile < tiles)
    tl.store(boxes + 2 * tiles, tl.min(tl.where(inside, y, none), 1), mask=tile < tiles)
    tl.store(boxes + 3 * tiles, tl.max(tl.where(inside, y + reach, -none), 1), mask=tile < tiles)


@triton.jit
def _meets(boxes, tile, tiles, top, left, TH: tl.constexpr, TW: tl.constexpr):
    """Whether the boxes of a vector of output tiles meet the tile of input pixels at (top, left)."""
    there = tile < tiles
    x0 = tl.load(boxes + tile, mask=there, other=0)
    x1 = tl.load(boxes + tiles + tile, mask=there, other=0)
    y0 = tl.load(boxes + 2 * tiles + tile, mask=there, other=0)
    y1 = tl.load(boxes + 3 * tiles + tile, mask=there, other=0)
    return there & (x0 < left + TW) & (x1 >= left) & (y0 < top + TH) & (y1 >= top)


@triton.jit
def _grad_input_kernel(
    grad_out,  # [N, C, OH, OW] any float dtype
    theta,  # [N, 2, 3 + K] float32, contiguous
    controls,  # [K, 2] float32, contiguous
    boxes,  # [N, 4, tiles of outputs] int32
    grad_input,  # [N / SAMPLES, C, IH, IW] any float dtype
    gn, gc, gh, gw,  # strides of grad_out
    sn, sc, sh, sw,  # strides of grad_input
    SAMPLES, K, C, IH, IW, OH, OW,
    NEAREST: tl.constexpr, PADDING: tl.constexpr, ALIGN: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    TH: tl.constexpr, TW: tl.constexpr, BC: tl.constexpr, BB: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """grad_input[p] = sum over samples of the image and output pixels q of weight(p, q) grad_out[q].

    A program fills a tile of TH x TW input pixels and BC channels, once, in a fixed order; it looks at BB
    boxes at a time.
    """
    sizes = IH, IW, OH, OW
    across = tl.cdiv(IW, TW)
    tiles = tl.cdiv(IH, TH) * across
    groups = tl.cdiv(C, BC)
    pid = tl.program_id(0)
    tile = pid % tiles
    image = pid // tiles // groups
    py, px = tile_pixels(tile, IW, TH, TW)
    top, left = tile // across * TH, tile % across * TW
    channel = pid // tiles % groups * BC + tl.arange(0, BC)
    real = along_channels(channel < C, CHANNELS_LAST)
    channel = along_channels(index(channel, WIDE), CHANNELS_LAST)

    BQ: tl.constexpr = SIDE * SIDE
    out_tiles = tl.cdiv(OH, SIDE) * tl.cdiv(OW, SIDE)
    total = tl.zeros([TH * TW, BC, BQ] if CHANNELS_LAST else [BC, TH * TW, BQ], tl.float32)
    for n in range(image * SAMPLES, image * SAMPLES + SAMPLES):
        spline = spline_of(theta, n, K, WIDE)
        sample = grad_out + index(n, WIDE) * gn + channel * gc
        box = boxes + index(n, WIDE) * 4 * out_tiles
        for first in range(0, out_tiles, BB):
            each = first + tl.arange(0, BB)
            hit = _meets(box, each, out_tiles, top, left, TH, TW)
            near = tl.min(tl.where(hit, each, out_tiles), 0)
            while near < out_tiles:
                h, w = tile_pixels(near, OW, SIDE, SIDE)
                live = (h < OH) & (w < OW)
                x, fx, y, fy = locate(spline, controls, K, sizes, h, w, NEAREST, PADDING, ALIGN)
                member, weight = cell_weight(
                    along_pixels(px, CHANNELS_LAST)[:, :, None],
                    along_pixels(py, CHANNELS_LAST)[:, :, None],
                    x[None, None, :], fx[None, None, :], y[None, None, :], fy[None, None, :],
                    live[None, None, :], NEAREST,
                )  # fmt: skip
                where = sample[:, :, None] + (index(h, WIDE) * gh + index(w, WIDE) * gw)[None, None, :]
                g = tl.load(where, mask=real[:, :, None] & live[None, None, :], other=0.0).to(tl.float32)
                total += tl.where(member, g * weight, 0.0)
                near = tl.min(tl.where(hit & (each > near), each, out_tiles), 0)

    where = grad_input + index(image, WIDE) * sn + channel * sc
    where += along_pixels(index(py, WIDE) * sh + index(px, WIDE) * sw, CHANNELS_LAST)
    mask = along_pixels((py < IH) & (px < IW), CHANNELS_LAST) & real
    tl.store(where, tl.sum(total, 2).to(grad_input.dtype.element_ty), mask=mask)


def gather_grad_input(
    grad_out: torch.Tensor,
    theta: torch.Tensor,
    controls: torch.Tensor,
    grad_input: torch.Tensor,
    mode: str,
    padding_mode: str,
    align_corners: bool,
) -> None:
    """Fill ``grad_input``, not empty, from ``grad_out``, ``theta`` and ``controls`` (both contiguous)."""
    n, c, ih, iw = grad_input.shape
    samples, _, oh, ow = grad_out.shape
    out_tiles = cdiv(oh, _SIDE) * cdiv(ow, _SIDE)
    boxes = theta.new_empty((samples, 4, out_tiles), dtype=torch.int32)
    options = options_for(grad_input, padding_mode, align_corners, theta, grad_out, boxes)
    options["NEAREST"] = mode == "nearest"
    sizes = controls.shape[0], ih, iw, oh, ow
    bt = min(next_power_of_2(out_tiles), 32)
    shared = {name: options[name] for name in ("NEAREST", "PADDING", "ALIGN", "WIDE")}
    launch(_boxes_kernel, (samples * cdiv(out_tiles, bt),), theta, controls, boxes, *sizes, BT=bt, **shared)
    bc = min(next_power_of_2(c), 16 if options["CHANNELS_LAST"] else 4)
    pixels = min(64, 256 // bc)
    tw = min(8 if pixels > 16 else 4, next_power_of_2(iw))
    th = min(pixels // tw, next_power_of_2(ih))
    tiles = cdiv(ih, th) * cdiv(iw, tw)
    launch(
        _grad_input_kernel, (n * tiles * cdiv(c, bc),),
        grad_out, theta, controls, boxes, grad_input, *grad_out.stride(), *grad_input.stride(),
        samples // n, sizes[0], c, *sizes[1:],
        num_warps=max(th * tw * bc // 64, 1), TH=th, TW=tw, BC=bc, BB=min(next_power_of_2(out_tiles), 256),
        **options,
    )  # fmt: skip
