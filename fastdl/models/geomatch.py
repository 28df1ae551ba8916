"""Geometric matching (Rocco et al., 2017, arXiv:1703.05593): which warp takes one image to the other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STAGES = {"affine": 6, "tps": 18}


class GeoMatch(nn.Module):
    """Features of both images, their correlation, and a regression of the warp: 411,030 parameters.

    Input two images ``[N, 1, 48, 48]``. Output the warp in grid_sample's coordinates: ``[N, 6]``, a 2x3
    matrix row by row, or ``[N, 18]``, where nine control points go (a thin-plate spline, 411,810 parameters).
    Starts at the identity.

    Args:
        stage: "affine" or "tps".
    """

    def __init__(self, stage: str = "affine") -> None:
        super().__init__()
        if stage not in STAGES:
            raise ValueError(f"fastdl.models: expected stage to be one of {', '.join(STAGES)}, got {stage!r}")
        self.features = nn.Sequential(
            *_norm_relu(1, 16),
            nn.MaxPool2d(2),
            *_norm_relu(16, 32),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 32, 3, padding=1),
        )
        self.regression = nn.Sequential(
            *_norm_relu(144, 64),
            *_norm_relu(64, 32),
            nn.Flatten(),
            nn.Linear(32 * 12 * 12, 64),
            nn.ReLU(),
            nn.Linear(64, STAGES[stage]),
        )
        identity = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 0.0]) if stage == "affine" else control_points()
        nn.init.zeros_(self.regression[-1].weight)
        with torch.no_grad():
            self.regression[-1].bias.copy_(identity.flatten())

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = F.normalize(self.features(a), dim=1), F.normalize(self.features(b), dim=1)
        correlation = torch.matmul(a.flatten(2).transpose(1, 2), b.flatten(2))
        correlation = F.normalize(F.relu(correlation), dim=1)
        return self.regression(correlation.view(-1, 144, 12, 12))


def _norm_relu(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)


class GridLoss(nn.Module):
    """The mean squared distance between where two warps take a grid of 9x9 points."""

    def forward(self, warp: Tensor, points: Tensor) -> Tensor:
        """``warp`` as GeoMatch gives it; ``points [N, 81, 2]`` where the grid should go."""
        return torch.mean(torch.sum((map_points(warp, grid_points(9).to(warp)) - points) ** 2, 2))


def grid_points(side: int) -> Tensor:
    """``[side * side, 2]``: x and y of a regular grid from -1 to 1, row by row."""
    line = torch.linspace(-1, 1, side)
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], 1)


def control_points() -> Tensor:
    """The nine points ``[9, 2]`` that a thin-plate spline moves."""
    return grid_points(3)


def map_points(warp: Tensor, points: Tensor) -> Tensor:
    """Where ``warp`` ([N, 6] affine, [N, 18] thin-plate spline) takes ``points [P, 2]``: ``[N, P, 2]``."""
    if warp.shape[1] == STAGES["affine"]:
        theta = warp.view(-1, 2, 3)
        return torch.matmul(points, theta[:, :, :2].transpose(1, 2)) + theta[:, :, 2].unsqueeze(1)
    return torch.matmul(spline_basis(points), warp.view(-1, 9, 2))


def spline_basis(points: Tensor) -> Tensor:
    """``[P, 9]``: how far each control point draws each of ``points`` in a thin-plate spline.

    The spline is sum_k w_k U(|p - c_k|) + a affine map, U = r^2 log r^2, through the control points and with
    the w orthogonal to the affine maps: one linear system, solved once for all images.
    """
    controls = control_points().to(points.device, torch.float64)
    wanted = points.to(torch.float64)

    def rows(p: Tensor) -> Tensor:
        square = ((p.unsqueeze(1) - controls) ** 2).sum(2)
        return torch.cat([torch.xlogy(square, square), torch.ones_like(p[:, :1]), p], 1)

    system = torch.zeros(12, 12, dtype=torch.float64, device=points.device)
    system[:9] = rows(controls)
    system[9:, :9] = system[:9, 9:].t()
    right = torch.eye(12, 9, dtype=torch.float64, device=points.device)
    return (rows(wanted) @ torch.linalg.solve(system, right)).to(points.dtype)


class Warp(nn.Module):
    """An image as a warp shows it: sampled at the points that the warp takes a grid of ``size`` pixels to.

    Args:
        stage: "affine" or "tps", as of GeoMatch.
        size: of the result, in pixels.
        padding_mode: grid_sample's.
    """

    def __init__(self, stage: str, size: int, padding_mode: str = "zeros") -> None:
        super().__init__()
        self.stage = stage
        self.size = size
        self.padding_mode = padding_mode
        line = (2 * torch.arange(size) + 1) / size - 1
        y, x = torch.meshgrid(line, line, indexing="ij")
        pixels = torch.stack([x.flatten(), y.flatten()], 1)
        self.register_buffer("basis", spline_basis(pixels) if stage == "tps" else None, persistent=False)

    def forward(self, image: Tensor, warp: Tensor) -> Tensor:
        """``image [N, C, H, W]`` and ``warp`` as GeoMatch gives it to ``[N, C, size, size]``."""
        if self.stage == "affine":
            shape = (image.shape[0], image.shape[1], self.size, self.size)
            grid = F.affine_grid(warp.view(-1, 2, 3), shape, align_corners=False)
        else:
            points = torch.matmul(self.basis, warp.view(-1, 9, 2))
            grid = points.view(-1, self.size, self.size, 2)
        return F.grid_sample(image, grid, padding_mode=self.padding_mode, align_corners=False)
