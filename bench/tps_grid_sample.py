"""Sampling through thin-plate splines: images, photographs and feature maps, bent and moved at random."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as T
from torch import Tensor

from fastdl import backends, reference
from fastdl.ops.tps_grid_sample import regular_points
from fastdl.parity.cases import Draw

from .case import Case, Goal, Tensors, Work
from .case import size as bytes_of


@functools.cache
def _kept(height: int, width: int, count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    identity = torch.eye(2, 3, dtype=torch.float64).unsqueeze(0)
    pixels = T.affine_grid(identity, [1, 1, height, width], align_corners=False).view(-1, 2)
    controls = regular_points(count)
    square = (pixels.unsqueeze(1) - controls).square().sum(2)
    rows = torch.cat([pixels, torch.ones_like(pixels[:, :1]), torch.xlogy(square, square)], 1)
    return torch.matmul(rows, reference.tps_system(controls).t()).to(device, dtype)


@backends.constant  # of a function that is not cached itself: Dynamo looks through a cache
def basis(height: int, width: int, count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``[height * width, count]``: how far each of ``count`` regular points draws each pixel; made once."""
    return _kept(height, width, count, dtype, device)


def eager(input: Tensor, points: Tensor, size: tuple[int, ...], align_corners: bool) -> Tensor:
    """As fastdl.models.geomatch.Warp: what depends on the size alone is computed before."""
    known = basis if type(points) is Tensor else _kept.__wrapped__  # a fake tensor takes no others along
    matrix = known(size[2], size[3], points.shape[1], points.dtype, points.device)
    grid = torch.matmul(matrix, points).view(-1, size[2], size[3], 2).to(input.dtype)
    return T.grid_sample(input, grid, align_corners=align_corners)


def work(tensors: Tensors, options: Mapping[str, Any], direction: str) -> Work:
    """No grid: forward reads and writes an image; backward reads both images and writes one if wanted."""
    x = tensors["input"]
    out = bytes_of(x) // x.numel() * torch.Size(options["size"]).numel()
    forward = bytes_of(x) + out
    backward = out + bytes_of(x) * (2 if x.requires_grad else 1)
    return Work({"forward": forward, "backward": backward, "both": forward + backward}[direction])


def planes(*shape: int) -> Draw:
    """Images whose value is an affine function of the position."""

    def draw(generator: torch.Generator) -> Tensor:
        n, c, h, w = shape
        a, b, d = torch.randn(3, n, c, 1, 1, generator=generator)
        return a + b * torch.linspace(-1, 1, h).view(h, 1) + d * torch.linspace(-1, 1, w)

    return draw


def sampler(
    x: tuple[int, ...],
    directions: Mapping[str, Goal | None],
    layout: str = "contiguous",
    grads: tuple[str, ...] = ("input", "points"),
    side: int = 3,
    bend: float = 0.05,
) -> Case:
    """A regular grid of ``side`` x ``side`` points three quarters as wide, each moved by ``bend`` at random.

    The images are planes and all samples lie inside: in any other the gradient of points jumps from pixel to
    pixel, and of so many samples some lie so near a pixel that rounding decides on which side.
    """

    def points(generator: torch.Generator) -> Tensor:
        moved = torch.randn(x[0], side * side, 2, generator=generator)
        return 0.75 * regular_points(side * side).float() + bend * moved

    bent = "" if side == 3 else f", {side}x{side} points"
    only = "" if len(grads) == 2 else ", gradient of points alone"
    return Case(
        "tps_grid_sample",
        f"{x}{bent}{only}",
        {"input": planes(*x), "points": points},
        eager,
        work,
        {"size": x, "align_corners": False},
        grads,
        keep=("points",),
        layout=layout,
        directions=directions,
    )


def cpu() -> Iterator[Case]:
    small = {"forward": Goal(3.0, 1.0), "both": Goal(2.0, 1.0)}
    photo = {"forward": Goal(2.0, 1.0), "both": Goal(1.5, 1.0)}
    yield sampler((64, 1, 48, 48), small)
    yield sampler((64, 1, 48, 48), {"both": Goal(2.0, 1.0)}, grads=("points",))
    yield sampler((16, 3, 96, 96), photo)
    yield sampler((8, 3, 224, 224), photo)
    yield sampler((8, 3, 224, 224), {"forward": Goal(2.0, 1.0)}, side=5, bend=0.02)
    yield sampler((32, 64, 56, 56), {"forward": Goal(2.5, 1.0), "both": Goal(2.5, 1.0)}, "channels_last")


def cuda() -> Iterator[Case]:
    both = {"forward": None, "both": None}
    for n in (64, 1024):
        yield sampler((n, 1, 48, 48), both)
    yield sampler((64, 3, 96, 96), both)
    for layout in ("contiguous", "channels_last"):
        yield sampler((64, 3, 224, 224), {"forward": None, "backward": None}, layout)
    yield sampler((64, 3, 224, 224), {"backward": None}, grads=("points",))
    yield sampler((64, 3, 224, 224), {"forward": None}, side=5, bend=0.02)
    yield sampler((64, 64, 56, 56), both, "channels_last")
