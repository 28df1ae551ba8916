"""Batch norm (+ addition) + ReLU: ResNet's, VGG's and PointNet's layers, training and evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch.nn.functional as T
from torch import Tensor

from fastdl.parity.cases import randn, uniform

from .case import Case, Goal, Tensors, Work, size


def eager(
    input: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    training: bool = True,
    activation: str | None = None,
) -> Tensor:
    y = T.batch_norm(input, running_mean, running_var, weight, bias, training)
    if residual is not None:
        y = y.add_(residual)
    return T.relu_(y) if activation == "relu" else y


def work(tensors: Tensors, options: Mapping[str, Any], direction: str) -> Work:
    """In tensors: training reads the input twice (statistics, then output), its gradients everything twice.

    A tensor that stays on chip is read once; percentages above 100 say so.
    """
    t, residual = size(tensors["input"]), tensors.get("residual") is not None
    forward = (3 if options["training"] else 2) * t + residual * t
    backward = (6 if residual else 5) * t  # the mask of the sum is a bit per element
    return Work({"forward": forward, "backward": backward, "both": forward + backward}[direction])


def layer(
    name: str,
    x: tuple[int, ...],
    directions: Mapping[str, Goal | None],
    layout: str = "contiguous",
    residual: bool = False,
    training: bool = True,
) -> Case:
    c = x[1]
    inputs = {
        "input": randn(*x),
        "running_mean": randn(c),
        "running_var": uniform(c),
        "weight": uniform(c),
        "bias": randn(c),
    }
    if residual:
        inputs["residual"] = randn(*x)
    return Case(
        "batch_norm",
        name,
        inputs,
        eager,
        work,
        {"training": training, "activation": "relu"},
        ("input", "weight", "bias", *(["residual"] if residual else [])),
        ("input", "residual"),
        ("running_mean", "running_var", "weight", "bias"),
        layout,
        directions,
    )


def cpu() -> Iterator[Case]:
    x = (32, 64, 56, 56)
    for layout in ("contiguous", "channels_last"):
        forward, add, backward = {
            "contiguous": (Goal(4.5, 1.0), Goal(3.5, 1.0), Goal(1.8, 1.0)),
            "channels_last": (Goal(1.6, 1.0), None, Goal(1.5, 1.0)),
        }[layout]
        yield layer("relu 64 @56", x, {"forward": forward, "backward": backward}, layout)
        yield layer("add relu 64 @56", x, {"forward": add, "backward": None}, layout, residual=True)
        yield layer("relu eval 64 @56", x, {"forward": Goal(1.7, 1.0)}, layout, training=False)
    for small in ((16, 512, 7, 7), (32, 64, 1024), (32, 512), (256, 1024), (64, 16, 16, 16)):
        yield layer(f"relu {small}", small, {"forward": None, "both": None})


def cuda() -> Iterator[Case]:
    large = {"forward": Goal(1.8, 1.0), "backward": Goal(2.0, 1.2)}
    on_chip = {"forward": Goal(2.5, 1.3), "backward": Goal(2.0, 1.2)}
    add = {"forward": Goal(2.0, 1.05), "backward": None}
    for layout in ("channels_last", "contiguous"):
        for c, pixels in (
            (64, 112),
            (64, 56),
            (256, 56),
            (128, 28),
            (512, 28),
            (1024, 14),
            (2048, 7),
            (512, 7),
        ):
            x = (64, c, pixels, pixels)
            fits = c * pixels * pixels * 64 * 2 <= 24e6
            yield layer(f"relu {c} @{pixels}", x, on_chip if fits else large, layout)
            if c in (256, 512, 1024):
                yield layer(f"add relu {c} @{pixels}", x, add, layout, residual=True)
    yield layer("relu eval 256 @56", (64, 256, 56, 56), {"forward": None}, "channels_last", training=False)
    for points in ((32, 64, 1024), (32, 1024, 1024), (256, 1024)):
        yield layer(f"relu {points}", points, {"forward": None, "both": None})
