"""Every public op as the torch ops that it stands for: what the contract tests measure against.

Unlike fastdl.reference these see the arguments before any check of ours.
"""

import torch
import torch.nn.functional as T
from torch import Tensor

ACTIVATIONS = {
    None: lambda x, _: x,
    "relu": lambda x, _: T.relu(x),
    "leaky_relu": lambda x, slope: T.leaky_relu(x, 0.01 if slope is None else slope),
    "elu": lambda x, alpha: T.elu(x, 1.0 if alpha is None else alpha),
    "sigmoid": lambda x, _: torch.sigmoid(x),
    "tanh": lambda x, _: torch.tanh(x),
    "softplus": lambda x, _: T.softplus(x),
}


def conv2d(*args, activation=None, activation_param=None, **options) -> Tensor:
    """elu in place, but in float64, for an oracle: so torch too derives it from the output, the one kept."""
    out = T.conv2d(*args, **options)
    if activation == "elu" and out.dtype != torch.float64:
        return T.elu(out, 1.0 if activation_param is None else activation_param, inplace=True)
    return ACTIVATIONS[activation](out, activation_param)


def batch_norm(*args, residual=None, activation=None, activation_param=None, **options) -> Tensor:
    out = T.batch_norm(*args, **options)
    return ACTIVATIONS[activation](out if residual is None else out + residual, activation_param)


def float32_batch_norm(
    input,
    running_mean=None,
    running_var=None,
    weight=None,
    bias=None,
    training=False,
    momentum=0.1,
    eps=1e-5,
    *,
    residual=None,
    activation=None,
    activation_param=None,
) -> Tensor:
    """batch_norm with float32 sums, as torch has them on a GPU; on a CPU its own are float64."""
    if not training or input.dtype != torch.float32:
        args = (input, running_mean, running_var, weight, bias, training, momentum, eps)
        options = {"residual": residual, "activation": activation, "activation_param": activation_param}
        return batch_norm(*args, **options)
    T.batch_norm(input.detach(), None, None, None, None, True)  # whatever it raises
    axes, shape = [0, *range(2, input.dim())], [1, -1] + [1] * (input.dim() - 2)
    mean = input.mean(axes)
    centred = input - mean.view(shape)
    var = centred.square().mean(axes)
    if running_mean is not None:
        count = input.numel() // input.shape[1]
        running_mean.lerp_(mean.detach(), momentum)
        running_var.lerp_(var.detach() * (count / (count - 1)), momentum)
    out = centred * (var + eps).rsqrt().view(shape)
    out = out if weight is None else out * weight.view(shape)
    out = out if bias is None else out + bias.view(shape)
    return ACTIVATIONS[activation](out if residual is None else out + residual, activation_param)


def affine_grid_sample(
    input, theta, size, mode="bilinear", padding_mode="zeros", align_corners=False
) -> Tensor:
    """Coordinates in float32 whatever the dtypes: the one documented difference."""
    dtype = torch.promote_types(torch.promote_types(input.dtype, theta.dtype), torch.float32)
    grid = T.affine_grid(theta.to(dtype), list(size), align_corners)
    image = input.expand(len(theta), *input.shape[1:]) if len(input) == 1 else input
    return T.grid_sample(image.to(dtype), grid, mode, padding_mode, align_corners).to(input.dtype)


def tps_grid(points, size, control_points=None, align_corners=False) -> Tensor:
    """grid_sample's grid, from a thin-plate spline in the dtype of points; its linear system in float64."""
    if control_points is None:
        line = torch.linspace(-1, 1, round(points.shape[1] ** 0.5), dtype=torch.float64)
        control_points = torch.cartesian_prod(line, line).flip(1).to(points.device)

    def radial(p, controls):
        square = (p[:, None] - controls[None]).square().sum(2)
        return torch.xlogy(square, square)

    count, exact = len(control_points), control_points.double()
    corner = T.pad(exact, (0, 1), value=1.0)
    system = T.pad(radial(exact, exact), (0, 3, 0, 3))
    system[:count, count:], system[count:, :count] = corner, corner.t()
    inverse = torch.linalg.inv(system)[:, :count].to(points.dtype)
    pixels = T.affine_grid(torch.eye(2, 3)[None].to(points), [1, 1, *size[2:]], align_corners).flatten(0, 2)
    basis = [radial(pixels, control_points.to(points.dtype)), T.pad(pixels, (0, 1), value=1.0)]
    return (torch.cat(basis, 1) @ (inverse @ points)).unflatten(1, tuple(size[2:]))


def tps_grid_sample(
    input, points, size, control_points=None, mode="bilinear", padding_mode="zeros", align_corners=False
) -> Tensor:
    """Coordinates in float32 whatever the dtypes, as in affine_grid_sample."""
    dtype = torch.promote_types(torch.promote_types(input.dtype, points.dtype), torch.float32)
    grid = tps_grid(points.to(dtype), size, control_points, align_corners)
    image = input.expand(len(points), *input.shape[1:]) if len(input) == 1 else input
    return T.grid_sample(image.to(dtype), grid, mode, padding_mode, align_corners).to(input.dtype)


def cross_entropy(input, target, weight=None, *, ignore_index=-100, **options) -> Tensor:
    """An ignored row gets no gradient even if its logits are NaN, where torch's is NaN: documented."""
    if not target.is_floating_point() and input.dim():
        ignored = target == ignore_index
        input = input.masked_fill(ignored if input.dim() == 1 else ignored.unsqueeze(1), 0.0)
    return T.cross_entropy(input, target, weight, ignore_index=ignore_index, **options)


NAMESAKES = {
    "conv2d": conv2d,
    "batch_norm": batch_norm,
    "cross_entropy": cross_entropy,
    "max_pool2d": T.max_pool2d,
    "affine_grid_sample": affine_grid_sample,
    "tps_grid_sample": tps_grid_sample,
}
