"""What forward and backward agree on to the last bit: the pre-activation and the mask of the relu behind it.

Backward takes the activation's derivative from that mask, from the output, or from the pre-activation all
over again.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._runtime import cdiv, index, launch, narrow, wide
from .activation import activation_grad, activation_grad_at

#: Elements of which one program packs the mask.
BLOCK = 4096

# ----------------------------------------------------------------------------------- device helpers


@triton.jit
def preactivation(x, mean, scale, bias):
    """(x - mean) * scale + bias with one fused rounding, whatever surrounds it."""
    return tl.fma(x - mean, scale, bias)


@triton.jit
def pack(y, BN: tl.constexpr, BV: tl.constexpr):
    """Bytes [BN, BV / 8] of a tile of relu's output; bit j of byte i is set unless y[8 * i + j] <= 0."""
    bits = tl.where(y <= 0.0, 0, 1).reshape(BN, BV // 8, 8)
    return tl.sum(bits << tl.arange(0, 8)[None, None, :], 2).to(tl.uint8)


@triton.jit
def incoming(
    grad_out_ptr, out_ptr, mask_ptr, offsets, inside, x, mean, scale, bias, param, ACT: tl.constexpr,
    VEC: tl.constexpr,
):  # fmt: skip
    """grad_out times act' of a tile, 0 outside: from the mask, from out, or from x all over again."""
    grad = tl.load(grad_out_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    if ACT != "":
        if mask_ptr is not None:
            byte = offsets >> 3  # one byte for eight neighbours, which spares their addresses
            if VEC >= 8:
                byte = tl.max_constancy(byte, [1, 8])
            bits = tl.load(mask_ptr + byte, mask=inside, other=0).to(tl.int32)
            grad = tl.where((bits >> (offsets & 7).to(tl.int32)) & 1 != 0, grad, 0.0)
        else:
            if out_ptr is not None:
                y = tl.load(out_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
                grad = activation_grad(grad, y, param, ACT)
            else:
                z = preactivation(x, mean, scale, bias)
                if ACT == "relu" or ACT == "leaky_relu" or ACT == "elu":
                    # Which side of the kink: that of z in x's dtype, as mask, out and torch have it.
                    z = narrow(z, grad_out_ptr).to(tl.float32)
                grad = activation_grad_at(grad, z, param, ACT)
            grad = tl.where(inside, grad, 0.0)
    return grad


# ------------------------------------------------------------------------------------------- kernel


@triton.jit
def batch_norm_pack_mask(
    out_ptr,  # [numel] any float dtype
    mask_ptr,  # [ceil(numel / 8)] uint8
    numel, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The mask from relu's output, for layouts in which a byte straddles two channels' rows."""
    byte = index(tl.program_id(0), WIDE) * (BLOCK // 8) + tl.arange(0, BLOCK // 8)[None, :]
    i = index(tl.program_id(0), WIDE) * BLOCK + tl.arange(0, BLOCK)[None, :]
    y = tl.load(out_ptr + i, mask=i < numel, other=0.0).to(tl.float32)
    tl.store(mask_ptr + byte, pack(y, 1, BLOCK), mask=byte * 8 < numel)


# ----------------------------------------------------------------------------------------- launcher


def pack_mask(out: torch.Tensor, mask: torch.Tensor) -> None:
    """Fill mask [ceil(numel / 8)] uint8 from relu's dense output."""
    grid = (cdiv(out.numel(), BLOCK),)
    launch(batch_norm_pack_mask, grid, out, mask, out.numel(), BLOCK=BLOCK, WIDE=wide(out))
