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
    return ACTIVATIONS[activation](T.conv2d(*args, **options), activation_param)


def batch_norm(*args, residual=None, activation=None, activation_param=None, **options) -> Tensor:
    out = T.batch_norm(*args, **options)
    return ACTIVATIONS[activation](out if residual is None else out + residual, activation_param)


def affine_grid_sample(
    input, theta, size, mode="bilinear", padding_mode="zeros", align_corners=False
) -> Tensor:
    """Coordinates in float32 whatever the dtypes: the one documented difference."""
    dtype = torch.promote_types(torch.promote_types(input.dtype, theta.dtype), torch.float32)
    grid = T.affine_grid(theta.to(dtype), list(size), align_corners)
    image = input.expand(len(theta), *input.shape[1:]) if len(input) == 1 else input
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
}
