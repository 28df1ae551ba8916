"""Affine grid sampling: grid_sample(input, affine_grid(theta)) without the grid.

    out[n, c, h, w] = sample(input[n, c], x, y),    (x, y) = theta[n] @ (xn, yn, 1)

with (xn, yn) the normalised centre of output pixel (w, h). All kernels use the same map in pixels, one
per sample: with w' = 2w + 1 - OW and h' = 2h + 1 - OH (exact in float32)

    ix = a w' + b h' + c + (IW - 1) / 2,  a = t00 SX / (2 SW),  b = t01 SX / (2 SH),  c = t02 SX / 2
    iy = d w' + e h' + f + (IH - 1) / 2   (the same from theta's second row, with SY)

where SX, SY, SW, SH are IW, IH, OW, OH, less one if align_corners. It is torch's map seen from the centre,
which rounds less: the identity copies the image exactly. Coordinates are float32, shared by all channels,
and clamped before they become integers, so no theta reads out of bounds.

Layout: any strides. A tile is [channels, pixels], or [pixels, channels] where the image's channels are
adjacent. Nothing is saved: backward recomputes the coordinates from theta.

Backward is deterministic. grad_theta sums per program, then over programs in order. grad_input gathers:
each input pixel p adds up the outputs q that sampled it, sum_q weight(p, q) grad_out[q]. With zero padding
(border: away from the border) and an invertible map these q lie in a small parallelogram around the
preimage of p, whose bounding box is searched; otherwise the program walks over all q and looks closer
where one falls on its tile. The weights are those of forward, so the box only has to be large enough.

Non-finite coordinates, as torch's CPU kernel: zeros gives NaN (nearest: 0), border and reflection the edge.
Such samples contribute nothing to grad_input.
"""

import torch
import triton
import triton.language as tl

from ._runtime import cdiv, index, launch, next_power_of_2, program_target, wide


@triton.jit
def _pixels(v, CHANNELS_LAST: tl.constexpr):
    """A vector over pixels, shaped to the tile."""
    return v[:, None] if CHANNELS_LAST else v[None, :]


@triton.jit
def _channels(v, CHANNELS_LAST: tl.constexpr):
    """A vector over channels, shaped to the tile."""
    return v[None, :] if CHANNELS_LAST else v[:, None]


@triton.jit
def _tile_pixels(tile, W, TH: tl.constexpr, TW: tl.constexpr):
    """Row and column of each of the TH TW pixels of a tile of an image that is W wide."""
    across = tl.cdiv(W, TW)
    i = tl.arange(0, TH * TW)
    return tile // across * TH + i // TW, tile % across * TW + i % TW


@triton.jit
def _scales(sizes, ALIGN: tl.constexpr):
    """SX / 2, SY / 2, SW, SH of sizes (IH, IW, OH, OW); SW and SH at least 1, for xn of one pixel is 0."""
    IH, IW, OH, OW = sizes
    if ALIGN:
        return 0.5 * (IW - 1), 0.5 * (IH - 1), tl.maximum(OW - 1, 1) * 1.0, tl.maximum(OH - 1, 1) * 1.0
    else:
        return 0.5 * IW, 0.5 * IH, tl.maximum(OW, 1) * 1.0, tl.maximum(OH, 1) * 1.0


@triton.jit
def _pixel_map(theta, n, sizes, ALIGN: tl.constexpr, WIDE: tl.constexpr):
    """(a, b, c, d, e, f) of sample n; theta: [N, 2, 3] contiguous."""
    theta += index(n, WIDE) * 6
    sx, sy, sw, sh = _scales(sizes, ALIGN)
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
def _cell(x, size, NEAREST: tl.constexpr):
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
def _coordinates(map, sizes, h, w, PADDING: tl.constexpr, ALIGN: tl.constexpr):
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
def _locate(map, sizes, h, w, NEAREST: tl.constexpr, PADDING: tl.constexpr, ALIGN: tl.constexpr):
    """The cell that output pixels (h, w) sample and their place in it: (cell, part) along x, then along y."""
    x, _, y, _ = _coordinates(map, sizes, h, w, PADDING, ALIGN)
    IH, IW, _, _ = sizes
    x, part_x = _cell(x, IW, NEAREST)
    y, part_y = _cell(y, IH, NEAREST)
    return x, part_x, y, part_y


@triton.jit
def _corner(x, y, sh, sw, sizes, live, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr):
    """Offset of input pixel (y, x) and whether it is to be read, both shaped to the tile."""
    IH, IW, _, _ = sizes
    inside = (x >= 0) & (x < IW) & (y >= 0) & (y < IH) & live
    offset = index(y, WIDE) * sh + index(x, WIDE) * sw
    return _pixels(offset, CHANNELS_LAST), _pixels(inside, CHANNELS_LAST)


@triton.jit
def _weight(px, py, x, part_x, y, part_y, live, NEAREST: tl.constexpr):
    """Whether input pixel (py, px) takes part in a sample at cell (y, x), and with which weight."""
    if NEAREST:
        member = (px == x) & (py == y) & live
        weight = tl.where(member, 1.0, 0.0)
    else:
        member = ((px == x) | (px == x + 1)) & ((py == y) | (py == y + 1)) & live
        weight = tl.where(px == x, 1.0 - part_x, part_x) * tl.where(py == y, 1.0 - part_y, part_y)
        weight = tl.where(member, weight, 0.0)
    return member, weight


@triton.jit
def _forward_kernel(
    input,  # [N or 1, C, IH, IW] any float dtype; sn is 0 where one image serves all samples
    theta,  # [N, 2, 3] any float dtype, contiguous
    out,  # [N, C, OH, OW] any float dtype
    sn, sc, sh, sw,  # strides of input
    on, oc, oh, ow,  # strides of out
    C, IH, IW, OH, OW,
    NEAREST: tl.constexpr, PADDING: tl.constexpr, ALIGN: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    TH: tl.constexpr, TW: tl.constexpr, BC: tl.constexpr, GROUP: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """out = sum over the four pixels around (ix, iy) of weight * input; nearest: the one it rounds to.

    A program fills TH x TW pixels of GROUP channels of one sample, BC channels at a time.
    """
    sizes = IH, IW, OH, OW
    tiles = tl.cdiv(OH, TH) * tl.cdiv(OW, TW)
    groups = tl.cdiv(C, GROUP)
    pid = tl.program_id(0)
    h, w = _tile_pixels(pid % tiles, OW, TH, TW)
    group = pid // tiles % groups
    n = pid // tiles // groups
    live = (h < OH) & (w < OW)

    map = _pixel_map(theta, n, sizes, ALIGN, WIDE)
    x, fx, y, fy = _locate(map, sizes, h, w, NEAREST, PADDING, ALIGN)
    input += index(n, WIDE) * sn
    out += index(n, WIDE) * on + _pixels(index(h, WIDE) * oh + index(w, WIDE) * ow, CHANNELS_LAST)
    live_tile = _pixels(live, CHANNELS_LAST)
    p00, in00 = _corner(x, y, sh, sw, sizes, live, CHANNELS_LAST, WIDE)
    if not NEAREST:
        p01, in01 = _corner(x + 1, y, sh, sw, sizes, live, CHANNELS_LAST, WIDE)
        p10, in10 = _corner(x, y + 1, sh, sw, sizes, live, CHANNELS_LAST, WIDE)
        p11, in11 = _corner(x + 1, y + 1, sh, sw, sizes, live, CHANNELS_LAST, WIDE)
        fx, fy = _pixels(fx, CHANNELS_LAST), _pixels(fy, CHANNELS_LAST)

    for first in range(group * GROUP, tl.minimum(group * GROUP + GROUP, C), BC):
        channel = first + tl.arange(0, BC)
        real = _channels(channel < C, CHANNELS_LAST)
        image = input + _channels(index(channel, WIDE) * sc, CHANNELS_LAST)
        value = tl.load(image + p00, mask=in00 & real, other=0.0).to(tl.float32)
        if not NEAREST:
            v01 = tl.load(image + p01, mask=in01 & real, other=0.0).to(tl.float32)
            v10 = tl.load(image + p10, mask=in10 & real, other=0.0).to(tl.float32)
            v11 = tl.load(image + p11, mask=in11 & real, other=0.0).to(tl.float32)
            value = value * ((1.0 - fx) * (1.0 - fy)) + v01 * (fx * (1.0 - fy))
            value += v10 * ((1.0 - fx) * fy) + v11 * (fx * fy)
        where = out + _channels(index(channel, WIDE) * oc, CHANNELS_LAST)
        tl.store(where, value.to(out.dtype.element_ty), mask=live_tile & real)


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
    map = _pixel_map(theta, n, sizes, ALIGN, WIDE)
    input += index(n, WIDE) * sn
    grad_out += index(n, WIDE) * gn
    channel_axis: tl.constexpr = 1 if CHANNELS_LAST else 0

    sum_xw = tl.zeros([TH * TW], tl.float32)
    sum_xh, sum_x, sum_yw, sum_yh, sum_y = sum_xw, sum_xw, sum_xw, sum_xw, sum_xw
    for tile in range(start, tl.minimum(start + SPAN, tiles)):
        h, w = _tile_pixels(tile, OW, TH, TW)
        live = (h < OH) & (w < OW)
        ix, slope_x, iy, slope_y = _coordinates(map, sizes, h, w, PADDING, ALIGN)
        x, fx = _cell(ix, IW, False)
        y, fy = _cell(iy, IH, False)
        p00, in00 = _corner(x, y, sh, sw, sizes, live, CHANNELS_LAST, WIDE)
        p01, in01 = _corner(x + 1, y, sh, sw, sizes, live, CHANNELS_LAST, WIDE)
        p10, in10 = _corner(x, y + 1, sh, sw, sizes, live, CHANNELS_LAST, WIDE)
        p11, in11 = _corner(x + 1, y + 1, sh, sw, sizes, live, CHANNELS_LAST, WIDE)
        fx, fy = _pixels(fx, CHANNELS_LAST), _pixels(fy, CHANNELS_LAST)
        pixel = _pixels(index(h, WIDE) * gh + index(w, WIDE) * gw, CHANNELS_LAST)
        live_tile = _pixels(live, CHANNELS_LAST)

        dx = tl.zeros([TH * TW, BC] if CHANNELS_LAST else [BC, TH * TW], tl.float32)
        dy = dx
        for first in range(0, C, BC):
            channel = first + tl.arange(0, BC)
            real = _channels(channel < C, CHANNELS_LAST)
            image = input + _channels(index(channel, WIDE) * sc, CHANNELS_LAST)
            g = grad_out + pixel + _channels(index(channel, WIDE) * gc, CHANNELS_LAST)
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

    sx, sy, size_w, size_h = _scales(sizes, ALIGN)
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
        x, fx, y, fy = _locate(map, sizes, h, w, NEAREST, PADDING, ALIGN)
        member, weight = _weight(px, py, x, fx, y, fy, live, NEAREST)
        where = grad_out + _pixels(index(h, WIDE) * gh + index(w, WIDE) * gw, CHANNELS_LAST)
        g = tl.load(where, mask=_pixels(member, CHANNELS_LAST) & real, other=0.0)
        total += g.to(tl.float32) * _pixels(weight, CHANNELS_LAST)
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
    px, py = _pixels(px, CHANNELS_LAST)[:, :, None], _pixels(py, CHANNELS_LAST)[:, :, None]
    x, fx, y, fy = cell
    x, fx, y, fy = x[None, None, :], fx[None, None, :], y[None, None, :], fy[None, None, :]
    member, weight = _weight(px, py, x, fx, y, fy, live[None, None, :], NEAREST)
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
    py, px = _tile_pixels(tile, IW, TH, TW)
    top, left = tile // across * TH, tile % across * TW
    channel = pid // tiles % groups * BC + tl.arange(0, BC)
    real = _channels(channel < C, CHANNELS_LAST)
    channel = _channels(index(channel, WIDE), CHANNELS_LAST)

    total = tl.zeros([TH * TW, BC] if CHANNELS_LAST else [BC, TH * TW], tl.float32)
    for n in range(image * SAMPLES, image * SAMPLES + SAMPLES):
        map = _pixel_map(theta, n, sizes, ALIGN, WIDE)
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
            x, _, y, _ = _locate(map, sizes, q // OW, q % OW, NEAREST, PADDING, ALIGN)
            if _falls_on(x, y, q < walk, left, top, TH, TW):
                for piece in range(chunk, tl.minimum(chunk + 128, walk), BQ):
                    near = piece + tl.arange(0, BQ)
                    h, w = near // OW, near % OW
                    cell = _locate(map, sizes, h, w, NEAREST, PADDING, ALIGN)
                    g = sample[:, :, None] + (index(h, WIDE) * gh + index(w, WIDE) * gw)[None, None, :]
                    g = tl.load(g, mask=real[:, :, None] & (near < walk)[None, None, :], other=0.0)
                    total += _pair_up(g, px, py, cell, near < walk, NEAREST, CHANNELS_LAST)

    where = grad_input + index(image, WIDE) * sn + channel * sc
    where += _pixels(index(py, WIDE) * sh + index(px, WIDE) * sw, CHANNELS_LAST)
    mask = _pixels((py < IH) & (px < IW), CHANNELS_LAST) & real
    tl.store(where, total.to(grad_input.dtype.element_ty), mask=mask)


def _blocks(h: int, w: int, channels: int, channels_last: bool, pixels: int, elements: int) -> dict[str, int]:
    """A tile of at most ``pixels`` pixels and ``elements`` elements for maps of ``h`` x ``w``."""
    bc = min(next_power_of_2(channels), 32 if channels_last else 4)
    pixels = min(pixels, elements // bc)
    tw = min(32, pixels, next_power_of_2(w))
    return {"BC": bc, "TW": tw, "TH": min(pixels // tw, next_power_of_2(h))}


def _options(image: torch.Tensor, padding_mode: str, align_corners: bool, *others: torch.Tensor) -> dict:
    """The constexprs shared by all kernels."""
    return {
        "PADDING": padding_mode,
        "ALIGN": align_corners,
        "CHANNELS_LAST": image.shape[1] > 1 and image.stride(1) == 1,
        "WIDE": wide(image, *others),
    }


def _image_strides(image: torch.Tensor) -> tuple[int, ...]:
    """Strides of ``image``, with none along a batch of 1: one image serves all samples."""
    return (0 if image.shape[0] == 1 else image.stride(0), *image.stride()[1:])


def forward(
    input: torch.Tensor,
    theta: torch.Tensor,
    out: torch.Tensor,
    *,
    mode: str,
    padding_mode: str,
    align_corners: bool,
) -> None:
    """Fill ``out`` [N, C, OH, OW] from ``input`` [N or 1, C, IH, IW] and ``theta`` [N, 2, 3]."""
    if out.numel() == 0:
        return
    n, c, oh, ow = out.shape
    options = _options(input, padding_mode, align_corners, theta, out)
    blocks = _blocks(oh, ow, c, options["CHANNELS_LAST"], pixels=256, elements=512)
    tiles = cdiv(oh, blocks["TH"]) * cdiv(ow, blocks["TW"])
    steps = cdiv(c, blocks["BC"])
    group = next_power_of_2(cdiv(steps, cdiv(program_target(out), n * tiles))) * blocks["BC"]
    launch(
        _forward_kernel, (n * tiles * cdiv(c, group),),
        input, theta.contiguous(), out, *_image_strides(input), *out.stride(), c, *input.shape[2:], oh, ow,
        NEAREST=mode == "nearest", GROUP=group, **options, **blocks,
    )  # fmt: skip


def backward(
    grad_out: torch.Tensor,
    input: torch.Tensor,
    theta: torch.Tensor,
    grad_input: torch.Tensor | None,
    grad_theta: torch.Tensor | None,
    *,
    mode: str,
    padding_mode: str,
    align_corners: bool,
) -> None:
    """Fill ``grad_input`` and ``grad_theta`` (each skipped if None), deterministically."""
    theta = theta.contiguous()
    if grad_input is not None and grad_input.numel():
        _grad_input(grad_out, theta, grad_input, mode, padding_mode, align_corners)
    if grad_theta is not None:
        if mode == "nearest" or grad_out.numel() == 0:
            grad_theta.zero_()
        else:
            _grad_theta(grad_out, input, theta, grad_theta, padding_mode, align_corners)


def _grad_input(
    grad_out: torch.Tensor,
    theta: torch.Tensor,
    grad_input: torch.Tensor,
    mode: str,
    padding_mode: str,
    align_corners: bool,
) -> None:
    n, c, ih, iw = grad_input.shape
    options = _options(grad_input, padding_mode, align_corners, theta, grad_out)
    blocks = _blocks(ih, iw, c, options["CHANNELS_LAST"], pixels=256, elements=512)
    tiles = cdiv(ih, blocks["TH"]) * cdiv(iw, blocks["TW"])
    bq = 2048 // (blocks["TH"] * blocks["TW"] * blocks["BC"])  # 16 pairs per thread at a time
    launch(
        _grad_input_kernel, (n * tiles * cdiv(c, blocks["BC"]),),
        grad_out, theta, grad_input, *grad_out.stride(), *grad_input.stride(),
        theta.shape[0] // n, c, ih, iw, *grad_out.shape[2:],
        NEAREST=mode == "nearest", BQ=min(bq, 128), **options, **blocks,
    )  # fmt: skip


def _grad_theta(
    grad_out: torch.Tensor,
    input: torch.Tensor,
    theta: torch.Tensor,
    grad_theta: torch.Tensor,
    padding_mode: str,
    align_corners: bool,
) -> None:
    n, c, oh, ow = grad_out.shape
    options = _options(input, padding_mode, align_corners, theta, grad_out)
    blocks = _blocks(oh, ow, c, options["CHANNELS_LAST"], pixels=512, elements=512)
    tiles = cdiv(oh, blocks["TH"]) * cdiv(ow, blocks["TW"])
    # Up to four tiles are not worth a second launch.
    span = tiles if tiles <= 4 else cdiv(tiles, cdiv(program_target(input), n))
    splits = cdiv(tiles, span)
    result = grad_theta if grad_theta.is_contiguous() else torch.empty_like(theta, dtype=grad_theta.dtype)
    partials = result if splits == 1 else theta.new_empty((n, splits, 6), dtype=torch.float32)
    launch(
        _grad_theta_kernel, (n * splits,),
        grad_out, input, theta, partials, *grad_out.stride(), *_image_strides(input),
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
