"""Two stages of geometric matching, one behind the other: what an affine map leaves, a spline takes up."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from .. import data
from ..data.sets import Batch, Tensors
from ..models.geomatch import Warp, grid_points, map_points
from ..train import figures
from .common import Report, Setting, fit, grid

SHOWN = 6
Stage = Callable[[Tensor, Tensor], Tensor]


@torch.no_grad()
def geomatch(setting: Setting) -> Report:
    """An affine stage on pairs of photographs warped by both, then a spline stage on what that leaves."""
    pairs = data.load("warps48_both")
    with torch.enable_grad():
        affine = fit(setting, "geomatch", pairs).runs[0].model.cpu()
        rest = remaining(pairs, affine)
        tps = fit(setting, "geomatch_tps", rest).runs[0].model.cpu()
    (a, b), (wanted,) = pairs.test
    theta, (aligned, _) = affine(a, b), rest.test.inputs
    controls, points = tps(aligned, b), grid_points(9)
    alone = _pixels(map_points(theta, points), wanted)
    both = _pixels(map_points(theta, map_points(controls, points)), wanted)
    rows = {
        "A": a,
        "A by affine": aligned,
        "and spline": Warp("tps", 48, "reflection")(aligned, controls),
        "B": b,
    }
    figure, axes = figures.pyplot().subplots(4, SHOWN, figsize=(8, 5.6))
    for (title, images), line in zip(rows.items(), axes, strict=True):
        first = -(-len(images) // SHOWN)  # from all over
        grid(line, images[::first, 0], [title] * SHOWN)
    figures.save(figure, setting.output / "geomatch.png")
    return {
        "pixels off as they are": _pixels(points, wanted),
        "pixels off by affine": alone,
        "pixels off by affine, then spline": both,
        "less than by affine alone": round(1 - both / alone, 4),
    }


def remaining(pairs: data.Data, affine: Stage) -> data.Data:
    """``pairs`` whose first image is aligned by ``affine``, and where the grid is still to go from there."""
    warp = Warp("affine", 48, "reflection")

    @torch.no_grad()
    def align(inputs: Tensors, targets: Tensors) -> Batch:
        (a, b), (points,) = inputs, targets
        theta = affine(a, b)
        matrix = theta.view(-1, 2, 3)
        back = torch.linalg.solve(matrix[:, :, :2], (points - matrix[:, :, 2].unsqueeze(1)).transpose(1, 2))
        return (warp(a, theta), b), (back.transpose(1, 2).contiguous(),)

    def draw(inputs: Tensors, targets: Tensors, generator: Generator) -> Batch:
        return align(*pairs.draw(inputs, targets, generator))

    return data.Data(pairs.train, data.Split(*align(*pairs.test)), draw)


def _pixels(points: Tensor, wanted: Tensor) -> float:
    """The mean distance in pixels of 48."""
    return round(24 * float((points - wanted).norm(dim=2).mean()), 3)
