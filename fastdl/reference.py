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
    # a grid in half precision would be off by whole pixels
    dtype = torch.promote_types(torch.promote_types(input.dtype, theta.dtype), torch.float32)
    with no_autocast(input):  # for the same reason
        grid = F.affine_grid(theta.to(dtype), list(size), align_corners)
        return _sample(input, grid, mode, padding_mode, align_corners)


def tps_grid_sample(
    input: Tensor,
    theta: Tensor,
    control_points: Tensor,
    size: tuple[int, ...] | list[int],
    mode: str,
    padding_mode: str,
    align_corners: bool,
) -> Tensor:
    """grid_sample(input, grid), the grid from a thin-plate spline's coefficients ``theta [N, 2, 3 + K]``.

    The first three belong to (x, y, 1), the others each to U of the distance from its control point.
    """
    identity = torch.eye(2, 3, dtype=theta.dtype, device=theta.device).unsqueeze(0)
    with no_autocast(input):
        pixels = F.affine_grid(identity, [1, 1, *size[2:]], align_corners).view(-1, 2)
        rows = _tps_rows(pixels, control_points)
        grid = torch.matmul(rows, theta.transpose(1, 2)).view(-1, *size[2:], 2)
        return _sample(input, grid, mode, padding_mode, align_corners)


def tps_system(control_points: Tensor) -> Tensor:
    """``[K, 3 + K]`` in float64: from where the control points ``[K, 2]`` go to the spline's coefficients.

    The spline is affine(p) + sum_k w_k U(|p - c_k|), U(r) = r^2 log r^2, through all points and with the w
    orthogonal to the affine maps: the coefficients solve one linear system. Where it has no solution, that is
    torch.linalg.LinAlgError on a CPU; on a GPU, and in torch.func's transforms, the result means nothing.
    """
    controls = control_points.double()
    count = len(controls)
    rows = _tps_rows(controls, controls)
    affine = torch.cat([rows[:, :3].t(), rows.new_zeros(3, 3)], 1)
    system = torch.cat([torch.cat([rows[:, 3:], rows[:, :3]], 1), affine])
    checked = controls.device.type == "cpu" and not torch._C._are_functorch_transforms_active()
    inverse, _ = torch.linalg.inv_ex(system, check_errors=checked)
    return torch.cat([inverse[count:], inverse[:count]])[:, :count].t()


def _tps_rows(points: Tensor, control_points: Tensor) -> Tensor:
    """``[P, 3 + K]``: x, y, 1 and U(|p - c_k|) of ``points [P, 2]``."""
    square = (points.unsqueeze(1) - control_points).square().sum(2)
    # the logarithm of 1 at a control point: value and gradient are 0 there
    u = square * torch.where(square == 0, 1.0, square).log()
    return torch.cat([points, torch.ones_like(points[:, :1]), u], 1)


def _sample(input: Tensor, grid: Tensor, mode: str, padding_mode: str, align_corners: bool) -> Tensor:
    """grid_sample in the grid's dtype, for it wants one dtype for both; one image may serve all grids."""
    if input.shape[0] == 1 and grid.shape[0] != 1:
        input = input.expand(grid.shape[0], *input.shape[1:])
    return F.grid_sample(input.to(grid.dtype), grid, mode, padding_mode, align_corners).to(input.dtype)


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
