"""batch_norm with residual and activation fused behind it.

Saved for backward: the input, mean and invstd [C] and, for a residual, one bit per element (relu) or the
output (other activations). Without a residual the pre-activation is recomputed, so nothing else is saved.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import activations, backends, reference
from ._common import (
    check_tensors,
    complaint,
    differentiate,
    empty_if,
    memory_format,
    needs_grad,
    register,
    short_way,
    unsupported,
    wanted,
)

OP = "batch_norm"


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    residual: Tensor | None,
    activation: str | None,
    activation_param: float | None,
) -> Tensor:
    """``fastdl.functional.batch_norm`` after its defaults."""
    name, param = activations.resolve(OP, activation, activation_param)
    statistics = (running_mean, running_var)
    out = short_way(OP, input, *statistics, weight, bias, training, momentum, eps, residual, name, param)
    if out is not None:
        return out
    check_tensors(
        OP,
        ("running_mean", "running_var", "weight", "bias", "residual"),
        input=input,
        running_mean=running_mean,
        running_var=running_var,
        weight=weight,
        bias=bias,
        residual=residual,
    )
    _check(input, running_mean, running_var, weight, bias, training, momentum, eps)

    empty = input.numel() == 0
    backend = backends.choose(
        OP,
        input.device,
        input.dtype,
        _unsupported(input, running_mean, running_var, weight, bias, training, residual),
        empty,
        (input,),
    ).backend
    if backend == "reference":
        return reference.batch_norm(
            input, running_mean, running_var, weight, bias, training, momentum, eps, residual, name, param
        )

    format = memory_format(input)
    x = input.contiguous(memory_format=format)
    residual = None if residual is None else residual.contiguous(memory_format=format)
    weight, bias, running_mean, running_var = (
        None if t is None else t.contiguous() for t in (weight, bias, running_mean, running_var)
    )
    save = needs_grad(input, weight, bias, residual)
    statistics = (running_mean, running_var, training, momentum, eps)
    args = (x, weight, bias, residual, *statistics, name, param, save, backend)
    return _BatchNorm.apply(*args) if save else forward_op(*args)[0]


def _check(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> None:
    if input.dim() < 2:
        # torch looks up the channel axis before it looks at anything else
        error = IndexError if training else RuntimeError
        raise error(complaint(OP, "input of shape [N, C, ...]", list(input.shape)))
    if not isinstance(momentum, (int, float)):
        raise TypeError(complaint(OP, "momentum to be a float", repr(momentum)))
    if eps < 0:
        raise ValueError(complaint(OP, "eps to be non-negative", eps))
    if training and eps == 0:
        raise ValueError(complaint(OP, "eps to be positive when training", eps))
    channels = input.shape[1]
    if training and input.shape[0] * math.prod(input.shape[2:]) == 1:
        raise ValueError(
            complaint(
                OP, "more than 1 value per channel when training", f"input of shape {list(input.shape)}"
            )
        )
    if training and (running_mean is None) != (running_var is None):
        raise ValueError(complaint(OP, "both running_mean and running_var or neither", "one of them"))
    if not training and (running_mean is None or running_var is None):
        raise RuntimeError(complaint(OP, "running_mean and running_var in evaluation mode", "None"))
    per_channel = {"running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias}
    for argument, tensor in per_channel.items():
        if tensor is not None and tensor.numel() != channels:
            raise RuntimeError(
                complaint(OP, f"{argument} of shape [{channels}], one per channel", list(tensor.shape))
            )
    for argument in ("running_mean", "running_var"):
        tensor = per_channel[argument]
        if tensor is not None and tensor.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(complaint(OP, f"{argument} that requires no gradient", "one that does"))


def _unsupported(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    residual: Tensor | None,
) -> str | None:
    if input.dim() > 5:
        return f"{input.dim()}-D input has no kernel"
    if residual is not None and (residual.shape != input.shape or residual.dtype != input.dtype):
        return "residual of another shape or dtype than the input"
    for tensor in (running_mean, running_var, weight, bias):
        if tensor is None:
            continue
        if tensor.dtype not in (torch.float32, input.dtype):
            return "parameters neither in float32 nor in the dtype of the input"
        if tensor.dim() != 1:
            return "parameters that are not vectors"
    if training and not all(t is None or t.is_contiguous() for t in (running_mean, running_var)):
        return "running statistics that are not contiguous, updated in place"
    return unsupported(input, residual)


class Forward(NamedTuple):
    """The arguments of batch_norm_forward; all tensors but [C] ones are dense with x's strides."""

    x: Tensor  # [N, C, ...]
    weight: Tensor | None  # [C]
    bias: Tensor | None  # [C]
    residual: Tensor | None  # [N, C, ...]
    running_mean: Tensor | None  # [C]
    running_var: Tensor | None  # [C]
    training: bool
    momentum: float
    eps: float
    activation: str
    activation_param: float
    save: bool  # whether a backward will follow
    backend: str


class Backward(NamedTuple):
    """The arguments of batch_norm_backward."""

    grad_out: Tensor  # [N, C, ...]
    x: Tensor  # [N, C, ...]
    weight: Tensor | None  # [C]
    bias: Tensor | None  # [C]
    out: Tensor | None  # [N, C, ...]
    mean: Tensor  # [C]
    invstd: Tensor  # [C]
    mask: Tensor | None  # [numel / 8]
    training: bool
    activation: str
    activation_param: float
    output_mask: list[bool]  # which of grad_x, grad_weight, grad_bias, grad_residual are wanted
    backend: str


def _allocate_forward(a: Forward) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """out like x; mean and invstd [C] float32; mask: one bit per element of x in memory order."""
    channels = a.x.shape[1] if a.training or a.save else 0
    bits = (a.x.numel() + 7) // 8 if a.save and _saves_mask(a) else 0
    return (
        torch.empty_like(a.x),
        a.x.new_empty(channels, dtype=torch.float32),
        a.x.new_empty(channels, dtype=torch.float32),
        a.x.new_empty(bits, dtype=torch.uint8),
    )


def _fill_forward(outputs: tuple[Tensor, Tensor, Tensor, Tensor], a: Forward) -> None:
    out, mean, invstd, mask = outputs
    backends.kernel(a.backend, OP).forward(
        a.x,
        a.weight,
        a.bias,
        a.residual,
        a.running_mean,
        a.running_var,
        out,
        wanted(mean, a.training or a.save),
        wanted(invstd, a.training or a.save),
        wanted(mask, a.save and _saves_mask(a)),
        training=a.training,
        momentum=a.momentum,
        eps=a.eps,
        activation=a.activation,
        activation_param=a.activation_param,
    )


def _saves_mask(a: Forward) -> bool:
    return a.residual is not None and a.activation == "relu"


def _saves_out(a: Forward) -> bool:
    return a.residual is not None and a.activation not in ("", "relu")


def _allocate_backward(a: Backward) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """grad_x and grad_residual like x, grad_weight like weight, grad_bias like bias."""
    like = (a.x, a.weight, a.bias, a.x)
    return tuple(empty_if(flag, t, a.x) for flag, t in zip(a.output_mask, like, strict=True))


def _fill_backward(outputs: tuple[Tensor, Tensor, Tensor, Tensor], a: Backward) -> None:
    backends.kernel(a.backend, OP).backward(
        *a[: Backward._fields.index("training")],
        *map(wanted, outputs, a.output_mask),
        training=a.training,
        activation=a.activation,
        activation_param=a.activation_param,
    )


forward_op = register(
    "batch_norm_forward",
    "(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, Tensor(a!)? running_mean, "
    "Tensor(b!)? running_var, bool training, float momentum, float eps, str activation, "
    "float activation_param, bool save, str backend) -> (Tensor, Tensor, Tensor, Tensor)",
    Forward,
    _allocate_forward,
    _fill_forward,
)
backward_op = register(
    "batch_norm_backward",
    "(Tensor grad_out, Tensor x, Tensor? weight, Tensor? bias, Tensor? out, Tensor mean, Tensor invstd, "
    "Tensor? mask, bool training, str activation, float activation_param, bool[] output_mask, str backend) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    Backward,
    _allocate_backward,
    _fill_backward,
)


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        a = Forward(*args)
        out, mean, invstd, mask = forward_op(*args)
        # the residual itself is not kept: backward goes through the activation by the mask or the output
        saved_out, saved_mask = wanted(out, _saves_out(a)), wanted(mask, _saves_mask(a))
        ctx.save_for_backward(a.x, a.weight, a.bias, saved_out, mean, invstd, saved_mask)
        ctx.training, ctx.eps, ctx.has_residual = a.training, a.eps, a.residual is not None
        ctx.activation, ctx.backend = (a.activation, a.activation_param), a.backend
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        needs = [ctx.needs_input_grad[i] for i in range(4)]
        if torch.is_grad_enabled():
            grads = differentiable_backward(
                grad_out, *saved, ctx.training, ctx.eps, *ctx.activation, ctx.has_residual
            )
        else:
            grad_out = grad_out.contiguous(memory_format=memory_format(saved[0]))
            # an addition with no activation behind it hands its gradient on: no kernel copies it
            passed_on = needs[3] and not ctx.activation[0]
            flags = [*needs[:3], needs[3] and not passed_on]
            found = backward_op(grad_out, *saved, ctx.training, *ctx.activation, flags, ctx.backend)
            grads = [*map(wanted, found, flags)]
            if passed_on:
                grads[3] = grad_out
        return *grads, *[None] * (len(Forward._fields) - 4)


def differentiable_backward(
    grad_out: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    out: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
    mask: Tensor | None,
    training: bool,
    eps: float,
    activation: str,
    param: float,
    has_residual: bool,
) -> list[Tensor | None]:
    """The gradients of x, weight, bias and residual by plain torch, so that they can be differentiated."""
    if has_residual:
        # the residual itself was not saved: go through the activation by what was
        if mask is not None:
            grad_out = grad_out * _unpack(mask, x)
        elif out is not None:
            grad_out = grad_out * activations.ACTIVATIONS[activation].derivative(out, param)
        activation = ""
    with reference.no_autocast(x):
        if training:
            y = reference.batch_norm(x, None, None, weight, bias, True, 0.0, eps, None, activation, param)
        else:
            y = reference.compose_batch_norm(x, mean, invstd, weight, bias, activation, param)
    return [*differentiate(y, [x, weight, bias], grad_out), grad_out if has_residual else None]


def _unpack(mask: Tensor, x: Tensor) -> Tensor:
    """The bits of ``mask``, which follow the memory order of ``x``, as zeros and ones in its shape."""
    bits = (mask.unsqueeze(1) >> torch.arange(8, device=mask.device, dtype=torch.uint8)) & 1
    return bits.flatten()[: x.numel()].as_strided(x.shape, x.stride()).to(x.dtype)
