"""Where an output pixel samples the input: one map per sample, shared by all kernels.

The map is from pixels to pixels: with w' = 2w + 1 - OW and h' = 2h + 1 - OH (exact in float32)

    ix = a w' + b h' + c + (IW - 1) / 2,  a = t00 SX / (2 SW),  b = t01 SX / (2 SH),  c = t02 SX / 2
    iy = d w' + e h' + f + (IH - 1) / 2   (the same from theta's second row, with SY)

where SX, SY, SW, SH are IW, IH, OW, OH, less one if align_corners. It is torch's map seen from the centre,
which rounds less: the identity copies the image exactly.
"""

import triton
import triton.language as tl

from ._runtime import index
from .sampling_cells import cells_of, pad_both, scales


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
def coordinates(map, sizes, h, w, PADDING: tl.constexpr, ALIGN: tl.constexpr):
    """(ix, slope, iy, slope) of output pixels (h, w) after padding."""
    a, b, c, d, e, f = map
    IH, IW, OH, OW = sizes
    w = (2 * w + 1 - OW).to(tl.float32)
    h = (2 * h + 1 - OH).to(tl.float32)
    # fma spelled out: every kernel rounds alike
    x = tl.fma(a, w, tl.fma(b, h, c)) + 0.5 * (IW - 1)
    y = tl.fma(d, w, tl.fma(e, h, f)) + 0.5 * (IH - 1)
    return pad_both(x, y, sizes, PADDING, ALIGN)


@triton.jit
def locate(map, sizes, h, w, NEAREST: tl.constexpr, PADDING: tl.constexpr, ALIGN: tl.constexpr):
    """The cell that output pixels (h, w) sample and their place in it: (cell, part) along x, then along y."""
    x, _, y, _ = coordinates(map, sizes, h, w, PADDING, ALIGN)
    return cells_of(x, y, sizes, NEAREST)
