"""Split-K: sums over pixels, cut into splits so that few results still fill the GPU.

Each split writes a float32 partial of the whole result; these are added in a fixed order, which keeps the
result the same from run to run. One split writes the result itself.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._runtime import cdiv, launch, narrow, next_power_of_2, program_target


@triton.jit
def conv2d_add_splits(
    partials,  # [splits, numel] float32
    out,  # [numel]
    splits, numel,
    BLOCK: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """out[i] = sum over splits of partials[split, i]."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK, BLOCK_S), tl.float32)
    for first in range(0, splits, BLOCK_S):
        split = first + tl.arange(0, BLOCK_S)
        live = (i < numel)[:, None] & (split < splits)[None, :]
        acc += tl.load(partials + i[:, None] + split.to(tl.int64)[None, :] * numel, mask=live, other=0.0)
    tl.store(out + i, narrow(tl.sum(acc, axis=1), out), mask=i < numel)


def split_pixels(like: torch.Tensor, pixels: int, block: int, programs: int, waves: float) -> tuple[int, int]:
    """(splits, pixels per split): whole blocks, four at least where there are as many.

    ``programs`` times splits make up to ``waves`` times what fills the device of ``like``.
    """
    target = int(waves * program_target(like))
    splits = max(1, min(target // max(programs, 1), cdiv(pixels, 4 * block), 65535))
    per_split = cdiv(cdiv(pixels, splits), block) * block
    return cdiv(pixels, per_split), per_split


def partials_of(out: torch.Tensor, splits: int) -> torch.Tensor:
    """Where the splits write: ``splits`` times ``out``'s elements in memory order, or ``out`` itself."""
    return out if splits == 1 else torch.empty(splits * out.numel(), dtype=torch.float32, device=out.device)


def add_splits(partials: torch.Tensor, out: torch.Tensor, splits: int) -> None:
    """Add what ``partials_of`` gave into ``out`` (dense: both are walked in memory order)."""
    if splits > 1:
        numel, block_s = out.numel(), min(64, next_power_of_2(splits))
        block = 2048 // block_s
        grid = (cdiv(numel, block),)
        launch(conv2d_add_splits, grid, partials, out, splits, numel, BLOCK=block, BLOCK_S=block_s)
