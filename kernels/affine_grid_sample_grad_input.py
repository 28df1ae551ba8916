"""grad_input, gathered: each input pixel p adds up the outputs q that sampled it.

With zero padding (border: away from the border) and an invertible map these q lie in a small parallelogram
around the preimage of p, whose bounding box is searched; otherwise the program walks over all q and looks
closer where one falls on its tile. The weights are those of forward, so the box only has to be large enough.
"""

import torch
import triton
import triton.language as tl

from ._runtime import cdiv, index, launch
from .affine_grid_sample_coordinates import locate, pixel_map
from .sampling_cells import cell_weight
from .sampling_layout import along_channels, along_pixels, options_for, tile_of, tile_pixels


@triton.jit
def _search_box(map, sizes, NEAREST: tl.constexpr):
    """Half width and height of the box, around the preimage of an input pixel, that holds every output
    pixel sampling it, and whether to use it.

    p + [-r, r]^2 comes from a parallelogram that reaches r (|e| + |b|) / (2 |det|) along w. The box is
    larger by 16 float32 roundings of all that enters, and by 1/100. It is not used where those roundings
    matter or the box is large; nor with anything infinite or NaN, which fails every comparison.
    """
    a, b, c, d, e, f = map
    IH, IW, OH, OW = sizes
    det = tl.abs(a * e - b * d)
    a, b, c, d, e, f = tl.abs(a), tl.abs(b), tl.abs(c), tl.abs(d), tl.abs(e), tl.abs(f)
    reach: tl.constexpr = 0.25 if NEAREST else 0.5
    reach_x = a * OW + b * OH + c + IW
    reach_y = d * OW + e * OH + f + IH
    slack = (a * e + b * d) / det * (OW + OH)
    slack_w = 1e-6 * ((e * reach_x + b * reach_y) / det + slack)
    slack_h = 1e-6 * ((d * reach_x + a * reach_y) / det + slack)
    half_w = reach * (e + b) / det + slack_w + 0.01
    half_h = reach * (d + a) / det + slack_h + 0.01
    usable = (slack_w < 0.25) & (slack_h < 0.25) & (half_w * half_h < 64.0) & (half_w + half_h < 256.0)
    return half_w, half_h, usable


@triton.jit
def _first(middle, half, limit):
    """The first integer of [middle - half, middle + half], as long as that interval meets [0, limit)."""
    first = tl.ceil(middle - half)
    first = tl.where(first > -1024.0, first, -1024.0)  # also NaN; the interval is shorter than 512
    first = tl.where(first < limit, first, limit * 1.0)
    return first.to(tl.int32)


@triton.jit
def _gather_box(
    total, grad_out, gh, gw, map, sizes, half_w, half_h, usable, px, py, real,
    NEAREST: tl.constexpr, PADDING: tl.constexpr, ALIGN: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """total plus what the tile's input pixels (py, px) collect from their boxes, if those are usable."""
    a, b, c, d, e, f = map
    IH, IW, OH, OW = sizes
    columns = tl.where(usable, tl.floor(2.0 * half_w) + 1.0, 1.0).to(tl.int32)
    rows = tl.where(usable, tl.floor(2.0 * half_h) + 1.0, 0.0).to(tl.int32)
    dx = px.to(tl.float32) - 0.5 * (IW - 1) - c
    dy = py.to(tl.float32) - 0.5 * (IH - 1) - f
    det = a * e - b * d
    left = _first(0.5 * ((e * dx - b * dy) / det + (OW - 1)), half_w, OW)
    top = _first(0.5 * ((a * dy - d * dx) / det + (OH - 1)), half_h, OH)
    for j in range(0, rows * columns):
        h, w = top + j // columns, left + j % columns
        live = (h >= 0) & (h < OH) & (w >= 0) & (w < OW)
        x, fx, y, fy = locate(map, sizes, h, w, NEAREST, PADDING, ALIGN)
        member, weight = cell_weight(px, py, x, fx, y, fy, live, NEAREST)
        where = grad_out + along_pixels(index(h, WIDE) * gh + index(w, WIDE) * gw, CHANNELS_LAST)
        g = tl.load(where, mask=along_pixels(member, CHANNELS_LAST) & real, other=0.0)
        total += g.to(tl.float32) * along_pixels(weight, CHANNELS_LAST)
    return total


@triton.jit
def _falls_on(x, y, live, left, top, TH: tl.constexpr, TW: tl.constexpr):
    """Whether one of the cells (y, x), or one after it, lies on the tile of input pixels at (top, left)."""
    hit = (x >= left - 1) & (x < left + TW) & (y >= top - 1) & (y < top + TH) & live
    return tl.max(hit.to(tl.int32), 0) > 0


@triton.jit
def _pair_up(g, px, py, cell, live, NEAREST: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """What each of the tile's input pixels (py, px) collects from each of a vector of output pixels.

    g is grad_out as [tile channels, output pixels] with an axis of 1 for the tile's pixels.
    """
    px, py = along_pixels(px, CHANNELS_LAST)[:, :, None], along_pixels(py, CHANNELS_LAST)[:, :, None]
    x, fx, y, fy = cell
    x, fx, y, fy = x[None, None, :], fx[None, None, :], y[None, None, :], fy[None, None, :]
    member, weight = cell_weight(px, py, x, fx, y, fy, live[None, None, :], NEAREST)
    return tl.sum(tl.where(member, g.to(tl.float32) * weight, 0.0), 2)


@triton.jit
def _grad_input_kernel(
    grad_out,  # [N, C, OH, OW] any float dtype
    theta,  # [N, 2, 3] any float dtype, contiguous
    grad_input,  # [N / SAMPLES, C, IH, IW] any float dtype
    gn, gc, gh, gw,  # strides of grad_out
    sn, sc, sh, sw,  # strides of grad_input
    SAMPLES, C, IH, IW, OH, OW,
    NEAREST: tl.constexpr, PADDING: tl.constexpr, ALIGN: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    TH: tl.constexpr, TW: tl.constexpr, BC: tl.constexpr, BQ: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """grad_input[p] = sum over samples of the image and output pixels q of weight(p, q) grad_out[q].

    A program fills a tile of TH x TW input pixels and BC channels, once, in a fixed order.
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

    total = tl.zeros([TH * TW, BC] if CHANNELS_LAST else [BC, TH * TW], tl.float32)
    for n in range(image * SAMPLES, image * SAMPLES + SAMPLES):
        map = pixel_map(theta, n, sizes, ALIGN, WIDE)
        sample = grad_out + index(n, WIDE) * gn + channel * gc
        walk = OH * OW
        if PADDING != "reflection":
            half_w, half_h, usable = _search_box(map, sizes, NEAREST)
            if PADDING == "border":
                # Clamped coordinates reach the two outermost rings of pixels (the second with weight 0).
                usable &= (left >= 2) & (top >= 2) & (left + TW < IW) & (top + TH < IH)
            total = _gather_box(
                total, sample, gh, gw, map, sizes, half_w, half_h, usable, px, py, real,
                NEAREST, PADDING, ALIGN, CHANNELS_LAST, WIDE,
            )  # fmt: skip
            walk = tl.where(usable, 0, walk)
        for chunk in range(0, walk, 128):
            q = chunk + tl.arange(0, 128)
            x, _, y, _ = locate(map, sizes, q // OW, q % OW, NEAREST, PADDING, ALIGN)
            if _falls_on(x, y, q < walk, left, top, TH, TW):
                for piece in range(chunk, tl.minimum(chunk + 128, walk), BQ):
                    near = piece + tl.arange(0, BQ)
                    h, w = near // OW, near % OW
                    cell = locate(map, sizes, h, w, NEAREST, PADDING, ALIGN)
                    g = sample[:, :, None] + (index(h, WIDE) * gh + index(w, WIDE) * gw)[None, None, :]
                    g = tl.load(g, mask=real[:, :, None] & (near < walk)[None, None, :], other=0.0)
                    total += _pair_up(g, px, py, cell, near < walk, NEAREST, CHANNELS_LAST)

    where = grad_input + index(image, WIDE) * sn + channel * sc
    where += along_pixels(index(py, WIDE) * sh + index(px, WIDE) * sw, CHANNELS_LAST)
    mask = along_pixels((py < IH) & (px < IW), CHANNELS_LAST) & real
    tl.store(where, total.to(grad_input.dtype.element_ty), mask=mask)


def gather_grad_input(
    grad_out: torch.Tensor,
    theta: torch.Tensor,
    grad_input: torch.Tensor,
    mode: str,
    padding_mode: str,
    align_corners: bool,
) -> None:
    """Fill ``grad_input``, which is not empty, from ``grad_out`` and ``theta`` (contiguous)."""
    n, c, ih, iw = grad_input.shape
    options = options_for(grad_input, padding_mode, align_corners, theta, grad_out)
    blocks = tile_of(ih, iw, c, options["CHANNELS_LAST"], pixels=256, elements=512)
    tiles = cdiv(ih, blocks["TH"]) * cdiv(iw, blocks["TW"])
    bq = 2048 // (blocks["TH"] * blocks["TW"] * blocks["BC"])  # 16 pairs per thread at a time
    launch(
        _grad_input_kernel, (n * tiles * cdiv(c, blocks["BC"]),),
        grad_out, theta, grad_input, *grad_out.stride(), *grad_input.stride(),
        theta.shape[0] // n, c, ih, iw, *grad_out.shape[2:],
        NEAREST=mode == "nearest", BQ=min(bq, 128), **options, **blocks,
    )  # fmt: skip
