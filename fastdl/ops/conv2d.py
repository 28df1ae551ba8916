"""conv2d with bias and activation in the epilogue.

Saved for backward: input and weight, and the output if there is an activation (its derivative is told from
the output, so no mask and no pre-activation is kept).
"""

from __future__ import annotations

import numbers
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import activations, backends, native, reference
from ..native import conv2d as composed
from ._common import (
    autocast_dtype,
    check_tensors,
    complaint,
    differentiate,
    empty,
    empty_if,
    is_channels_last,
    needs_grad,
    pair,
    register,
    short_way,
    unsupported,
    wanted,
)

OP = "conv2d"
Pair = tuple[int, int]


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    activation: str | None,
    activation_param: float | None,
) -> Tensor:
    """``fastdl.functional.conv2d`` after its defaults."""
    name, param = activations.resolve(OP, activation, activation_param)
    window = (stride, padding, dilation, groups)
    out = short_way(OP, input, weight, bias, *window, name, param, backends.automatic())
    if out is not None:
        return out
    check_tensors(OP, ("bias",), input=input, weight=weight, bias=bias)
    stride, dilation = pair(OP, "stride", stride), pair(OP, "dilation", dilation)
    groups = int(groups) if isinstance(groups, numbers.Integral) else groups  # NumPy's
    low = autocast_dtype(input)
    if low is not None:  # torch's policy for convolutions: the lower precision, float64 excepted
        input, weight, bias = (
            t.to(low) if t is not None and t.is_floating_point() and t.dtype != torch.float64 else t
            for t in (input, weight, bias)
        )
    _check(input, weight, bias, stride, dilation, groups)
    before, after = _padding(input, weight, stride, padding, dilation)

    empty = input.numel() == 0 or weight.numel() == 0
    why_not = _unsupported(input, weight, bias, stride, groups)
    if why_not is None and not empty and input.device.type == "cpu" and backends.automatic():
        why_not = _as_fast_without(input, weight, stride, before, dilation, groups)
    backend = backends.choose(OP, input.device, input.dtype, why_not, empty, (input, weight)).backend
    if before != after:  # padding="same" with an even reach: torch pads one more on the far side
        input = F.pad(input, (0, after[1] - before[1], 0, after[0] - before[0]))
    if backend == "reference":
        return reference.conv2d(input, weight, bias, stride, before, dilation, groups, name, param)

    x = input if input.dim() == 4 else input.unsqueeze(0)
    bias = None if bias is None else bias.contiguous()
    args = (x, weight, bias, stride, before, dilation, groups, name, param, backend)
    out = _Conv2d.apply(*args) if needs_grad(input, weight, bias) else forward_op(*args)
    return out if input.dim() == 4 else out.squeeze(0)


def _check(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, dilation: Pair, groups: int
) -> None:
    if input.dim() not in (3, 4):
        raise RuntimeError(complaint(OP, "input of shape [N, C, H, W] or [C, H, W]", list(input.shape)))
    if weight.dim() != 4:
        raise RuntimeError(complaint(OP, "weight of shape [K, C/groups, R, S]", list(weight.shape)))
    if not isinstance(groups, int):
        raise TypeError(complaint(OP, "groups to be an int", repr(groups)))
    if groups <= 0 or weight.shape[0] % groups or weight.shape[0] < groups:
        raise RuntimeError(
            complaint(OP, f"groups that divide the {weight.shape[0]} output channels of weight", groups)
        )
    channels = input.shape[input.dim() - 3]
    if channels != weight.shape[1] * groups:
        raise RuntimeError(
            complaint(
                OP,
                f"input of {weight.shape[1] * groups} channels "
                f"(weight {list(weight.shape)}, groups={groups})",
                f"{channels} in {list(input.shape)}",
            )
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise RuntimeError(complaint(OP, f"bias of shape [{weight.shape[0]}]", list(bias.shape)))
    for argument, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype != input.dtype:
            raise RuntimeError(complaint(OP, f"{argument} of the input's dtype {input.dtype}", tensor.dtype))
    for argument, value in (("stride", stride), ("dilation", dilation)):
        if min(value) <= 0:
            raise RuntimeError(complaint(OP, f"{argument} to be positive", value))


def _padding(input: Tensor, weight: Tensor, stride: Pair, padding: Any, dilation: Pair) -> tuple[Pair, Pair]:
    """Zeros before and after each axis of the image, from an int, a pair, "same" or "valid"."""
    reach = tuple(dilation[i] * (weight.shape[2 + i] - 1) for i in (0, 1))
    if isinstance(padding, str):
        if padding not in ("same", "valid"):
            raise RuntimeError(
                complaint(OP, "padding to be 'same', 'valid', an int or a pair", repr(padding))
            )
        if padding == "valid":
            before = after = (0, 0)
        else:
            if stride != (1, 1):
                raise RuntimeError(complaint(OP, "stride 1 with padding='same'", stride))
            before = (reach[0] // 2, reach[1] // 2)
            after = (reach[0] - before[0], reach[1] - before[1])
    else:
        before = after = pair(OP, "padding", padding)
        if min(before) < 0:
            raise RuntimeError(complaint(OP, "padding to be non-negative", before))
    for axis in (0, 1):
        size = input.shape[input.dim() - 2 + axis]
        if size + before[axis] + after[axis] < reach[axis] + 1:
            raise RuntimeError(
                complaint(
                    OP,
                    f"a padded input of at least the kernel's {[r + 1 for r in reach]}",
                    f"input {list(input.shape)} with padding {before}",
                )
            )
    return before, after


def _unsupported(input: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, groups: int) -> str | None:
    if groups > 65535 or stride[0] * stride[1] > 65535:
        return "more groups or a wider stride than a grid has room for"
    return unsupported(input, weight, bias)


def _as_fast_without(
    input: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> str | None:
    """Why `auto` leaves a convolution of CPU tensors to torch; None where a kernel of ours is faster."""
    if torch.compiler.is_compiling():
        return "torch.compile fuses what stands behind oneDNN's convolution"
    library, reason = native.library("cpu")
    if library is None:
        return reason
    x = input if input.dim() == 4 else input.unsqueeze(0)
    last = is_channels_last(x) or is_channels_last(weight)
    window = (stride, padding, dilation, groups)
    if x.dtype != torch.float32 or not composed.direct(library, x, weight, *window, last):
        return "oneDNN's convolution is as fast"
    return None


class Forward(NamedTuple):
    """The arguments of conv2d_forward."""

    x: Tensor  # [N, C, H, W]
    weight: Tensor  # [K, C / groups, R, S]
    bias: Tensor | None  # [K]
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    activation: str
    activation_param: float
    backend: str


class Backward(NamedTuple):
    """The arguments of conv2d_backward."""

    grad_out: Tensor  # [N, K, OH, OW]
    x: Tensor  # [N, C, H, W]
    weight: Tensor  # [K, C / groups, R, S]
    out: Tensor | None  # [N, K, OH, OW], saved if there is an activation
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    activation: str
    activation_param: float
    output_mask: list[bool]  # which of grad_x, grad_weight, grad_bias are wanted
    backend: str


def _options(a: Forward | Backward) -> dict[str, Any]:
    return {
        "stride": tuple(a.stride),
        "padding": tuple(a.padding),
        "dilation": tuple(a.dilation),
        "groups": a.groups,
        "activation": a.activation,
        "activation_param": a.activation_param,
        # whether torch's own convolutions may round float32 operands to TF32; AMD's gfx90a has none
        "allow_tf32": torch.backends.cudnn.conv.fp32_precision == "tf32" and torch.version.hip is None,
    }


def _is_channels_last(a: Forward | Backward) -> bool:
    return is_channels_last(a.x) or is_channels_last(a.weight)


def _allocate_forward(a: Forward) -> Tensor:
    """out [N, K, OH, OW], channels_last if x or weight is."""
    spatial = (
        (a.x.shape[2 + i] + 2 * a.padding[i] - a.dilation[i] * (a.weight.shape[2 + i] - 1) - 1) // a.stride[i]
        + 1
        for i in (0, 1)
    )
    return empty(a.x, (a.x.shape[0], a.weight.shape[0], *spatial), _is_channels_last(a))


def _fill_forward(out: Tensor, a: Forward) -> None:
    backends.kernel(a.backend, OP).forward(a.x, a.weight, a.bias, out, **_options(a))


def _allocate_backward(a: Backward) -> tuple[Tensor, Tensor, Tensor]:
    """grad_x [N, C, H, W], channels_last as the output was; grad_weight like weight; grad_bias [K]."""
    return (
        empty(a.x, a.x.shape, _is_channels_last(a)) if a.output_mask[0] else a.x.new_empty(0),
        empty_if(a.output_mask[1], a.weight, a.x),
        a.x.new_empty(a.weight.shape[0] if a.output_mask[2] else 0),
    )


def _fill_backward(outputs: tuple[Tensor, Tensor, Tensor], a: Backward) -> None:
    backends.kernel(a.backend, OP).backward(
        a.grad_out, a.x, a.weight, a.out, *map(wanted, outputs, a.output_mask), **_options(a)
    )


forward_op = register(
    "conv2d_forward",
    "(Tensor x, Tensor weight, Tensor? bias, int[2] stride, int[2] padding, int[2] dilation, int groups, "
    "str activation, float activation_param, str backend) -> Tensor",
    Forward,
    _allocate_forward,
    _fill_forward,
)
backward_op = register(
    "conv2d_backward",
    "(Tensor grad_out, Tensor x, Tensor weight, Tensor? out, int[2] stride, int[2] padding, int[2] dilation, "
    "int groups, str activation, float activation_param, bool[] output_mask, str backend) "
    "-> (Tensor, Tensor, Tensor)",
    Backward,
    _allocate_backward,
    _fill_backward,
)


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        a = Forward(*args)
        out = forward_op(*args)
        ctx.save_for_backward(a.x, a.weight, a.bias, out if a.activation else None)
        ctx.window = (a.stride, a.padding, a.dilation, a.groups)
        ctx.activation, ctx.backend = (a.activation, a.activation_param), a.backend
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, out = ctx.saved_tensors
        needs = [ctx.needs_input_grad[i] for i in range(3)]
        if torch.is_grad_enabled():
            grads = differentiable_backward(grad_out, x, weight, bias, *ctx.window, *ctx.activation)
        else:
            found = backward_op(grad_out, x, weight, out, *ctx.window, *ctx.activation, needs, ctx.backend)
            grads = [*map(wanted, found, needs)]
        return *grads, *[None] * (len(Forward._fields) - 3)


def differentiable_backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any
) -> list[Tensor | None]:
    """The gradients of x, weight and bias by plain torch, so that they can be differentiated.

    ``options``: stride, padding, dilation, groups, activation, activation_param.
    """
    with reference.no_autocast(x):
        y = reference.conv2d(x, weight, bias, *options)
    return differentiate(y, [x, weight, bias], grad_out)
