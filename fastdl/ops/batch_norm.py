"""batch_norm with residual and activation fused behind it.

Saved for backward: the input, mean and invstd [C] and, for a residual, one bit per element (relu) or the
output (other activations). Without a residual the pre-activation is recomputed, so nothing else is saved.
"""

from __future__ import annotations

import math
from typing import Any

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
    check_tensors(
        OP,
        input=input,
        running_mean=running_mean,
        running_var=running_var,
        weight=weight,
        bias=bias,
        residual=residual,
    )
    name, param = activations.resolve(OP, activation, activation_param)
    _check(input, running_mean, running_var, weight, bias, training, momentum, eps, residual)

    empty = input.numel() == 0
    backend = backends.choose(
        OP,
        input.device,
        input.dtype,
        _unsupported(input, running_mean, running_var, weight, bias, training, residual),
        empty,
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
    args = (weight, bias, residual, running_mean, running_var, training, momentum, eps, name, param, backend)
    if needs_grad(input, weight, bias, residual):
        return _BatchNorm.apply(x, *args)
    return forward_op(x, *args[:-1], False, backend)[0]


def _check(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    residual: Tensor | None,
) -> None:
    if input.dim() < 2:
        # torch looks up the channel axis before it looks at anything else
        error = IndexError if training else RuntimeError
        raise error(complaint(OP, "input of shape [N, C, ...]", list(input.shape)))
    if not isinstance(momentum, (int, float)):
        raise TypeError(complaint(OP, "momentum to be a float", repr(momentum)))
    if eps < 0:
        raise ValueError(complaint(OP, "eps to be non-negative", eps))
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


def _saves_mask(residual: Tensor | None, activation: str) -> bool:
    return residual is not None and activation == "relu"


def _saves_out(residual: Tensor | None, activation: str) -> bool:
    return residual is not None and activation not in ("", "relu")


def _allocate_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    activation: str,
    activation_param: float,
    save: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """out like x; mean and invstd [C] float32; mask: one bit per element of x in memory order."""
    statistics = x.shape[1] if training or save else 0
    bits = (x.numel() + 7) // 8 if save and _saves_mask(residual, activation) else 0
    return (
        torch.empty_like(x),
        x.new_empty(statistics, dtype=torch.float32),
        x.new_empty(statistics, dtype=torch.float32),
        x.new_empty(bits, dtype=torch.uint8),
    )


def _fill_forward(
    outputs: tuple[Tensor, Tensor, Tensor, Tensor],
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    activation: str,
    activation_param: float,
    save: bool,
    backend: str,
) -> None:
    out, mean, invstd, mask = outputs
    statistics = training or save
    backends.kernel(backend, OP).forward(
        x,
        weight,
        bias,
        residual,
        running_mean,
        running_var,
        out,
        wanted(mean, statistics),
        wanted(invstd, statistics),
        wanted(mask, save and _saves_mask(residual, activation)),
        training=training,
        momentum=momentum,
        eps=eps,
        activation=activation,
        activation_param=activation_param,
    )


def _allocate_backward(
    grad_out: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    out: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
    mask: Tensor | None,
    training: bool,
    activation: str,
    activation_param: float,
    output_mask: list[bool],
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """grad_x and grad_residual like x, grad_weight like weight, grad_bias like bias."""
    return (
        empty_if(output_mask[0], x, x),
        empty_if(output_mask[1], weight, x),
        empty_if(output_mask[2], bias, x),
        empty_if(output_mask[3], x, x),
    )


def _fill_backward(
    outputs: tuple[Tensor, Tensor, Tensor, Tensor],
    grad_out: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    out: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
    mask: Tensor | None,
    training: bool,
    activation: str,
    activation_param: float,
    output_mask: list[bool],
    backend: str,
) -> None:
    backends.kernel(backend, OP).backward(
        grad_out,
        x,
        weight,
        bias,
        out,
        mean,
        invstd,
        mask,
        *(wanted(tensor, flag) for tensor, flag in zip(outputs, output_mask, strict=True)),
        training=training,
        activation=activation,
        activation_param=activation_param,
    )


forward_op = register(
    "batch_norm_forward(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, Tensor(a!)? running_mean, "
    "Tensor(b!)? running_var, bool training, float momentum, float eps, str activation, "
    "float activation_param, bool save, str backend) -> (Tensor, Tensor, Tensor, Tensor)",
    _allocate_forward,
    _fill_forward,
)
backward_op = register(
    "batch_norm_backward(Tensor grad_out, Tensor x, Tensor? weight, Tensor? bias, Tensor? out, Tensor mean, "
    "Tensor invstd, Tensor? mask, bool training, str activation, float activation_param, bool[] output_mask, "
    "str backend) -> (Tensor, Tensor, Tensor, Tensor)",
    _allocate_backward,
    _fill_backward,
)


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        training: bool,
        momentum: float,
        eps: float,
        activation: str,
        activation_param: float,
        backend: str,
    ) -> Tensor:
        out, mean, invstd, mask = forward_op(
            x,
            weight,
            bias,
            residual,
            running_mean,
            running_var,
            training,
            momentum,
            eps,
            activation,
            activation_param,
            True,
            backend,
        )
        ctx.save_for_backward(
            x,
            weight,
            bias,
            out if _saves_out(residual, activation) else None,
            mean,
            invstd,
            mask if _saves_mask(residual, activation) else None,
        )
        ctx.training, ctx.eps, ctx.has_residual, ctx.backend = training, eps, residual is not None, backend
        ctx.activation = (activation, activation_param)
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, out, mean, invstd, mask = ctx.saved_tensors
        needs = [ctx.needs_input_grad[i] for i in range(4)]
        # an addition without an activation behind it hands its gradient on: no kernel copies it
        passed_on = needs[3] and not ctx.activation[0]
        if torch.is_grad_enabled():
            grads = _differentiable_backward(ctx, grad_out, x, weight, bias, out, mean, invstd, mask)
        else:
            grad_out = grad_out.contiguous(memory_format=memory_format(x))
            found = backward_op(
                grad_out,
                x,
                weight,
                bias,
                out,
                mean,
                invstd,
                mask,
                ctx.training,
                *ctx.activation,
                [*needs[:3], needs[3] and not passed_on],
                ctx.backend,
            )
            grads = [wanted(tensor, flag) for tensor, flag in zip(found, needs, strict=True)]
            if passed_on:
                grads[3] = grad_out
        return *grads, None, None, None, None, None, None, None, None


def _differentiable_backward(
    ctx: Any,
    grad_out: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    out: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
    mask: Tensor | None,
) -> list[Tensor | None]:
    """The gradients of x, weight, bias and residual by plain torch, so that they can be differentiated."""
    activation, param = ctx.activation
    if ctx.has_residual:
        # the residual itself was not saved: go through the activation by what was
        if mask is not None:
            grad_out = grad_out * _unpack(mask, x)
        elif out is not None:
            grad_out = grad_out * activations.ACTIVATIONS[activation].derivative(out, param)
        activation = ""
    with reference.no_autocast(x):
        if ctx.training:
            y = reference.batch_norm(x, None, None, weight, bias, True, 0.0, ctx.eps, None, activation, param)
        else:
            y = reference.compose_batch_norm(x, mean, invstd, weight, bias, activation, param)
    return [*differentiate(y, [x, weight, bias], grad_out), grad_out if ctx.has_residual else None]


def _unpack(mask: Tensor, x: Tensor) -> Tensor:
    """The bits of ``mask``, which follow the memory order of ``x``, as zeros and ones in its shape."""
    bits = (mask.unsqueeze(1) >> torch.arange(8, device=mask.device, dtype=torch.uint8)) & 1
    return bits.flatten()[: x.numel()].as_strided(x.shape, x.stride()).to(x.dtype)
