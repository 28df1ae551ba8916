"""Max pooling: VGG's 2x2, ResNet's 3x3 stride 2, LeNet's, PointNet's over all points."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch.nn.functional as T

from fastdl.parity.cases import randn

from .case import Case, Goal, Tensors, Work, size


def work(tensors: Tensors, options: Mapping[str, Any], direction: str) -> Work:
    """The larger side once, the smaller once, and with gradients a byte per output for the winner."""
    x = tensors["input"]
    out = T.max_pool2d(x.detach().to("meta"), **options)
    once = size(x) + size(out)
    offsets = out.numel() * (1 if _window(options) <= 256 else 2)
    return Work({"forward": once, "backward": once + offsets, "both": 2 * (once + offsets)}[direction])


def _window(options: Mapping[str, Any]) -> int:
    kernel = options["kernel_size"]
    return kernel * kernel if isinstance(kernel, int) else kernel[0] * kernel[1]


def pool(
    name: str,
    x: tuple[int, ...],
    directions: Mapping[str, Goal | None],
    layout: str = "contiguous",
    **options: Any,
) -> Case:
    inputs = {"input": randn(*x)}
    return Case("max_pool2d", name, inputs, T.max_pool2d, work, options, layout=layout, directions=directions)


def cpu() -> Iterator[Case]:
    x, stem = (32, 64, 56, 56), {"kernel_size": 3, "stride": 2, "padding": 1}
    back = Goal(1.8, 1.0)
    yield pool("2x2 64 @56", x, {"forward": Goal(13.0, 1.0), "backward": back}, kernel_size=2)
    yield pool("3x3s2 64 @56", x, {"forward": Goal(10.0, 1.0), "backward": back}, **stem)
    last = {"forward": Goal(1.4, 1.0), "backward": None}
    yield pool("2x2 64 @56", x, last, "channels_last", kernel_size=2)
    yield pool("3x3s2 64 @56", x, last, "channels_last", **stem)
    yield pool("LeNet 2x2 10 @24", (64, 10, 24, 24), {"both": None}, kernel_size=2)
    yield pool("4x4s1 32 @64", (4, 32, 64, 64), {"forward": None}, kernel_size=4, stride=1, padding=1)
    yield pool("over 1024 points", (32, 256, 1024, 1), {"both": None}, kernel_size=(1024, 1))


def cuda() -> Iterator[Case]:
    goals = {"forward": Goal(2.0, 1.2), "backward": Goal(2.5, 1.3)}
    for layout in ("channels_last", "contiguous"):
        stem = {"kernel_size": 3, "stride": 2, "padding": 1}
        yield pool("3x3s2 64 @112", (64, 64, 112, 112), goals, layout, **stem)
        yield pool("2x2 64 @112", (64, 64, 112, 112), goals, layout, kernel_size=2)
        yield pool(
            "2x2 512 @14", (64, 512, 14, 14), {"forward": None, "backward": None}, layout, kernel_size=2
        )
    yield pool("LeNet 2x2 10 @24", (256, 10, 24, 24), {"both": None}, kernel_size=2)
    yield pool("over 1024 points", (32, 1024, 1024, 1), {"both": None}, kernel_size=(1024, 1))
