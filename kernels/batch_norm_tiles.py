"""How x is cut: channel blocks, tiles and splits, for launchers and for kernels.

x is dense, seen as [N, C, S] with S contiguous (NCHW, S = H * W) or as rows [N * H * W, C] with C contiguous
(channels-last and 2-D input; S = 1). A program owns a block of channels and walks tiles [BN, BV] of it, BV
along the contiguous axis: S for one channel, or C for a block of channels. Values per channel are scalars in
the first case, [1, BV] in the second, so that one code serves both.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from ._runtime import INTERPRET, cdiv, index, next_power_of_2, program_target, wide

#: Elements of a tile, and how many tiles per program are quicker in one launch than split over three.
TILE = 4096
ONE_LAUNCH_TILES = 8

# ----------------------------------------------------------------------------------- device helpers


@triton.jit
def place(C, BV: tl.constexpr, ROWS: tl.constexpr):
    """This program's channel block, its channels ([1, BV] or one) and which exist, first tile, step."""
    if ROWS:
        blocks = tl.cdiv(C, BV)
        block = tl.program_id(0) % blocks
        c = block * BV + tl.arange(0, BV)[None, :]
    else:
        blocks = C
        block = tl.program_id(0) % blocks
        c = block
    return block, c, c < C, tl.program_id(0) // blocks, tl.num_programs(0) // blocks


@triton.jit
def tile_count(N, S, BN: tl.constexpr, BV: tl.constexpr, ROWS: tl.constexpr):
    """How many tiles a channel block has."""
    if ROWS:
        tiles = tl.cdiv(N, BN)
    else:
        tiles = tl.cdiv(N, BN) * tl.cdiv(S, BV)
    return tiles


@triton.jit
def tile(
    t, block, N, C, S, BN: tl.constexpr, BV: tl.constexpr, VEC: tl.constexpr,
    ROWS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Offsets [BN, BV] of tile t, which of them exist, and how many elements of a channel it has."""
    t = tl.cast(t, tl.int32)  # the interpreter's loops count in plain ints
    # The contiguous size is a multiple of VEC; dividing and multiplying lets the compiler know it too.
    if ROWS:
        first = index(t, WIDE) * BN
        n = first + tl.arange(0, BN)[:, None]
        c = block * BV + tl.arange(0, BV)[None, :]
        offsets = n * (C // VEC * VEC) + c
        inside = (n < N) & (c < C // VEC * VEC)
        count = tl.minimum(N - first, BN)
    else:
        columns = tl.cdiv(S, BV)
        first = index(t // columns, WIDE) * BN
        column = t % columns * BV
        n = first + tl.arange(0, BN)[:, None]
        s = column + tl.arange(0, BV)[None, :]
        offsets = (n * C + block) * (S // VEC * VEC) + s
        inside = (n < N) & (s < S // VEC * VEC)
        count = tl.minimum(N - first, BN) * tl.minimum(S - column, BV)
    return offsets, inside, count


@triton.jit
def over_channel(values, ROWS: tl.constexpr):
    """Sum of a tile over all axes but the channels: [1, BV] or a scalar."""
    if ROWS:
        if INTERPRET:  # it adds along axis 0 one by one; along the last axis in pairs, as a GPU does
            flat = tl.reshape(tl.trans(values), [values.shape[0] * values.shape[1]])
            values = tl.sum(tl.reshape(flat, [values.shape[1], values.shape[0]]), 1)[None, :]
        else:
            values = tl.sum(values, 0, keep_dims=True)
    else:
        values = tl.sum(values)
    return values


@triton.jit
def per_channel(ptr, c, exists, default):
    """float32 values of channels c; ``default`` where there is no array."""
    if ptr is not None:
        values = tl.load(ptr + c, mask=exists, other=0.0).to(tl.float32)
    else:
        values = tl.full(c.shape, default, tl.float32)
    return values


# ------------------------------------------------------------------------------------ for launchers


class Plan(NamedTuple):
    """How a call is cut: the sizes [N, C, S], its channel blocks, the tiles of each, and the constants."""

    sizes: tuple[int, int, int]
    blocks: int
    tiles: int
    whole: bool  # one program does all tiles of a channel block, in one launch
    num_warps: int
    constexprs: dict[str, Any]

    def splits(self, x: torch.Tensor) -> int:
        """Programs per channel block in a reduction: enough to fill the card, a tile or more for each."""
        return max(1, min(self.tiles, program_target(x) // self.blocks))

    def programs(self, x: torch.Tensor) -> int:
        """Programs of the elementwise pass: a tile each, or several once that leaves four times enough."""
        tiles_each = max(1, min(8, self.blocks * self.tiles // (4 * program_target(x))))
        return self.blocks * (1 if self.whole else cdiv(self.tiles, tiles_each))


def plan_of(x: torch.Tensor, reduces: bool) -> Plan:
    """``reduces``: the call needs sums over channels, which few tiles do in one launch."""
    c = x.shape[1]
    s = x.numel() // (x.shape[0] * c)
    rows = s == 1 or not x.is_contiguous()
    n, s = (x.shape[0] * s, 1) if rows else (x.shape[0], s)
    if rows:
        # Wide blocks stream best; narrow ones (a 32-byte sector) make more programs of a short batch.
        short = reduces and n <= ONE_LAUNCH_TILES * TILE // 16
        bv = min(next_power_of_2(c), 16 if short else 64)
        bn = min(next_power_of_2(n), max(TILE // bv, 1))
        blocks, tiles = cdiv(c, bv), cdiv(n, bn)
    else:
        bn = min(next_power_of_2(n), max(TILE // min(next_power_of_2(s), 512), 1))
        bv = min(next_power_of_2(s), TILE // bn)
        blocks, tiles = c, cdiv(n, bn) * cdiv(s, bv)
    whole = reduces and (tiles <= ONE_LAUNCH_TILES or program_target(x) < 2 * blocks)
    vec = 16
    while (c if rows else s) % vec:
        vec //= 2
    constexprs = {"BN": bn, "BV": bv, "VEC": vec, "ROWS": rows, "WIDE": wide(x)}
    num_warps = max(1, min(8, bn * bv // 512))
    return Plan((n, c, s), blocks, tiles, whole, num_warps, constexprs)


def combination(splits: int, channels: int) -> tuple[tuple[int], dict[str, int]]:
    """Grid and constants of a kernel that adds up ``splits`` partials per channel."""
    padded = next_power_of_2(splits)
    block = min(next_power_of_2(channels), max(2048 // padded, 1))
    return (cdiv(channels, block),), {"SPLITS": padded, "BC": block}
