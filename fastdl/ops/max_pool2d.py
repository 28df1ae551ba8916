"""max_pool2d: saves the winner's position within its window, one byte per output, and gathers in backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import backends, reference
from ._common import (
    check_tensors,
    complaint,
    empty,
    is_channels_last,
    needs_grad,
    pair,
    register,
    short_way,
    unsupported,
    wanted,
)

OP = "max_pool2d"
Pair = tuple[int, int]


def max_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
    return_indices: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    """``fastdl.functional.max_pool2d`` after its defaults."""
    if not return_indices:
        out = short_way(OP, input, kernel_size, stride, padding, dilation, ceil_mode)
        if out is not None:
            return out
    check_tensors(OP, input=input)
    kernel_size = pair(OP, "kernel_size", kernel_size)
    no_stride = stride is None or (isinstance(stride, (tuple, list)) and not stride)
    stride = kernel_size if no_stride else pair(OP, "stride", stride)
    padding, dilation = pair(OP, "padding", padding), pair(OP, "dilation", dilation)
    _check(input, kernel_size, stride, padding, dilation, ceil_mode)

    empty = input.numel() == 0
    backend = backends.choose(OP, input.device, input.dtype, unsupported(input), empty, (input,)).backend
    if backend == "reference":
        return reference.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)

    x = input if input.dim() == 4 else input.unsqueeze(0)
    differentiable = needs_grad(input)
    save = differentiable or return_indices
    args = (x, kernel_size, stride, padding, dilation, ceil_mode, save, backend)
    out, offsets = _MaxPool2d.apply(*args) if differentiable else forward_op(*args)
    out = out if input.dim() == 4 else out.squeeze(0)
    if not return_indices:
        return out
    indices = flat_indices(offsets, x.shape[3], kernel_size, stride, padding, dilation)
    return out, indices if input.dim() == 4 else indices.squeeze(0)


def output_size(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    """Windows along one axis; under ceil_mode the last one must start inside the input or left padding."""
    reach = size + 2 * padding - dilation * (kernel - 1) - 1
    windows = (reach + (stride - 1 if ceil_mode else 0)) // stride + 1
    if ceil_mode and (windows - 1) * stride >= size + padding:
        windows -= 1
    return windows


def flat_indices(
    offsets: Tensor, width: int, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    """torch's indices, h * width + w in the input plane, int64 [N, C, OH, OW], from positions in windows."""
    oh = torch.arange(offsets.shape[2], device=offsets.device).unsqueeze(1)
    ow = torch.arange(offsets.shape[3], device=offsets.device)
    cell = offsets.long()
    h = oh * stride[0] - padding[0] + cell // kernel_size[1] * dilation[0]
    w = ow * stride[1] - padding[1] + cell % kernel_size[1] * dilation[1]
    return h * width + w


def _check(
    input: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil_mode: bool
) -> None:
    if input.dim() not in (3, 4) or any(size == 0 for size in input.shape[input.dim() - 3 :]):
        shapes = "input of shape [N, C, H, W] or [C, H, W] with no empty dimension but N"
        raise RuntimeError(complaint(OP, shapes, list(input.shape)))
    for name, value in (("kernel_size", kernel_size), ("stride", stride), ("dilation", dilation)):
        if min(value) <= 0:
            raise RuntimeError(complaint(OP, f"{name} to be positive", value))
    for axis, pad in enumerate(padding):
        if not 0 <= pad <= kernel_size[axis] // 2:
            raise RuntimeError(
                complaint(OP, f"padding between 0 and half of kernel_size {kernel_size}", padding)
            )
    for axis in (0, 1):
        size = input.shape[input.dim() - 2 + axis]
        windows = output_size(size, kernel_size[axis], stride[axis], padding[axis], dilation[axis], ceil_mode)
        if windows < 1:
            raise RuntimeError(
                complaint(
                    OP,
                    f"input of at least one window of {kernel_size} (dilation {dilation}, padding {padding})",
                    list(input.shape),
                )
            )


class Forward(NamedTuple):
    """The arguments of max_pool2d_forward."""

    x: Tensor  # [N, C, H, W]
    kernel_size: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    ceil_mode: bool
    save: bool  # whether offsets are wanted
    backend: str


class Backward(NamedTuple):
    """The arguments of max_pool2d_backward."""

    grad_out: Tensor  # [N, C, OH, OW]
    offsets: Tensor  # [N, C, OH, OW]
    input_size: tuple[int, ...]
    channels_last: bool
    kernel_size: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    backend: str


def _window(a: Forward | Backward) -> dict[str, Pair]:
    return {
        "kernel_size": tuple(a.kernel_size),
        "stride": tuple(a.stride),
        "padding": tuple(a.padding),
        "dilation": tuple(a.dilation),
    }


def _allocate_forward(a: Forward) -> tuple[Tensor, Tensor]:
    """out [N, C, OH, OW]; offsets of the same layout if saved: the winner's kh * KW + kw."""
    spatial = (
        output_size(a.x.shape[2 + i], a.kernel_size[i], a.stride[i], a.padding[i], a.dilation[i], a.ceil_mode)
        for i in (0, 1)
    )
    size, channels_last = (a.x.shape[0], a.x.shape[1], *spatial), is_channels_last(a.x)
    cells = a.kernel_size[0] * a.kernel_size[1]
    dtype = torch.uint8 if cells <= 256 else torch.int16 if cells <= 2**15 else torch.int32
    out = empty(a.x, size, channels_last)
    return out, empty(a.x, size, channels_last, dtype) if a.save else a.x.new_empty(0, dtype=dtype)


def _fill_forward(outputs: tuple[Tensor, Tensor], a: Forward) -> None:
    out, offsets = outputs
    backends.kernel(a.backend, OP).forward(a.x, out, wanted(offsets, a.save), **_window(a))


def _allocate_backward(a: Backward) -> Tensor:
    return empty(a.grad_out, a.input_size, a.channels_last)


def _fill_backward(grad_x: Tensor, a: Backward) -> None:
    backends.kernel(a.backend, OP).backward(a.grad_out, a.offsets, grad_x, **_window(a))


forward_op = register(
    "max_pool2d_forward",
    "(Tensor x, int[2] kernel_size, int[2] stride, int[2] padding, int[2] dilation, bool ceil_mode, "
    "bool save, str backend) -> (Tensor, Tensor)",
    Forward,
    _allocate_forward,
    _fill_forward,
)
backward_op = register(
    "max_pool2d_backward",
    "(Tensor grad_out, Tensor offsets, SymInt[] input_size, bool channels_last, int[2] kernel_size, "
    "int[2] stride, int[2] padding, int[2] dilation, str backend) -> Tensor",
    Backward,
    _allocate_backward,
    _fill_backward,
)


class _MaxPool2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor]:
        a = Forward(*args)
        out, offsets = forward_op(*args)
        ctx.save_for_backward(offsets)
        ctx.mark_non_differentiable(offsets)
        ctx.size, ctx.channels_last = a.x.shape, is_channels_last(a.x)
        ctx.window, ctx.backend = (a.kernel_size, a.stride, a.padding, a.dilation), a.backend
        return out, offsets

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (offsets,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            (grad_x,) = differentiable_backward(grad_out, offsets, ctx.size, *ctx.window)
        else:
            grad_x = backward_op(grad_out, offsets, ctx.size, ctx.channels_last, *ctx.window, ctx.backend)
        return grad_x, *[None] * (len(Forward._fields) - 1)


def differentiable_backward(
    grad_out: Tensor, offsets: Tensor, size: Sequence[int], *window: Pair
) -> list[Tensor | None]:
    """The gradient of x [*size] by plain torch, so that it can be differentiated."""
    return [reference.max_pool2d_backward(grad_out, flat_indices(offsets, size[3], *window), size)]
