"""From a sampled point to pixels of the input: scales between the two, padding, the cell around a point.

Coordinates are float32 and clamped before they become integers, so none leads out of bounds.

Non-finite coordinates, as torch's CPU kernel: padding moves them to the edge under border and reflection,
where they then sample; under zeros their cell is a pixel outside, its weights are NaN (nearest: none).
"""

import triton
import triton.language as tl


@triton.jit
def scales(sizes, ALIGN: tl.constexpr):
    """SX / 2, SY / 2, SW, SH of sizes (IH, IW, OH, OW); SW and SH at least 1, for xn of one pixel is 0."""
    IH, IW, OH, OW = sizes
    if ALIGN:
        return 0.5 * (IW - 1), 0.5 * (IH - 1), tl.maximum(OW - 1, 1) * 1.0, tl.maximum(OH - 1, 1) * 1.0
    else:
        return 0.5 * IW, 0.5 * IH, tl.maximum(OW, 1) * 1.0, tl.maximum(OH, 1) * 1.0


@triton.jit
def pad(x, size, PADDING: tl.constexpr, ALIGN: tl.constexpr):
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
def pad_both(x, y, sizes, PADDING: tl.constexpr, ALIGN: tl.constexpr):
    """(x, slope, y, slope): points in pixels of the input after padding, each axis with its derivative."""
    IH, IW, _, _ = sizes
    x, slope_x = pad(x, IW, PADDING, ALIGN)
    y, slope_y = pad(y, IH, PADDING, ALIGN)
    return x, slope_x, y, slope_y


@triton.jit
def cells_of(x, y, sizes, NEAREST: tl.constexpr):
    """The cells of padded points and their places in them: (cell, part) along x, then along y."""
    IH, IW, _, _ = sizes
    x, part_x = cell_of(x, IW, NEAREST)
    y, part_y = cell_of(y, IH, NEAREST)
    return x, part_x, y, part_y


@triton.jit
def cell_weight(px, py, x, part_x, y, part_y, live, NEAREST: tl.constexpr):
    """Whether input pixel (py, px) takes part in a sample at cell (y, x), and with which weight."""
    if NEAREST:
        member = (px == x) & (py == y) & live
        weight = tl.where(member, 1.0, 0.0)
    else:
        member = ((px == x) | (px == x + 1)) & ((py == y) | (py == y + 1)) & live
        weight = tl.where(px == x, 1.0 - part_x, part_x) * tl.where(py == y, 1.0 - part_y, part_y)
        weight = tl.where(member, weight, 0.0)
    return member, weight
