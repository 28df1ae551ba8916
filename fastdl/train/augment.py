"""The course's augmentation of images: flip, crop, colour cast, geometric jitter."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor


def flip(images: Tensor, generator: Generator) -> Tensor:
    """Half of the images, left to right. Not for digits."""
    chosen = torch.rand(len(images), 1, 1, 1, generator=generator).to(images.device) < 0.5
    return torch.where(chosen, images.flip(3), images)


def crop(images: Tensor, generator: Generator) -> Tensor:
    """Moved by up to two pixels, whatever is darkest coming in."""
    n, _, height, width = images.shape
    dx, dy = torch.randint(-2, 3, (2, n), generator=generator)
    rows = torch.arange(height).view(1, -1, 1) + dy.view(-1, 1, 1)
    columns = torch.arange(width).view(1, 1, -1) + dx.view(-1, 1, 1)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    at = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
    at = at.flatten(1).unsqueeze(1).expand(-1, images.shape[1], -1).to(images.device)
    moved = images.flatten(2).gather(2, at).view_as(images)
    return torch.where(inside.unsqueeze(1).to(images.device), moved, images.amin())


def colour(images: Tensor, generator: Generator) -> Tensor:
    """Each channel times 0.8 to 1.2."""
    factors = 0.8 + 0.4 * torch.rand(*images.shape[:2], 1, 1, generator=generator)
    return images * factors.to(images)


def jitter(images: Tensor, generator: Generator) -> Tensor:
    """Turned by up to 15 degrees, scaled by 0.9 to 1.1, moved by up to two pixels of 28."""
    random = (2 * torch.rand(4, len(images), generator=generator) - 1).to(images)
    angle, scale, shift = random[0] * math.pi / 12, 1 + 0.1 * random[1], random[2:] / 7
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    theta = torch.stack([torch.stack([cos, sin, shift[0]], 1), torch.stack([-sin, cos, shift[1]], 1)], 1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    dark = images.amin()
    return F.grid_sample(images - dark, grid, align_corners=False) + dark


TRANSFORMS: dict[str, Callable[[Tensor, Generator], Tensor]] = {
    "flip": flip,
    "crop": crop,
    "colour": colour,
    "jitter": jitter,
}
