"""conv2d + bias + ReLU (+ max pool): layers of LeNet, STN, AlexNet, VGG, ResNet, MobileNet and ConvNeXt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch.nn.functional as T
from torch import Tensor

from fastdl.parity.cases import randn

from .case import Case, Goal, Tensors, Work, size


def eager(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    activation: str | None = None,
    pool_kernel_size: int | None = None,
    **options: Any,
) -> Tensor:
    y = T.conv2d(input, weight, bias, **options)
    if pool_kernel_size:
        y = T.max_pool2d(y, pool_kernel_size)
    return T.relu_(y) if activation == "relu" else y


def work(tensors: Tensors, options: Mapping[str, Any], direction: str) -> Work:
    """Forward reads input and weight and writes the output; each of the two gradients is as much again."""
    x, weight = tensors["input"], tensors["weight"]
    stride, padding = options.get("stride", 1), options.get("padding", 0)
    out = [(x.shape[2 + i] + 2 * padding - weight.shape[2 + i]) // stride + 1 for i in (0, 1)]
    pixels = x.shape[0] * out[0] * out[1]
    flops = 2 * pixels * weight.numel()
    written = pixels * weight.shape[0] * x.element_size() // options.get("pool_kernel_size", 1) ** 2
    forward = Work(size(x) + size(weight) + written, flops)
    needs = sum(t.requires_grad for t in (x, weight))
    backward = Work(needs * (size(x) + size(weight) + written), needs * flops)
    return {
        "forward": forward,
        "backward": backward,
        "both": Work(forward.bytes + backward.bytes, forward.flops + backward.flops),
    }[direction]


def layer(
    name: str,
    x: tuple[int, ...],
    k: int,
    r: int,
    directions: Mapping[str, Goal | None],
    layout: str = "contiguous",
    image: bool = False,
    **options: Any,
) -> Case:
    """A layer with ``k`` filters of ``r`` x ``r``; ``image``: its input needs no gradient."""
    weight = (k, x[1] // options.get("groups", 1), r, r)
    fan_in = weight[1] * r * r
    return Case(
        "conv2d",
        name,
        {"input": randn(*x), "weight": randn(*weight, scale=fan_in**-0.5), "bias": randn(k)},
        eager,
        work,
        {"activation": "relu", **options},
        ("weight", "bias") if image else ("input", "weight", "bias"),
        ("input", "weight"),
        layout=layout,
        directions=directions,
        function="conv2d_max_pool2d" if "pool_kernel_size" in options else "",
    )


def cpu() -> Iterator[Case]:
    even, half = Goal(1.0, 1.0), Goal(1.5, 1.0)
    for layout in ("contiguous", "channels_last"):
        at: dict[str, Any] = {"layout": layout}
        yield layer(
            "3x3 64->64 @56", (8, 64, 56, 56), 64, 3, {"forward": even, "both": even}, padding=1, **at
        )
        yield layer("3x3 256->256 @14", (8, 256, 14, 14), 256, 3, {"forward": even}, padding=1, **at)
        yield layer("1x1 64->256 @56", (8, 64, 56, 56), 256, 1, {"forward": even, "both": even}, **at)
        yield layer("VGG first 3->64 @224", (4, 3, 224, 224), 64, 3, {"forward": half}, padding=1, **at)
        yield layer("ResNet stem", (4, 3, 224, 224), 64, 7, {"forward": even}, stride=2, padding=3, **at)
        yield layer("depthwise 3x3 144 @56", (8, 144, 56, 56), 144, 3, {"forward": half, "both": even},
                    padding=1, groups=144, **at)  # fmt: skip
    yield layer("STN first 1->16 5x5 @42", (64, 1, 42, 42), 16, 5, {"forward": even, "both": even}, padding=2)
    first = {"forward": Goal(2.5, 1.0), "both": even}
    yield layer("LeNet first and pool", (256, 1, 28, 28), 6, 5, first, image=True, pool_kernel_size=2)
    yield layer("LeNet second and pool", (256, 6, 12, 12), 16, 5, {"forward": even}, pool_kernel_size=2)


def cuda() -> Iterator[Case]:
    dense, stem, pointwise = Goal(1.0, 1.0), Goal(2.0, 1.5), Goal(2.5, 1.6)
    last: dict[str, Any] = {"layout": "channels_last"}
    for c, pixels in ((64, 56), (128, 28), (256, 14), (512, 7)):
        directions = {"forward": dense, "both": dense}
        yield layer(f"3x3 {c}->{c} @{pixels}", (64, c, pixels, pixels), c, 3, directions, padding=1, **last)
    for c, k, pixels in ((64, 256, 56), (256, 64, 56), (1024, 256, 14)):
        directions = {"forward": pointwise, "both": None}
        yield layer(f"1x1 {c}->{k} @{pixels}", (64, c, pixels, pixels), k, 1, directions, **last)
    both = {"forward": stem, "both": None}
    yield layer("ResNet stem", (64, 3, 224, 224), 64, 7, both, image=True, stride=2, padding=3, **last)
    yield layer("VGG first 3->64 @224", (64, 3, 224, 224), 64, 3, both, image=True, padding=1, **last)
    yield layer("AlexNet first", (256, 3, 227, 227), 96, 11, both, image=True, stride=4, **last)
    depthwise = {"forward": Goal(2.0, 2.0), "both": None}
    yield layer("depthwise 3x3 144 @56", (64, 144, 56, 56), 144, 3, depthwise, padding=1, groups=144, **last)
    yield layer("depthwise 7x7 96 @56", (64, 96, 56, 56), 96, 7, depthwise, padding=3, groups=96, **last)
    yield layer("LeNet first and pool", (256, 1, 28, 28), 6, 5, both, image=True, pool_kernel_size=2)
    yield layer("STN first 1->16 5x5 @42", (256, 1, 42, 42), 16, 5, both, padding=2)
