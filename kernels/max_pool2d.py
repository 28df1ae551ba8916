"""Max pooling: out[n, c, oh, ow] = max over (kh, kw) of x[n, c, oh*SH - PH + kh*DH, ow*SW - PW + kw*DW].

Saved for backward is where in its window each maximum stood: offset = kh*KW + kw, one byte per output for
windows up to 256 cells. As in torch NaN wins, and of several the last; of equal values the first; cells
outside the input are never chosen, so a window of nothing but -inf names its first cell inside.

Both kernels walk what they write in tiles of three axes, in the memory order of the large tensor (x or
grad_x): [planes, rows, columns] of NCHW, [rows, columns, channels] of channels-last.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ._runtime import cdiv, index, launch, narrow, next_power_of_2, program_target, wide


@triton.jit
def _coordinates(N, C, H, W, CHANNELS_LAST: tl.constexpr, TILE: tl.constexpr, WIDE: tl.constexpr):
    """(n, c, h, w) of this program's tile of an [N, C, H, W] tensor, and which of its elements exist."""
    if CHANNELS_LAST:
        rows, lanes = W, C
    else:
        rows, lanes = H, W
    lane_blocks = tl.cdiv(lanes, TILE[2])
    row_blocks = tl.cdiv(rows, TILE[1])
    block = tl.program_id(0)
    lane = index(block % lane_blocks, WIDE) * TILE[2] + tl.arange(0, TILE[2])[None, None, :]
    block = block // lane_blocks
    row = index(block % row_blocks, WIDE) * TILE[1] + tl.arange(0, TILE[1])[None, :, None]
    outer = index(block // row_blocks, WIDE) * TILE[0] + tl.arange(0, TILE[0])[:, None, None]
    if CHANNELS_LAST:
        n, c, h, w = outer // H, lane, outer % H, row
    else:
        n, c, h, w = outer // C, outer % C, row, lane
    return n, c, h, w, (n < N) & (row < rows) & (lane < lanes)


@triton.jit
def _combine(best, cell):
    """The winner along axis 3 of values and their cells: the last NaN, else the first maximum."""
    last_nan = tl.max(tl.where(best != best, cell, -1), axis=3)
    top = tl.max(tl.where(best != best, float("-inf"), best), axis=3)
    first = tl.min(tl.where(best == top[:, :, :, None], cell, 2147483647), axis=3)
    return tl.where(last_nan >= 0, float("nan"), top), tl.where(last_nan >= 0, last_nan, first)


@triton.jit(do_not_specialize=["N"])
def _forward_kernel(
    x,  # [N, C, H, W] float
    out,  # [N, C, OH, OW] x's dtype
    offsets,  # [N, C, OH, OW] uint8, int16 or int32, out's strides; or None
    N, C, H, W, OH, OW, x_n, x_c, x_h, x_w, out_n, out_c, out_h, out_w,
    WINDOW: tl.constexpr,  # KH, KW, SH, SW, PH, PW, DH, DW
    BEYOND: tl.constexpr,  # whether windows reach beyond the (bottom, right) of the input
    CHANNELS_LAST: tl.constexpr,
    TILE: tl.constexpr,  # outputs per program along each axis of the walk, cells looked at together
    UNROLL: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """out = max over the window, offsets = its kh*KW + kw. A slot keeps its own best until the end."""
    KH: tl.constexpr = WINDOW[0]
    KW: tl.constexpr = WINDOW[1]
    PH: tl.constexpr = WINDOW[4]
    PW: tl.constexpr = WINDOW[5]
    DH: tl.constexpr = WINDOW[6]
    DW: tl.constexpr = WINDOW[7]
    SLOTS: tl.constexpr = TILE[3]
    n, c, oh, ow, exists = _coordinates(N, C, OH, OW, CHANNELS_LAST, TILE, WIDE)
    to = n * out_n + c * out_c + oh * out_h + ow * out_w
    top = (oh * WINDOW[2] - PH)[:, :, :, None]
    left = (ow * WINDOW[3] - PW)[:, :, :, None]
    corner = x + (n * x_n + c * x_c)[:, :, :, None] + (top * x_h + left * x_w)

    best = tl.full(TILE, float("-inf"), tl.float32)
    winner = tl.zeros(TILE, tl.int32)
    if PH + PW > 0:  # the first cell inside the input
        first_h = tl.where(top < 0, (DH - 1 - top) // DH, 0)
        first_w = tl.where(left < 0, (DW - 1 - left) // DW, 0)
        winner += (first_h * KW + first_w).to(tl.int32)

    for start in tl.range(0, KH * KW, SLOTS, loop_unroll_factor=UNROLL):
        cell = start + tl.arange(0, SLOTS)[None, None, None, :]
        down = index(cell // KW, WIDE) * DH
        right = index(cell % KW, WIDE) * DW
        mask = exists[:, :, :, None]
        # a side that no window crosses is not checked: instructions, not bytes, are what limits this loop
        if PH > 0:
            mask = mask & (top + down >= 0)
        if BEYOND[0]:
            mask = mask & (top + down < H)
        if PW > 0:
            mask = mask & (left + right >= 0)
        if BEYOND[1]:
            mask = mask & (left + right < W)
        if KH * KW % SLOTS != 0:
            mask = mask & (cell < KH * KW)
        value = tl.load(corner + (down * x_h + right * x_w), mask, other=float("-inf")).to(tl.float32)
        better = (value > best) | (value != value)
        best = tl.where(better, value, best)
        winner = tl.where(better, cell, winner)

    if SLOTS > 1:
        best, winner = _combine(best, winner)
    else:
        best, winner = tl.reshape(best, to.shape), tl.reshape(winner, to.shape)
    tl.store(out + to, best, exists)
    if offsets is not None:
        tl.store(offsets + to, winner.to(offsets.dtype.element_ty), exists)


@triton.jit(do_not_specialize=["N"])
def _backward_kernel(
    grad_out,  # [N, C, OH, OW] float
    offsets,  # [N, C, OH, OW] uint8, int16 or int32
    grad_x,  # [N, C, H, W] float
    N, C, H, W, OH, OW, grad_out_n, grad_out_c, grad_out_h, grad_out_w, offsets_n, offsets_c,
    offsets_h, offsets_w, grad_x_n, grad_x_c, grad_x_h, grad_x_w,
    WINDOW: tl.constexpr,  # KH, KW, SH, SW, PH, PW, DH, DW
    REACH: tl.constexpr,  # the most windows over one pixel, (vertically, horizontally)
    CHANNELS_LAST: tl.constexpr,
    TILE: tl.constexpr,  # pixels per program along each axis of the walk
    UNROLL: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """grad_x[h, w] = sum of grad_out over the windows whose saved cell is (h, w), in index order."""
    KH: tl.constexpr = WINDOW[0]
    KW: tl.constexpr = WINDOW[1]
    SH: tl.constexpr = WINDOW[2]
    SW: tl.constexpr = WINDOW[3]
    DH: tl.constexpr = WINDOW[6]
    DW: tl.constexpr = WINDOW[7]
    n, c, h, w, exists = _coordinates(N, C, H, W, CHANNELS_LAST, TILE, WIDE)
    down = h + WINDOW[4]
    right = w + WINDOW[5]
    last_h = tl.minimum(down // SH, OH - 1)  # the last window that starts at or before this pixel
    last_w = tl.minimum(right // SW, OW - 1)
    grad_plane = grad_out + n * grad_out_n + c * grad_out_c
    offset_plane = offsets + n * offsets_n + c * offsets_c

    total = tl.zeros(TILE, tl.float32)
    for step in tl.range(0, REACH[0] * REACH[1], loop_unroll_factor=UNROLL):
        oh = last_h - (REACH[0] - 1 - step // REACH[1])
        ow = last_w - (REACH[1] - 1 - step % REACH[1])
        # where the pixel stands in window (oh, ow), in steps of the dilation
        kh, kw = down - oh * SH, right - ow * SW
        over = exists & (oh >= 0) & (oh < OH) & (ow >= 0) & (ow < OW)
        if DH > 1:
            over = over & (kh % DH == 0)
            kh = kh // DH
        if DW > 1:
            over = over & (kw % DW == 0)
            kw = kw // DW
        over = over & (kh < KH) & (kw < KW)
        winner = tl.load(offset_plane + (oh * offsets_h + ow * offsets_w), over, other=0).to(tl.int32)
        grad = tl.load(grad_plane + (oh * grad_out_h + ow * grad_out_w), over, other=0.0).to(tl.float32)
        total += tl.where(over & (winner == kh * KW + kw), grad, 0.0)
    tl.store(
        grad_x + (n * grad_x_n + c * grad_x_c + h * grad_x_h + w * grad_x_w), narrow(total, grad_x), exists
    )


def forward(
    x: Tensor,
    out: Tensor,
    offsets: Tensor | None,
    *,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> None:
    """Fill out [N, C, OH, OW] with the maxima of x [N, C, H, W], and offsets with their cells."""
    channels_last = _channels_last(x)
    window = _window(kernel_size, stride, padding, dilation)
    cells = kernel_size[0] * kernel_size[1]
    slots, size = _slots(out, cells, stride[1], channels_last)
    tile, grid = _tiles(out, channels_last, size)
    beyond = tuple(
        (out.shape[2 + i] - 1) * stride[i] - padding[i] + (kernel_size[i] - 1) * window[6 + i]
        >= x.shape[2 + i]
        for i in (0, 1)
    )
    planes = not channels_last and _planes(x, out)
    launch(
        _forward_kernel,
        grid,
        x,
        out,
        offsets,
        *_sizes(x, planes),
        *out.shape[2:],
        *_strides(x, planes),
        *_strides(out, planes),
        WINDOW=window,
        BEYOND=beyond,
        CHANNELS_LAST=channels_last,
        TILE=(*tile, slots),
        UNROLL=_unroll(cdiv(cells, slots)),
        WIDE=wide(x, out),
    )


def backward(
    grad_out: Tensor,
    offsets: Tensor,
    grad_x: Tensor,
    *,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> None:
    """Fill grad_x [N, C, H, W] from grad_out and offsets [N, C, OH, OW]: every element is written."""
    channels_last = _channels_last(grad_x)
    window = _window(kernel_size, stride, padding, dilation)
    reach = tuple(
        min(cdiv((kernel_size[i] - 1) * window[6 + i] + 1, stride[i]), grad_out.shape[2 + i]) for i in (0, 1)
    )
    tile, grid = _tiles(grad_x, channels_last, 1024)
    planes = not channels_last and _planes(grad_out, offsets, grad_x)
    launch(
        _backward_kernel,
        grid,
        grad_out,
        offsets,
        grad_x,
        *_sizes(grad_x, planes),
        *grad_out.shape[2:],
        *_strides(grad_out, planes),
        *_strides(offsets, planes),
        *_strides(grad_x, planes),
        WINDOW=window,
        REACH=reach,
        CHANNELS_LAST=channels_last,
        TILE=tile,
        UNROLL=_unroll(reach[0] * reach[1]),
        WIDE=wide(grad_out, offsets, grad_x),
    )


def _window(*options: tuple[int, int]) -> tuple[int, ...]:
    """KH, KW, SH, SW, PH, PW, DH, DW; one cell has no dilation, whatever huge number says so."""
    (kh, kw), stride, padding, (dh, dw) = options
    return kh, kw, *stride, *padding, dh if kh > 1 else 1, dw if kw > 1 else 1


def _channels_last(t: Tensor) -> bool:
    """Whether channels move faster in memory than any spatial axis."""
    return t.shape[1] > 1 and t.stride(1) < min((t.stride(i) for i in (2, 3) if t.shape[i] > 1), default=0)


def _planes(*tensors: Tensor) -> bool:
    """Whether N and C are one axis in all of them, which saves a division per plane."""
    return all(t.stride(0) == t.shape[1] * t.stride(1) for t in tensors)


def _sizes(t: Tensor, planes: bool) -> tuple[int, ...]:
    return (t.shape[0] * t.shape[1], 1, *t.shape[2:]) if planes else tuple(t.shape)


def _strides(t: Tensor, planes: bool) -> tuple[int, ...]:
    return (t.stride(1), 0, *t.stride()[2:]) if planes else t.stride()


def _slots(out: Tensor, cells: int, stride: int, channels_last: bool) -> tuple[int, int]:
    """How many cells of a window to look at together, and how many outputs a program takes.

    One cell at a time while neighbouring outputs fill the lanes with neighbouring addresses. A large
    window is spread over lanes where there are too few outputs, or where they stand far apart.
    """
    few = out.numel() < 256 * program_target(out)
    apart = not channels_last and (stride >= 8 or out.shape[3] < 8)
    if cells <= 32 or not (few or apart):
        return 1, 1024
    slots = min(next_power_of_2(cells), 32 if channels_last else 1024)
    return slots, 64 if channels_last else 1024 // slots


def _tiles(t: Tensor, channels_last: bool, size: int) -> tuple[tuple[int, int, int], tuple[int]]:
    """About ``size`` elements as a tile over t's walk, fewer where that would leave the device idle."""
    n, c, h, w = t.shape
    outer, rows, lanes = (n * h, w, c) if channels_last else (n * c, h, w)
    while size > 256 and t.numel() < size * program_target(t):
        size //= 2
    lane = _fit(lanes, 16, min(size, 128))
    row = _fit(rows, 4, size // lane)
    tile = (min(size // lane // row, next_power_of_2(outer)), row, lane)
    return tile, (cdiv(outer, tile[0]) * cdiv(rows, row) * cdiv(lanes, lane),)


def _fit(n: int, low: int, high: int) -> int:
    """The power of two in [low, high] whose multiples cover n with the least waste, the largest of such."""
    size = min(next_power_of_2(n), high)
    best = size
    while size > low:
        size //= 2
        if cdiv(n, size) * size < cdiv(n, best) * best:
            best = size
    return best


def _unroll(steps: int) -> int:
    """All steps of a short loop in line; a longer one stays a loop."""
    return steps if steps <= 32 else 1
