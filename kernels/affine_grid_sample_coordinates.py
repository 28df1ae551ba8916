"""Where an output pixel samples the input: one map per sample, shared by all kernels.

The map is from pixels to pixels: with w' = 2w + 1 - OW and h' = 2h + 1 - OH (exact in float32)

    ix = a w' + b h' + c + (IW - 1) / 2,  a = t00 SX / (2 SW),  b = t01 SX / (2 SH),  c = t02 SX / 2
    iy = d w' + e h' + f + (IH - 1) / 2   (the same from theta's second row, with SY)

where SX, SY, SW, SH are IW, IH, OW, OH, less one if align_corners. It is torch's map seen from the centre,
which rounds less: the identity copies the image exactly. Coordinates are float32 and clamped before they
become integers, so no theta leads out of bounds.

Non-finite coordinates, as torch's CPU kernel: padding moves them to the edge under border and reflection,
where they then sample; under zeros their cell is a pixel outside, its weights are NaN (nearest: none).
"""

import triton
import triton.language as tl

from ._runtime import index


@triton.jit
def scales(sizes, ALIGN: tl.constexpr):
    """SX / 2, SY / 2, SW, SH of sizes (IH, IW, OH, OW); SW and SH at least 1, for xn of one pixel is 0."""
    IH, IW, OH, OW = sizes
    if ALIGN:
        return 0.5 * (IW - 1), 0.5 * (IH - 1), tl.maximum(OW - 1, 1) * 1.0, tl.maximum(OH - 1, 1) * 1.0
    else:
        return 0.5 * IW, 0.5 * IH, tl.maximum(OW, 1) * 1.0, tl.maximum(OH, 1) * 1.0


@triton.jit
def pixel_map(theta, n, sizes, ALIGN: tl.constexpr, WIDE: tl.constexpr):
    """(a, b, c, d, e, f) of sample n; theta: [N, 2, 3] contiguous."""
    theta += index(n, WIDE) * 6
    sx, sy, sw, sh = scales(sizes, ALIGN)
    a = tl.load(theta).to(tl.float32) * tl.div_rn(sx, sw)
    b = tl.load(theta + 1).to(tl.float32) * tl.div_rn(sx, sh)
    c = tl.load(theta + 2).to(tl.float32) * sx
    d = tl.load(theta + 3).to(tl.float32) * tl.div_rn(sy, sw)
    e = tl.load(theta + 4).to(tl.float32) * tl.div_rn(sy, sh)
    f = tl.load(theta + 5).to(tl.float32) * sy
    return a, b, c, d, e, f


@triton.jit
def _pad(x, size, PADDING: tl.constexpr, ALIGN: tl.constexpr):
    """x after padding and its derivative: 1, -1, or 0 where clamped (at 0 and size - 1 too)."""
    slope = tl.full(x.shape, 1.0, tl.float32)
    if PADDING == "reflection":
        low = 0.0 if ALIGN else -0.5
        span = (size - 1) * 1.0 if ALIGN else size * 1.0
        x -= low
        negative = x < 0.0
        x = tl.abs(x)
        turns = tl.floor(x / span)
        odd = turns - 2.0 * tl.floor(turns * 0.5) == 1.0
        x -= turns * span
        x = tl.where(odd, span - x, x) + low
        slope = tl.where(negative != odd, -1.0, 1.0)
    if PADDING != "zeros":
        last = (size - 1) * 1.0
        slope = tl.where((x > 0.0) & (x < last), slope, 0.0)
        x = tl.where(x > 0.0, x, 0.0)  # NaN becomes 0
        x = tl.where(x < last, x, last)
    return x, slope


@triton.jit
def cell_of(x, size, NEAREST: tl.constexpr):
    """The pixel before coordinate x (nearest: the one x rounds to, half to even) and x's distance from it.

    Far away, or NaN, it is a pixel outside whose successor is outside too.
    """
    cell = tl.floor(x)
    part = x - cell
    if NEAREST:
        odd = cell - 2.0 * tl.floor(cell * 0.5) == 1.0
        cell = tl.where((part > 0.5) | ((part == 0.5) & odd), cell + 1.0, cell)
    last = size * 1.0
    cell = tl.where(cell > -2.0, cell, -2.0)
    cell = tl.where(cell < last, cell, last)
    return cell.to(tl.int32), part


@triton.jit
def coordinates(map, sizes, h, w, PADDING: tl.constexpr, ALIGN: tl.constexpr):
    """(ix, slope, iy, slope) of output pixels (h, w) after padding."""
    a, b, c, d, e, f = map
    IH, IW, OH, OW = sizes
    w = (2 * w + 1 - OW).to(tl.float32)
    h = (2 * h + 1 - OH).to(tl.float32)
    # fma spelled out: every kernel rounds alike
    x = tl.fma(a, w, tl.fma(b, h, c)) + 0.5 * (IW - 1)
    y = tl.fma(d, w, tl.fma(e, h, f)) + 0.5 * (IH - 1)
    x, slope_x = _pad(x, IW, PADDING, ALIGN)
    y, slope_y = _pad(y, IH, PADDING, ALIGN)
    return x, slope_x, y, slope_y


@triton.jit
def locate(map, sizes, h, w, NEAREST: tl.constexpr, PADDING: tl.constexpr, ALIGN: tl.constexpr):
    """The cell that output pixels (h, w) sample and their place in it: (cell, part) along x, then along y."""
    x, _, y, _ = coordinates(map, sizes, h, w, PADDING, ALIGN)
    IH, IW, _, _ = sizes
    x, part_x = cell_of(x, IW, NEAREST)
    y, part_y = cell_of(y, IH, NEAREST)
    return x, part_x, y, part_y
