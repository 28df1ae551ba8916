"""Sets made from scikit-learn's two photographs: shapes to be segmented, warps to be found."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..models.geomatch import control_points, grid_points, map_points, spline_basis
from .sets import Batch, Data, Split, Tensors

SHAPES = ("background", "disc", "square", "triangle")


def _photos() -> Tensor:
    """``[2, 3, 427, 640]``, 0 to 1."""
    from sklearn.datasets import load_sample_images

    images = np.stack(load_sample_images().images)
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def shapes64() -> Data:
    """One to three coloured shapes on 64x64 pixels of a photograph: 1,000 to train, 200 to test.

    Inputs ``[N, 3, 64, 64]``, targets ``[N, 64, 64]``: 0 for the background, 1 to 3 for SHAPES.
    """
    photos = _photos().numpy()

    def split(number: int, seed: int) -> Split:
        random = np.random.RandomState(seed)
        images, masks = zip(*(_scene(photos, random) for _ in range(number)), strict=True)
        return Split((torch.from_numpy(np.stack(images)),), (torch.from_numpy(np.stack(masks)),))

    return Data(split(1000, 1), split(200, 2), names=SHAPES)


def _scene(photos: np.ndarray, random: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    row, column = random.randint(427 - 64 + 1), random.randint(640 - 64 + 1)
    image = photos[random.randint(2), :, row : row + 64, column : column + 64].copy()
    mask = np.zeros((64, 64), np.int64)
    y, x = np.mgrid[:64, :64]
    for _ in range(random.randint(1, 4)):
        kind, size, angle = random.randint(1, 4), random.uniform(6, 14), random.uniform(0, 2 * math.pi)
        dx, dy = x - random.uniform(12, 52), y - random.uniform(12, 52)
        u, v = dx * math.cos(angle) + dy * math.sin(angle), dy * math.cos(angle) - dx * math.sin(angle)
        if kind == 1:
            inside = u**2 + v**2 < size**2
        elif kind == 2:
            inside = np.maximum(abs(u), abs(v)) < size
        else:  # equilateral: within three half planes
            inside = np.maximum(v, np.maximum(0.866 * u, -0.866 * u) - v / 2) < size / 2
        image[:, inside] = random.uniform(size=(3, 1))
        mask[inside] = kind
    return (image + 0.03 * random.normal(size=image.shape)).astype(np.float32), mask


def warps48(stage: str = "affine") -> Data:
    """Pairs of 48x48 views of grey photographs and where a grid of 9x9 points goes from one to the other.

    A sample is a standardised 96x96 patch; its centre half is one image, the same through a warp the other
    (stage "affine": rotation 30 degrees, scale 0.8 to 1.2, shear 0.15, shift 0.2; "tps": a thin-plate spline
    whose 3x3 control points move by 0.25; "both": one after the other). Train and test patches never overlap.
    Inputs two ``[N, 1, 48, 48]``, targets ``[N, 81, 2]``.
    """
    grey = F.interpolate(_photos().mean(1, keepdim=True), size=(213, 320), mode="area")

    def patches(number: int, columns: tuple[int, int], seed: int) -> Tensor:
        random, found = np.random.RandomState(seed), []
        for _ in range(number):
            photo, row, column = random.randint(2), random.randint(213 - 96 + 1), random.randint(*columns)
            patch = grey[photo, :, row : row + 96, column : column + 96]
            found.append((patch - patch.mean()) / (patch.std() + 1e-6))
        return torch.stack(found)

    def draw(inputs: Tensors, targets: Tensors, generator: Generator) -> Batch:
        (patch,) = inputs
        warp = random_warp(stage, len(patch), generator)
        centre = F.interpolate(patch[:, :, 24:72, 24:72], size=(48, 48))
        line = (2 * torch.arange(48) + 1) / 48 - 1
        y, x = torch.meshgrid(line, line, indexing="ij")
        seen = warp(torch.stack([x.flatten(), y.flatten()], 1)).view(-1, 48, 48, 2) / 2
        warped = F.grid_sample(patch, seen.to(patch), padding_mode="reflection", align_corners=False)
        return (centre, warped), (warp(grid_points(9)).to(patch),)

    train, test = patches(1600, (0, 128), 1), patches(200, (224, 225), 2)
    nothing = torch.zeros(1600)
    drawn = Split(*draw((test,), (), Generator().manual_seed(3)))
    return Data(Split((train,), (nothing,)), drawn, draw)


def random_warp(stage: str, number: int, generator: Generator):
    """A function from points ``[P, 2]`` to where ``number`` random warps take them, ``[number, P, 2]``."""

    def uniform(limit: float, *shape: int) -> Tensor:
        return (2 * torch.rand(number, *shape, generator=generator) - 1) * limit

    angle, scale, shear = uniform(math.pi / 6), 1 + uniform(0.2), uniform(0.15)
    cos, sin = scale * torch.cos(angle), scale * torch.sin(angle)
    matrix = torch.stack([cos, shear * cos - sin, sin, shear * sin + cos], 1).view(-1, 2, 2)
    theta = torch.cat([matrix, uniform(0.2, 2).unsqueeze(2)], 2).view(-1, 6)
    controls = (control_points() + uniform(0.25, 9, 2)).view(-1, 18)
    if stage != "both":
        return lambda points: map_points(theta if stage == "affine" else controls, points)

    def both(points: Tensor) -> Tensor:
        moved = map_points(theta, points)
        basis = torch.stack([spline_basis(p) for p in moved])
        return torch.matmul(basis, controls.view(-1, 9, 2))

    return both
