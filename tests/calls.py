"""One plain call per op: what the generic contract tests run on every backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import fastdl.functional as F


class Call(NamedTuple):
    """``function(*tensors)`` for tensors drawn by ``inputs``; ``grads`` are the positions of those
    that take a gradient, ``out`` the shape of the result."""

    function: Callable[..., Tensor]
    inputs: Callable[[], list[Tensor]]
    grads: tuple[int, ...]
    out: tuple[int, ...]


def _theta() -> Tensor:
    return torch.tensor([[0.8, -0.45, 0.1], [0.5, 0.85, -0.15]]) + 0.05 * torch.rand(2, 2, 3)


def _points() -> Tensor:
    line = torch.linspace(-0.8, 0.8, 3)
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x - 0.3 * y, 0.2 * x + y], 2).view(9, 2) + 0.1 * torch.rand(2, 9, 2)


def _slopes(*shape: int) -> Tensor:
    """Images rough but little: a rounded coordinate moves the gradient of points by where it lies."""
    lines = (torch.linspace(-1, 1, shape[2]).view(-1, 1), torch.linspace(-1, 1, shape[3]))
    return sum(line * torch.randn(*shape[:2], 1, 1) for line in lines) + 0.1 * torch.randn(shape)


CALLS: dict[str, Call] = {
    "conv2d": Call(
        lambda x, w, b: F.conv2d(x, w, b, padding=1, activation="leaky_relu"),
        lambda: [torch.randn(2, 4, 6, 6), torch.randn(8, 4, 3, 3) / 6, torch.randn(8)],
        (0, 1, 2),
        (2, 8, 6, 6),
    ),
    "batch_norm": Call(
        lambda x, w, b, r: F.batch_norm(x, None, None, w, b, True, residual=r, activation="relu"),
        lambda: [torch.randn(2, 24, 6, 6), torch.randn(24), torch.randn(24), torch.randn(2, 24, 6, 6)],
        (0, 1, 2, 3),
        (2, 24, 6, 6),
    ),
    "batch_norm elu": Call(
        lambda x, w, b, r: F.batch_norm(x, None, None, w, b, True, residual=r, activation="elu"),
        lambda: [torch.randn(2, 24, 6, 6), torch.randn(24), torch.randn(24), torch.randn(2, 24, 6, 6)],
        (0, 1, 2, 3),
        (2, 24, 6, 6),
    ),
    "batch_norm eval": Call(
        lambda x, w, b, m, v: F.batch_norm(x, m, v, w, b, activation="tanh"),
        lambda: [
            torch.randn(2, 24, 6, 6),
            torch.randn(24),
            torch.randn(24),
            torch.randn(24),
            torch.rand(24) + 0.5,
        ],
        (0, 1, 2),
        (2, 24, 6, 6),
    ),
    "cross_entropy": Call(
        lambda x, t, w: F.cross_entropy(x, t, w, reduction="none", label_smoothing=0.1),
        lambda: [torch.randn(2, 5, 4, 3), torch.randint(5, (2, 4, 3)), torch.rand(5) + 0.5],
        (0,),
        (2, 4, 3),
    ),
    "cross_entropy mean": Call(
        lambda x, t: F.cross_entropy(x, t),
        lambda: [torch.randn(6, 5), torch.randint(5, (6,))],
        (0,),
        (),
    ),
    "max_pool2d": Call(
        lambda x: F.max_pool2d(x, 3, 2, 1),
        lambda: [torch.randn(2, 4, 7, 7)],
        (0,),
        (2, 4, 4, 4),
    ),
    "affine_grid_sample": Call(
        lambda x, theta: F.affine_grid_sample(x, theta, (2, 3, 6, 5)),
        lambda: [torch.randn(2, 3, 7, 6), _theta()],
        (0, 1),
        (2, 3, 6, 5),
    ),
    "tps_grid_sample": Call(
        lambda x, points: F.tps_grid_sample(x, points, (2, 3, 15, 16)),
        lambda: [_slopes(2, 3, 7, 6), _points()],
        (0, 1),
        (2, 3, 15, 16),
    ),
}


def leaves(call: Call, device: torch.device, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Fresh inputs on ``device``; floating ones in ``dtype``, those of ``call.grads`` as leaves."""
    tensors = [t.to(device, dtype if t.is_floating_point() else t.dtype) for t in call.inputs()]
    return [t.requires_grad_(i in call.grads) for i, t in enumerate(tensors)]
