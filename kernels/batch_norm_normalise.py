"""The elementwise pass of forward: out = act((x - mean) * invstd * weight + bias + residual).

Programs that see their channels whole compute the statistics first, in the same launch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._runtime import launch, narrow
from .activation import activate
from .batch_norm_activation import pack, pack_mask, preactivation
from .batch_norm_statistics import invstd_of, moments, write_statistics
from .batch_norm_tiles import Plan, per_channel, place, tile, tile_count


@triton.jit
def batch_norm_normalise(
    x_ptr, residual_ptr, out_ptr,  # [N, C, S] one float dtype
    weight_ptr, bias_ptr,  # [C] any float dtype
    running_mean_ptr, running_var_ptr,  # [C] any float dtype
    mean_ptr, invstd_ptr,  # [C] float32
    mask_ptr,  # [numel / 8] uint8
    N, C, S, momentum, eps, param,
    MOMENTS: tl.constexpr, ACT: tl.constexpr,
    BN: tl.constexpr, BV: tl.constexpr, VEC: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """out = act((x - mean) * scale + bias + residual) with scale = weight * invstd.

    MOMENTS says where mean and invstd come from: "compute" (this program sees its channels whole),
    "load", or "running" (invstd from running_var).
    """
    block, c, exists, first, step = place(C, BV, ROWS)
    if MOMENTS == "compute":
        count, pivot, shift, m2 = moments(
            x_ptr, block, c, exists, first, step, N, C, S, BN, BV, VEC, ROWS, WIDE
        )
        mean, invstd = write_statistics(
            c, exists, count, pivot + shift, m2, mean_ptr, invstd_ptr, running_mean_ptr, running_var_ptr,
            momentum, eps,
        )  # fmt: skip
    elif MOMENTS == "load":
        mean = per_channel(mean_ptr, c, exists, 0.0)
        invstd = per_channel(invstd_ptr, c, exists, 1.0)
    else:
        mean = per_channel(running_mean_ptr, c, exists, 0.0)
        invstd = invstd_of(per_channel(running_var_ptr, c, exists, 1.0), eps)
    scale = per_channel(weight_ptr, c, exists, 1.0) * invstd
    bias = per_channel(bias_ptr, c, exists, 0.0)
    tiles = tile_count(N, S, BN, BV, ROWS)
    for i in range(first, tiles, step):
        t = tiles - 1 - i  # backwards: what the statistics read last is still in the cache
        offsets, inside, _ = tile(t, block, N, C, S, BN, BV, VEC, ROWS, WIDE)
        x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        y = preactivation(x, mean, scale, bias)
        if residual_ptr is not None:
            y += tl.load(residual_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        y = narrow(activate(y, param, ACT), out_ptr)
        tl.store(out_ptr + offsets, y, mask=inside)
        if mask_ptr is not None:  # its bytes lie like x with the contiguous size over 8
            if ROWS:
                offsets, inside, _ = tile(t, block, N, C // 8, S, BN, BV // 8, 1, ROWS, WIDE)
            else:
                offsets, inside, _ = tile(t, block, N, C, S // 8, BN, BV // 8, 1, ROWS, WIDE)
            tl.store(mask_ptr + offsets, pack(y.to(tl.float32), BN, BV), mask=inside)


def normalise(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    out: torch.Tensor,
    mean: torch.Tensor | None,
    invstd: torch.Tensor | None,
    mask: torch.Tensor | None,
    source: str,
    momentum: float,
    eps: float,
    activation: str,
    activation_param: float,
    plan: Plan,
) -> None:
    """Fill out and mask with the statistics from ``source``, the kernel's MOMENTS."""
    # The kernel writes the mask where each program owns whole bytes of it.
    _, c, s = plan.sizes
    owns_bytes = (c if plan.constexprs["ROWS"] else s) % 8 == 0
    launch(
        batch_norm_normalise, (plan.programs(x),), x, residual, out, weight, bias, running_mean,
        running_var, mean, invstd, mask if owns_bytes else None, *plan.sizes, momentum, eps,
        activation_param, MOMENTS=source, ACT=activation, num_warps=plan.num_warps, **plan.constexprs,
    )  # fmt: skip
    if mask is not None and not owns_bytes:
        pack_mask(out, mask)
