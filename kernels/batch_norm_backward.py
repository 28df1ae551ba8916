"""The gradients: two sums per channel, which are those of bias and weight, then the elementwise pass.

Programs that see their channels whole do both in one launch; splits of a channel write partials, which a
second launch adds up in index order, and a third one reads.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._runtime import launch, narrow
from .batch_norm_activation import incoming
from .batch_norm_tiles import Plan, combination, over_channel, per_channel, place, tile, tile_count

# ----------------------------------------------------------------------------------- device helpers


@triton.jit
def _gradient_sums(
    grad_out_ptr, x_ptr, out_ptr, mask_ptr, block, first, step, mean, scale, bias, param, N, C, S,
    ACT: tl.constexpr, BN: tl.constexpr, BV: tl.constexpr, VEC: tl.constexpr, ROWS: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """sum dz and sum dz * (x - mean) over tiles first, first + step, ...; dz = grad_out * act'."""
    total = tl.zeros([BN, BV], tl.float32)
    product = tl.zeros([BN, BV], tl.float32)
    for t in range(first, tile_count(N, S, BN, BV, ROWS), step):
        offsets, inside, _ = tile(t, block, N, C, S, BN, BV, VEC, ROWS, WIDE)
        x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        grad = incoming(
            grad_out_ptr, out_ptr, mask_ptr, offsets, inside, x, mean, scale, bias, param, ACT, VEC
        )
        total += grad
        product += tl.where(inside, grad * (x - mean), 0.0)
    return over_channel(total, ROWS), over_channel(product, ROWS)


@triton.jit
def _write_parameter_gradients(grad_weight_ptr, grad_bias_ptr, c, exists, total, product, invstd, N, S):
    """grad_weight = sum dz * xhat, grad_bias = sum dz; returns mean(dz) and mean(dz * xhat)."""
    product = product * invstd
    if grad_weight_ptr is not None:
        tl.store(grad_weight_ptr + c, narrow(product, grad_weight_ptr), mask=exists)
    if grad_bias_ptr is not None:
        tl.store(grad_bias_ptr + c, narrow(total, grad_bias_ptr), mask=exists)
    count = tl.cast(N, tl.float32) * S
    return tl.div_rn(total, count), tl.div_rn(product, count)


# ------------------------------------------------------------------------------------------ kernels


@triton.jit
def batch_norm_gradient_sums(
    grad_out_ptr, x_ptr, out_ptr,  # [N, C, S] one float dtype
    mask_ptr,  # [ceil(numel / 8)] uint8
    weight_ptr, bias_ptr,  # [C] any float dtype
    mean_ptr, invstd_ptr,  # [C] float32
    partials_ptr,  # [2, splits, C] float32: sum dz, sum dz * (x - mean)
    N, C, S, param,
    ACT: tl.constexpr,
    BN: tl.constexpr, BV: tl.constexpr, VEC: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The two sums of each split of each channel."""
    block, c, exists, split, splits = place(C, BV, ROWS)
    mean = per_channel(mean_ptr, c, exists, 0.0)
    scale = per_channel(weight_ptr, c, exists, 1.0) * per_channel(invstd_ptr, c, exists, 1.0)
    bias = per_channel(bias_ptr, c, exists, 0.0)
    total, product = _gradient_sums(
        grad_out_ptr, x_ptr, out_ptr, mask_ptr, block, split, splits, mean, scale, bias, param, N, C, S,
        ACT, BN, BV, VEC, ROWS, WIDE,
    )  # fmt: skip
    tl.store(partials_ptr + split * C + c, total, mask=exists)
    tl.store(partials_ptr + (splits + split) * C + c, product, mask=exists)


@triton.jit
def batch_norm_combine_gradients(
    partials_ptr,  # [2, splits, C] float32: sum dz, sum dz * (x - mean)
    invstd_ptr,  # [C] float32
    grad_weight_ptr, grad_bias_ptr,  # [C] any float dtype
    means_ptr,  # [2, C] float32: mean(dz), mean(dz * xhat)
    splits, N, C, S,
    SPLITS: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Adds the splits up, in a fixed order."""
    split = tl.arange(0, SPLITS)[:, None]
    c = tl.program_id(0) * BC + tl.arange(0, BC)[None, :]
    inside = (split < splits) & (c < C)
    totals = tl.load(partials_ptr + split * C + c, mask=inside, other=0.0)
    products = tl.load(partials_ptr + (splits + split) * C + c, mask=inside, other=0.0)
    total = tl.sum(totals, 0, keep_dims=True)
    product = tl.sum(products, 0, keep_dims=True)
    invstd = tl.load(invstd_ptr + c, mask=c < C, other=0.0)
    mean_dz, mean_product = _write_parameter_gradients(
        grad_weight_ptr, grad_bias_ptr, c, c < C, total, product, invstd, N, S
    )
    if means_ptr is not None:
        tl.store(means_ptr + c, mean_dz, mask=c < C)
        tl.store(means_ptr + C + c, mean_product, mask=c < C)


@triton.jit
def batch_norm_backward(
    grad_out_ptr, x_ptr, out_ptr,  # [N, C, S] one float dtype
    mask_ptr,  # [ceil(numel / 8)] uint8
    weight_ptr, bias_ptr,  # [C] any float dtype
    mean_ptr, invstd_ptr,  # [C] float32
    means_ptr,  # [2, C] float32: mean(dz), mean(dz * xhat)
    grad_x_ptr, grad_residual_ptr,  # [N, C, S] x's dtype
    grad_weight_ptr, grad_bias_ptr,  # [C] any float dtype
    N, C, S, param,
    MEANS: tl.constexpr, TRAINING: tl.constexpr, ACT: tl.constexpr,
    BN: tl.constexpr, BV: tl.constexpr, VEC: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """grad_x = (dz - mean(dz) - xhat * mean(dz * xhat)) * scale, or dz * scale with fixed statistics.

    dz = grad_out * act' is grad_residual, xhat = (x - mean) * invstd. MEANS: "compute" (this program sees
    its channels whole and writes grad_weight and grad_bias), "load", or "" where none is needed.
    """
    block, c, exists, first, step = place(C, BV, ROWS)
    mean = per_channel(mean_ptr, c, exists, 0.0)
    invstd = per_channel(invstd_ptr, c, exists, 1.0)
    scale = per_channel(weight_ptr, c, exists, 1.0) * invstd
    bias = per_channel(bias_ptr, c, exists, 0.0)
    tiles = tile_count(N, S, BN, BV, ROWS)
    if MEANS == "compute":
        total, product = _gradient_sums(
            grad_out_ptr, x_ptr, out_ptr, mask_ptr, block, first, step, mean, scale, bias, param, N, C, S,
            ACT, BN, BV, VEC, ROWS, WIDE,
        )  # fmt: skip
        mean_dz, mean_product = _write_parameter_gradients(
            grad_weight_ptr, grad_bias_ptr, c, exists, total, product, invstd, N, S
        )
    elif MEANS == "load":
        mean_dz = tl.load(means_ptr + c, mask=exists, other=0.0)
        mean_product = tl.load(means_ptr + C + c, mask=exists, other=0.0)
    if grad_x_ptr is not None or grad_residual_ptr is not None:
        for i in range(first, tiles, step):
            t = tiles - 1 - i  # backwards: what the sums read last is still in the cache
            offsets, inside, _ = tile(t, block, N, C, S, BN, BV, VEC, ROWS, WIDE)
            x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
            dz = incoming(
                grad_out_ptr, out_ptr, mask_ptr, offsets, inside, x, mean, scale, bias, param, ACT, VEC
            )
            if grad_residual_ptr is not None:
                tl.store(grad_residual_ptr + offsets, narrow(dz, grad_residual_ptr), mask=inside)
            if grad_x_ptr is not None:
                if TRAINING:
                    dz = dz - mean_dz - (x - mean) * invstd * mean_product
                tl.store(grad_x_ptr + offsets, narrow(dz * scale, grad_x_ptr), mask=inside)


# ---------------------------------------------------------------------------------------- launchers


#: What backward reads: grad_out, x, out, mask, weight, bias, mean, invstd, in the kernels' order.
Saved = tuple[torch.Tensor | None, ...]


def parameter_gradients(
    saved: Saved,
    grad_weight: torch.Tensor | None,
    grad_bias: torch.Tensor | None,
    means: torch.Tensor | None,
    activation: str,
    activation_param: float,
    plan: Plan,
) -> None:
    """Fill grad_weight and grad_bias [C], and means [2, C]: those of dz and of dz * xhat."""
    x, invstd = saved[1], saved[-1]
    splits, c = plan.splits(x), x.shape[1]
    partials = torch.empty(2, splits, c, dtype=torch.float32, device=x.device)
    launch(
        batch_norm_gradient_sums, (splits * plan.blocks,), *saved, partials, *plan.sizes,
        activation_param, ACT=activation, num_warps=plan.num_warps, **plan.constexprs,
    )  # fmt: skip
    grid, constexprs = combination(splits, c)
    launch(
        batch_norm_combine_gradients, grid, partials, invstd, grad_weight, grad_bias, means, splits,
        *plan.sizes, **constexprs,
    )  # fmt: skip


def gradients(
    saved: Saved,
    means: torch.Tensor | None,
    grad_x: torch.Tensor | None,
    grad_residual: torch.Tensor | None,
    grad_weight: torch.Tensor | None,
    grad_bias: torch.Tensor | None,
    source: str,
    training: bool,
    activation: str,
    activation_param: float,
    plan: Plan,
) -> None:
    """Fill grad_x and grad_residual with the means from ``source``, the kernel's MEANS."""
    launch(
        batch_norm_backward, (plan.programs(saved[1]),), *saved, means, grad_x, grad_residual, grad_weight,
        grad_bias, *plan.sizes, activation_param, MEANS=source, TRAINING=training, ACT=activation,
        num_warps=plan.num_warps, **plan.constexprs,
    )  # fmt: skip
