"""affine_grid_sample: affine_grid and grid_sample in one, the grid never in memory.

Saved for backward: the input and theta. An image that needs no gradient costs none: only theta's is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import backends, reference
from . import _sampling
from ._common import (
    check_tensors,
    complaint,
    differentiate,
    needs_grad,
    register,
    short_way,
    wanted,
)

OP = "affine_grid_sample"


def affine_grid_sample(
    input: Tensor,
    theta: Tensor,
    size: Any,
    mode: str,
    padding_mode: str,
    align_corners: bool | None,
) -> Tensor:
    """``fastdl.functional.affine_grid_sample`` after its defaults."""
    if isinstance(size, (tuple, list)) and len(size) == 4:
        out = short_way(OP, input, theta, *size, mode, padding_mode, bool(align_corners))
        if out is not None:
            return out
    check_tensors(OP, input=input, theta=theta)
    align_corners = bool(align_corners)
    _check(input, theta, size, mode, padding_mode)

    empty = input.numel() == 0 or theta.numel() == 0
    why_not = _unsupported(input, theta, mode)
    backend = backends.choose(OP, input.device, input.dtype, why_not, empty, (input,)).backend
    dtype = _sampling.output_dtype(input)
    if backend == "reference":
        return reference.affine_grid_sample(input.to(dtype), theta, size, mode, padding_mode, align_corners)

    args = (input, theta, [*size[2:]], mode, padding_mode, align_corners, dtype, backend)
    return _AffineGridSample.apply(*args) if needs_grad(input, theta) else forward_op(*args)


def _check(input: Tensor, theta: Tensor, size: Any, mode: str, padding_mode: str) -> None:
    _sampling.check_modes(OP, mode, padding_mode)
    if not theta.is_floating_point():
        raise ValueError(complaint(OP, "theta of a floating-point dtype", theta.dtype))
    if not isinstance(size, (tuple, list)) or len(size) not in (4, 5):
        raise NotImplementedError(complaint(OP, "size to be (N, C, H, W) or (N, C, D, H, W)", size))
    spatial = len(size) - 2
    if theta.dim() != 3 or theta.shape[1:] != (spatial, spatial + 1):
        expected = f"theta of shape [N, {spatial}, {spatial + 1}] for size {tuple(size)}"
        raise ValueError(complaint(OP, expected, list(theta.shape)))
    _sampling.check_sizes(OP, input, "theta", theta.shape[0], size)


def _unsupported(input: Tensor, theta: Tensor, mode: str) -> str | None:
    if theta.dtype not in backends.KERNEL_DTYPES:
        return f"theta in {str(theta.dtype).removeprefix('torch.')} has no kernel"
    return _sampling.unsupported(mode, input, theta)


class Forward(NamedTuple):
    """The arguments of affine_grid_sample_forward."""

    x: Tensor  # [N or 1, C, H, W]
    theta: Tensor  # [N, 2, 3]
    size: list[int]  # [OH, OW]
    mode: str
    padding_mode: str
    align_corners: bool
    dtype: torch.dtype  # of the output
    backend: str


class Backward(NamedTuple):
    """The arguments of affine_grid_sample_backward."""

    grad_out: Tensor  # [N, C, OH, OW]
    x: Tensor  # [N or 1, C, H, W]
    theta: Tensor  # [N, 2, 3]
    mode: str
    padding_mode: str
    align_corners: bool
    output_mask: list[bool]  # which of grad_x, grad_theta are wanted
    backend: str


def _options(a: Forward | Backward) -> dict[str, Any]:
    return {"mode": a.mode, "padding_mode": a.padding_mode, "align_corners": a.align_corners}


def _allocate_forward(a: Forward) -> Tensor:
    """out [N, C, OH, OW], contiguous whatever x is, as grid_sample's."""
    return a.x.new_empty((a.theta.shape[0], a.x.shape[1], *a.size), dtype=a.dtype)


def _fill_forward(out: Tensor, a: Forward) -> None:
    backends.kernel(a.backend, OP).forward(a.x, a.theta, out, **_options(a))


def _allocate_backward(a: Backward) -> tuple[Tensor, Tensor]:
    """grad_x of x's shape and grad_theta [N, 2, 3], both contiguous."""
    return (
        a.x.new_empty(a.x.shape if a.output_mask[0] else 0),
        a.theta.new_empty(a.theta.shape if a.output_mask[1] else 0),
    )


def _fill_backward(outputs: tuple[Tensor, Tensor], a: Backward) -> None:
    backends.kernel(a.backend, OP).backward(
        a.grad_out, a.x, a.theta, *map(wanted, outputs, a.output_mask), **_options(a)
    )


forward_op = register(
    "affine_grid_sample_forward",
    "(Tensor x, Tensor theta, SymInt[] size, str mode, str padding_mode, bool align_corners, "
    "ScalarType dtype, str backend) -> Tensor",
    Forward,
    _allocate_forward,
    _fill_forward,
)
backward_op = register(
    "affine_grid_sample_backward",
    "(Tensor grad_out, Tensor x, Tensor theta, str mode, str padding_mode, bool align_corners, "
    "bool[] output_mask, str backend) -> (Tensor, Tensor)",
    Backward,
    _allocate_backward,
    _fill_backward,
)


class _AffineGridSample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        a = Forward(*args)
        ctx.save_for_backward(a.x, a.theta)
        ctx.options = (a.mode, a.padding_mode, a.align_corners)
        ctx.size, ctx.backend = a.size, a.backend
        return forward_op(*args)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        x, theta = ctx.saved_tensors
        needs = [ctx.needs_input_grad[i] for i in range(2)]
        if torch.is_grad_enabled():
            grads = differentiable_backward(grad_out, x, theta, ctx.size, *ctx.options)
        else:
            found = backward_op(grad_out, x, theta, *ctx.options, needs, ctx.backend)
            grads = [*map(wanted, found, needs)]
        return *grads, *[None] * (len(Forward._fields) - 2)


def differentiable_backward(
    grad_out: Tensor,
    x: Tensor,
    theta: Tensor,
    size: Sequence[int],
    mode: str,
    padding_mode: str,
    align_corners: bool,
) -> list[Tensor | None]:
    """The gradients of x and theta by plain torch, in the output's dtype: they can be differentiated."""
    whole = (theta.shape[0], x.shape[1], *size)
    with reference.no_autocast(x):
        y = reference.affine_grid_sample(
            x.to(grad_out.dtype), theta, whole, mode, padding_mode, align_corners
        )
    return differentiate(y, [x, theta], grad_out)
