"""Two stages of geometric matching, one behind the other: what an affine map leaves, a spline takes up."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import data
from ..models.geomatch import Warp, grid_points, map_points
from ..train import figures
from .common import Report, Setting, fit, grid

SHOWN = 6


@torch.no_grad()
def geomatch(setting: Setting) -> Report:
    """Affine, then thin-plate spline, on pairs of photographs that both were done to."""
    with torch.enable_grad():
        affine, tps = (fit(setting, name).runs[0].model.cpu() for name in ("geomatch", "geomatch_tps"))
    (a, b), (wanted,) = data.load("warps48_both").test
    theta, controls, aligned = chain(affine, tps, a, b)
    points = grid_points(9)
    alone = map_points(theta, points)
    both = map_points(theta, map_points(controls, points))
    results = {
        "pixels off as they are": _pixels(points, wanted),
        "pixels off by affine": _pixels(alone, wanted),
        "pixels off by affine, then spline": _pixels(both, wanted),
    }
    results["less than by affine alone"] = round(
        1 - results["pixels off by affine, then spline"] / results["pixels off by affine"], 4
    )
    rows = [a, aligned, Warp("tps", 48, "reflection")(aligned, controls), b]
    figure, axes = figures.pyplot().subplots(4, SHOWN, figsize=(8, 5.6))
    for images, line, title in zip(rows, axes, ("A", "A by affine", "A by affine, spline", "B"), strict=True):
        grid(line, images[:SHOWN, 0], [title] * SHOWN)
    figures.save(figure, setting.output / "geomatch.png")
    return results


def chain(affine: nn.Module, tps: nn.Module, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The affine map from ``a`` to ``b``, the spline from what that makes of ``a`` to ``b``, and that."""
    theta = affine(a, b)
    aligned = Warp("affine", a.shape[-1], "reflection")(a, theta)
    return theta, tps(aligned, b), aligned


def _pixels(points: Tensor, wanted: Tensor) -> float:
    """The mean distance in pixels of 48."""
    return round(24 * float((points - wanted).norm(dim=2).mean()), 3)
