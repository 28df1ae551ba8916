"""The four pixels around a sampled point: their weighted sum, and its gradient by the point."""

import triton
import triton.language as tl

from ._runtime import index
from .sampling_cells import cells_of
from .sampling_layout import along_channels, along_pixels, corner


@triton.jit
def sample_pixels(
    input, strides, out, oc, cell, sizes, live, group, C,
    NEAREST: tl.constexpr, CHANNELS_LAST: tl.constexpr, BC: tl.constexpr, GROUP: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Fill a group of GROUP channels of output pixels that sample at ``cell``, BC channels at a time.

    input and out point to the sample, out also to the pixels (shaped to the tile); strides are input's of
    (channel, row, column), oc is out's between channels.
    """
    sc, sh, sw = strides
    x, fx, y, fy = cell
    live_tile = along_pixels(live, CHANNELS_LAST)
    p00, in00 = corner(x, y, sh, sw, sizes, live, CHANNELS_LAST, WIDE)
    if not NEAREST:
        p01, in01 = corner(x + 1, y, sh, sw, sizes, live, CHANNELS_LAST, WIDE)
        p10, in10 = corner(x, y + 1, sh, sw, sizes, live, CHANNELS_LAST, WIDE)
        p11, in11 = corner(x + 1, y + 1, sh, sw, sizes, live, CHANNELS_LAST, WIDE)
        fx, fy = along_pixels(fx, CHANNELS_LAST), along_pixels(fy, CHANNELS_LAST)

    for first in range(group * GROUP, tl.minimum(group * GROUP + GROUP, C), BC):
        channel = first + tl.arange(0, BC)
        real = along_channels(channel < C, CHANNELS_LAST)
        image = input + along_channels(index(channel, WIDE) * sc, CHANNELS_LAST)
        value = tl.load(image + p00, mask=in00 & real, other=0.0).to(tl.float32)
        if not NEAREST:
            v01 = tl.load(image + p01, mask=in01 & real, other=0.0).to(tl.float32)
            v10 = tl.load(image + p10, mask=in10 & real, other=0.0).to(tl.float32)
            v11 = tl.load(image + p11, mask=in11 & real, other=0.0).to(tl.float32)
            value = value * ((1.0 - fx) * (1.0 - fy)) + v01 * (fx * (1.0 - fy))
            value += v10 * ((1.0 - fx) * fy) + v11 * (fx * fy)
        where = out + along_channels(index(channel, WIDE) * oc, CHANNELS_LAST)
        tl.store(where, value.to(out.dtype.element_ty), mask=live_tile & real)


@triton.jit
def point_gradient(
    grad_out, gradient_strides, input, strides, points, h, w, sizes, live, C,
    CHANNELS_LAST: tl.constexpr, BC: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The gradients by x and y of the points that output pixels (h, w) sample, in pixels, before padding.

    grad_out and input point to the sample, their strides are of (channel, row, column); points are
    (ix, slope, iy, slope). Pixels outside the input count as zeros, also in d out.
    """
    gc, gh, gw = gradient_strides
    sc, sh, sw = strides
    ix, slope_x, iy, slope_y = points
    channel_axis: tl.constexpr = 1 if CHANNELS_LAST else 0
    x, fx, y, fy = cells_of(ix, iy, sizes, False)
    p00, in00 = corner(x, y, sh, sw, sizes, live, CHANNELS_LAST, WIDE)
    p01, in01 = corner(x + 1, y, sh, sw, sizes, live, CHANNELS_LAST, WIDE)
    p10, in10 = corner(x, y + 1, sh, sw, sizes, live, CHANNELS_LAST, WIDE)
    p11, in11 = corner(x + 1, y + 1, sh, sw, sizes, live, CHANNELS_LAST, WIDE)
    fx, fy = along_pixels(fx, CHANNELS_LAST), along_pixels(fy, CHANNELS_LAST)
    pixel = along_pixels(index(h, WIDE) * gh + index(w, WIDE) * gw, CHANNELS_LAST)
    live_tile = along_pixels(live, CHANNELS_LAST)

    dx = tl.zeros([h.shape[0], BC] if CHANNELS_LAST else [BC, h.shape[0]], tl.float32)
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
    return tl.sum(dx, channel_axis) * slope_x, tl.sum(dy, channel_axis) * slope_y
