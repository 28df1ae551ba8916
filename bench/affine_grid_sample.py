"""Affine sampling: MNIST digits, photographs and feature maps, turned, scaled and shifted at random."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as T
from torch import Tensor

from fastdl.parity.cases import randn

from .case import Case, Goal, Tensors, Work, size


def eager(input: Tensor, theta: Tensor, size: tuple[int, ...], **options: Any) -> Tensor:
    grid = T.affine_grid(theta, list(size), **options).to(input.dtype)
    return T.grid_sample(input, grid, **options)


def work(tensors: Tensors, options: Mapping[str, Any], direction: str) -> Work:
    """No grid: forward reads and writes an image; backward reads both images and writes one if wanted."""
    x = tensors["input"]
    out = size(x) // x.numel() * torch.Size(options["size"]).numel()
    forward = size(x) + out
    backward = out + size(x) * (2 if x.requires_grad else 1)
    return Work({"forward": forward, "backward": backward, "both": forward + backward}[direction])


def sampler(
    x: tuple[int, ...],
    directions: Mapping[str, Goal | None],
    layout: str = "contiguous",
    grads: tuple[str, ...] = ("input", "theta"),
    scale: tuple[float, float] = (0.7, 1.3),
    name: str = "",
) -> Case:
    """Angles within 30 degrees, scales within ``scale``, shifts of a tenth."""

    def thetas(generator: torch.Generator) -> Tensor:
        n = x[0]
        angle = torch.rand(n, generator=generator) - 0.5
        zoom = scale[0] + (scale[1] - scale[0]) * torch.rand(n, generator=generator)
        cos, sin = zoom * angle.cos(), zoom * angle.sin()
        shift = 0.2 * torch.randn(2, n, generator=generator)
        return torch.stack([cos, -sin, shift[0], sin, cos, shift[1]], 1).reshape(n, 2, 3)

    only = "" if len(grads) == 2 else ", gradient of theta alone"
    return Case(
        "affine_grid_sample",
        f"{x}{name}{only}",
        {"input": randn(*x), "theta": thetas},
        eager,
        work,
        {"size": x, "align_corners": False},
        grads,
        keep=("theta",),
        layout=layout,
        directions=directions,
    )


def cpu() -> Iterator[Case]:
    digits = {"forward": Goal(4.0, 1.0), "both": Goal(5.0, 1.0)}
    yield sampler((256, 1, 28, 28), digits)
    yield sampler((256, 1, 28, 28), {"both": None}, grads=("theta",))
    yield sampler((64, 1, 28, 28), {"both": None})
    yield sampler((8, 3, 224, 224), {"forward": Goal(3.0, 1.0), "both": None})
    yield sampler((32, 64, 56, 56), {"forward": Goal(4.5, 1.0), "both": None}, "channels_last")
    yield sampler((32, 64, 56, 56), {"forward": Goal(1.5, 1.0), "both": None})


def cuda() -> Iterator[Case]:
    for n in (64, 256, 1024):
        yield sampler((n, 1, 28, 28), {"forward": None, "both": Goal(6.0, 1.5)})
    photo = {"forward": None, "backward": Goal(3.0, 2.0)}
    for layout in ("contiguous", "channels_last"):
        yield sampler((64, 3, 224, 224), photo, layout)
    yield sampler((64, 3, 224, 224), {"backward": None}, grads=("theta",))
    yield sampler((64, 3, 224, 224), {"backward": None}, scale=(0.3, 0.31), name=" zoom in")
    yield sampler((64, 3, 224, 224), {"backward": None}, scale=(3.0, 3.1), name=" zoom out")
    yield sampler((64, 64, 56, 56), {"forward": None, "both": None}, "channels_last")
