"""The last step of a gradient of coefficients: the sums of a sample's programs, added in order."""

import torch
import triton
import triton.language as tl

from ._runtime import cdiv, index, launch, next_power_of_2, wide


@triton.jit
def _sum_partials_kernel(
    partials,  # [N, SPLITS, WIDTH] float32
    total,  # [N, WIDTH] any float dtype
    SPLITS, WIDTH,
    BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """total[n] = sum over splits of partials[n, split], eight columns a program."""
    n = index(tl.program_id(0), WIDE)
    column = tl.program_id(1) * 8 + tl.arange(0, 8)
    found = tl.zeros([BLOCK, 8], tl.float32)
    for first in range(0, SPLITS, BLOCK):
        row = first + tl.arange(0, BLOCK)[:, None]
        where = partials + (n * SPLITS + row) * WIDTH + column[None, :]
        found += tl.load(where, mask=(row < SPLITS) & (column < WIDTH)[None, :], other=0.0)
    found = tl.sum(found, 0).to(total.dtype.element_ty)
    tl.store(total + n * WIDTH + column, found, mask=column < WIDTH)


def sum_partials(partials: torch.Tensor, total: torch.Tensor) -> None:
    """Fill ``total`` [N, ...] with ``partials`` [N, splits, ...] summed over splits; both are contiguous."""
    n, splits = partials.shape[:2]
    width = total[0].numel()
    launch(
        _sum_partials_kernel, (n, cdiv(width, 8)), partials, total, splits, width,
        num_warps=1, BLOCK=min(next_power_of_2(splits), 64), WIDE=wide(partials),
    )  # fmt: skip
