"""Where an output pixel samples the input: a thin-plate spline per sample, shared by all kernels.

    xn = (2w + 1 - OW) / SW,  yn = (2h + 1 - OH) / SH     affine_grid's base grid, each rounded once
    gx = theta[0, 0] xn + theta[0, 1] yn + theta[0, 2] + sum over k of theta[0, 3 + k] U_k
    U_k = s log s,  s the squared distance of (xn, yn) from control point k,  0 at the point itself
    ix = gx SX / 2 + (IW - 1) / 2                         (gy and iy the same from theta's second row)

where SX, SY, SW, SH are IW, IH, OW, OH, less one if align_corners. The sum runs over one control point after
the other with fused multiply-adds spelled out, whatever the shape of a tile: all kernels round alike.
"""

import triton
import triton.language as tl

from ._runtime import index
from .sampling_cells import cells_of, pad_both, scales


@triton.jit
def spline_of(theta, n, K, WIDE: tl.constexpr):
    """Where sample n's coefficients begin; theta: [N, 2, 3 + K] contiguous."""
    return theta + index(n, WIDE) * (2 * (3 + K))


@triton.jit
def base_points(h, w, sizes, ALIGN: tl.constexpr):
    """(xn, yn) of output pixels (h, w)."""
    _, _, OH, OW = sizes
    _, _, sw, sh = scales(sizes, ALIGN)
    return tl.div_rn((2 * w + 1 - OW).to(tl.float32), sw), tl.div_rn((2 * h + 1 - OH).to(tl.float32), sh)


@triton.jit
def radial(xn, yn, cx, cy):
    """U of the distance between points and control points."""
    dx, dy = xn - cx, yn - cy
    s = tl.fma(dx, dx, dy * dy)
    # the logarithm of 1 next to a control point, where U is 0 to float32 and s may be flushed to 0
    return s * tl.log(tl.where(s < 1e-30, 1.0, s))


@triton.jit
def coordinates(spline, controls, K, sizes, xn, yn, PADDING: tl.constexpr, ALIGN: tl.constexpr):
    """(ix, slope, iy, slope) of base points after padding; controls: [K, 2] contiguous."""
    IH, IW, _, _ = sizes
    sx, sy, _, _ = scales(sizes, ALIGN)
    second = spline + 3 + K
    x = tl.fma(xn, tl.load(spline).to(tl.float32), yn * tl.load(spline + 1).to(tl.float32))
    x += tl.load(spline + 2).to(tl.float32)
    y = tl.fma(xn, tl.load(second).to(tl.float32), yn * tl.load(second + 1).to(tl.float32))
    y += tl.load(second + 2).to(tl.float32)
    for k in range(K):
        cx, cy = tl.load(controls + 2 * k).to(tl.float32), tl.load(controls + 2 * k + 1).to(tl.float32)
        u = radial(xn, yn, cx, cy)
        x = tl.fma(u, tl.load(spline + 3 + k).to(tl.float32), x)
        y = tl.fma(u, tl.load(second + 3 + k).to(tl.float32), y)
    return pad_both(tl.fma(x, sx, 0.5 * (IW - 1)), tl.fma(y, sy, 0.5 * (IH - 1)), sizes, PADDING, ALIGN)


@triton.jit
def locate(
    spline, controls, K, sizes, h, w,
    NEAREST: tl.constexpr, PADDING: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """The cell that output pixels (h, w) sample and their place in it: (cell, part) along x, then along y."""
    xn, yn = base_points(h, w, sizes, ALIGN)
    x, _, y, _ = coordinates(spline, controls, K, sizes, xn, yn, PADDING, ALIGN)
    return cells_of(x, y, sizes, NEAREST)
