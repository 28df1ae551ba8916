"""Every op in plain torch: the fallback, the test oracle and the benchmark baseline at once.

These compose torch's own operators, so they run on any device, in any dtype, and are differentiable to any
order that torch supports.
"""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor

from . import activations


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...] | int,
    padding: tuple[int, ...] | int | str,
    dilation: tuple[int, ...] | int,
    groups: int,
    activation: str,
    activation_param: float,
) -> Tensor:
    """act(conv2d(input, weight) + bias)."""
    out = F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    if activation == "relu":
        return F.relu_(out)  # a convolution does not save its output
    return activations.apply(out, activation, activation_param)


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
    activation: str,
    activation_param: float,
) -> Tensor:
    """act(batch_norm(input) + residual)."""
    out = F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    if residual is not None:
        out = out + residual
    return activations.apply(out, activation, activation_param)


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
) -> Tensor:
    """torch.nn.functional.cross_entropy."""
    return F.cross_entropy(
        input, target, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
    )


def max_pool2d(
    input: Tensor,
    kernel_size: tuple[int, ...] | int,
    stride: tuple[int, ...] | int | None,
    padding: tuple[int, ...] | int,
    dilation: tuple[int, ...] | int,
    ceil_mode: bool,
    return_indices: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    """torch.nn.functional.max_pool2d."""
    return F.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def affine_grid_sample(
    input: Tensor,
    theta: Tensor,
    size: tuple[int, ...] | list[int],
    mode: str,
    padding_mode: str,
    align_corners: bool,
) -> Tensor:
    """grid_sample(input, affine_grid(theta, size)), coordinates in float32 or better."""
    if input.shape[0] == 1 and theta.shape[0] != 1:
        input = input.expand(theta.shape[0], *input.shape[1:])
    # grid_sample wants one dtype for both, and a grid in half precision would be off by whole pixels
    dtype = torch.promote_types(torch.promote_types(input.dtype, theta.dtype), torch.float32)
    with no_autocast(input):  # for the same reason
        grid = F.affine_grid(theta.to(dtype), list(size), align_corners)
        out = F.grid_sample(input.to(dtype), grid, mode, padding_mode, align_corners)
    return out.to(input.dtype)


def no_autocast(x: Tensor) -> contextlib.AbstractContextManager[None]:
    """Autocast off for the device of ``x``, where it is on; devices like meta know none."""
    kind = x.device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return contextlib.nullcontext()
    return torch.autocast(kind, enabled=False)


def compose_batch_norm(
    input: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    activation: str,
    activation_param: float,
) -> Tensor:
    """act((input - mean) * invstd * weight + bias) with constant statistics [C]."""
    shape = (1, -1) + (1,) * (input.dim() - 2)
    out = (input - mean.view(shape)) * invstd.view(shape)
    if weight is not None:
        out = out * weight.view(shape)
    if bias is not None:
        out = out + bias.view(shape)
    return activations.apply(out.to(input.dtype), activation, activation_param)


def max_pool2d_backward(grad_out: Tensor, indices: Tensor, input_size: tuple[int, ...]) -> Tensor:
    """The gradient of max_pool2d for its input of ``input_size`` [N, C, H, W], from its flat indices."""
    n, c, h, w = input_size
    grad = grad_out.new_zeros(n, c, h * w)
    return grad.scatter_add(2, indices.flatten(2), grad_out.flatten(2)).view(n, c, h, w)
