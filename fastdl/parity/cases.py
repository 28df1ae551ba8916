"""The table of cases that ``fastdl parity`` and the tests share; every backend runs every row.

A case is a call of a function of ``fastdl.functional``: named inputs drawn from a generator, the other
arguments, and the inputs whose gradients are compared. The ``why`` says what the row is there to catch.
Sizes are small because interpreted Triton runs a few million elements per second.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..ops.tps_grid_sample import regular_points

Draw = Callable[[torch.Generator], Tensor]


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
        op: its stem.
        name: unique within the op.
        inputs: name to a function that draws the float32 or integer tensor.
        options: the other keyword arguments.
        grads: the inputs whose gradients are compared.
        image: the inputs whose memory layout is varied.
        keep: the inputs that stay float32 in half precision, as in a model under autocast.
        updated: the inputs that the call updates in place, compared after it.
        why: what the row catches.
    """

    op: str
    name: str
    inputs: dict[str, Draw]
    options: dict[str, Any] = field(default_factory=dict)
    grads: tuple[str, ...] = ()
    image: tuple[str, ...] = ("input",)
    keep: tuple[str, ...] = ()
    updated: tuple[str, ...] = ()
    why: str = ""

    def draw(self) -> dict[str, Tensor]:
        """The inputs on the CPU, always the same for this case."""
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.op} {self.name}".encode()))
        return {name: draw(generator) for name, draw in self.inputs.items()}


def randn(*size: int, scale: float = 1.0, shift: float = 0.0) -> Draw:
    """Normal numbers of ``size``."""
    return lambda generator: torch.randn(size, generator=generator) * scale + shift


def uniform(*size: int, low: float = 0.5, high: float = 1.5) -> Draw:
    """Uniform numbers of ``size``."""
    return lambda generator: torch.rand(size, generator=generator) * (high - low) + low


def classes(*size: int, high: int, ignored: int | None = None) -> Draw:
    """Class indices below ``high``; with ``ignored`` every third one is that."""

    def draw(generator: torch.Generator) -> Tensor:
        target = torch.randint(high, size, generator=generator)
        if ignored is not None:
            target.view(-1)[::3] = ignored
        return target

    return draw


def probabilities(*size: int) -> Draw:
    """Distributions over axis 1."""
    return lambda generator: torch.randn(size, generator=generator).softmax(1)


def constant(values: list[Any], *repeat: int) -> Draw:
    """The same numbers every time."""
    return lambda _: torch.tensor(values).repeat(*repeat) if repeat else torch.tensor(values)


def _conv2d() -> list[Case]:
    def case(
        name: str, x: tuple[int, ...], w: tuple[int, ...], why: str, bias: bool = True, **options: Any
    ) -> Case:
        fan_in = w[1] * w[2] * w[3]
        inputs = {"input": randn(*x), "weight": randn(*w, scale=fan_in**-0.5)}
        if bias:
            inputs["bias"] = randn(w[0])
        return Case("conv2d", name, inputs, options, tuple(inputs), why=why)

    return [
        case("lenet 5x5 on 1 channel", (2, 1, 12, 12), (6, 1, 5, 5), "packed k loop", activation="relu"),
        case("3x3", (2, 16, 9, 9), (24, 16, 3, 3), "odd sizes, no activation", padding=1),
        case("3x3 relu, no bias", (1, 20, 8, 8), (16, 20, 3, 3), "k not a multiple of the block",
             bias=False, activation="relu"),
        case("7x7 stride 2 stem", (1, 3, 20, 20), (8, 3, 7, 7), "stride, wide padding", stride=2, padding=3,
             activation="relu"),
        case("1x1", (2, 24, 6, 6), (40, 24, 1, 1), "plain matrix product", activation="relu"),
        case("1x1 stride 2", (2, 16, 7, 7), (8, 16, 1, 1), "untouched input pixels get gradient 0", stride=2),
        case("stride (2, 3), dilation (2, 1)", (1, 6, 13, 15), (10, 6, 3, 2), "nothing symmetric",
             stride=(2, 3), dilation=(2, 1), padding=(2, 1), activation="relu"),
        case("groups", (2, 12, 7, 7), (18, 4, 3, 3), "three groups", groups=3, padding=1, activation="relu"),
        case("depthwise", (2, 10, 9, 9), (10, 1, 3, 3), "one channel per group", groups=10, padding=1,
             activation="relu"),
        case("depthwise x2, 5x5 stride 2", (1, 4, 9, 9), (8, 1, 5, 5), "channel multiplier", groups=4,
             stride=2, padding=2),
        case("same, even kernel", (1, 4, 8, 8), (5, 4, 4, 2), "asymmetric padding", padding="same"),
        case("unbatched", (3, 8, 8), (4, 3, 3, 3), "3-D input", padding="valid"),
        case("1x1 image", (3, 32, 1, 1), (16, 32, 1, 1), "one pixel"),
        *(case(f"activation {name}", (1, 4, 7, 7), (32, 4, 3, 3), "epilogue and its derivative",
               activation=name) for name in ("leaky_relu", "elu", "sigmoid", "tanh", "softplus")),
    ]  # fmt: skip


def _batch_norm() -> list[Case]:
    def case(
        name: str,
        x: tuple[int, ...],
        why: str,
        affine: bool = True,
        running: bool = True,
        residual: bool = False,
        scale: float = 1.0,
        shift: float = 0.5,
        training: bool = True,
        **options: Any,
    ) -> Case:
        channels = x[1]
        inputs: dict[str, Draw] = {"input": randn(*x, scale=scale, shift=shift)}
        inputs["running_mean"] = randn(channels, shift=shift) if running else (lambda _: None)
        inputs["running_var"] = uniform(channels) if running else (lambda _: None)
        if affine:
            inputs |= {"weight": randn(channels), "bias": randn(channels)}
        if residual:
            inputs["residual"] = randn(*x)
        grads = tuple(n for n in inputs if not n.startswith("running"))
        updated = ("running_mean", "running_var") if running and training else ()
        keep = ("running_mean", "running_var", "weight", "bias")
        options["training"] = training
        return Case("batch_norm", name, inputs, options, grads, ("input", "residual"), keep, updated, why)

    return [
        case("train", (4, 6, 7, 7), "odd spatial size"),
        case("train relu", (4, 8, 6, 6), "mask recomputed", activation="relu"),
        case("train add relu", (4, 8, 5, 5), "one-bit mask", residual=True, activation="relu"),
        case("train add", (2, 5, 6, 6), "residual alone", residual=True),
        case("train, no affine, no running statistics", (3, 4, 6, 6), "every None", False, False),
        case("eval", (3, 6, 5, 5), "running statistics read", training=False),
        case("eval relu", (2, 8, 6, 6), "frozen statistics, trained affine", training=False,
             activation="relu"),
        case("eval add relu", (2, 8, 6, 6), "", residual=True, training=False, activation="relu"),
        case("[N, C]", (12, 10), "rows only", activation="relu"),
        case("[N, C, L]", (4, 6, 33), "1-D", activation="relu"),
        case("[N, C, D, H, W]", (2, 4, 3, 4, 5), "3-D", activation="relu"),
        case("large mean", (4, 4, 8, 8), "cancellation in the variance", scale=0.1, shift=100.0),
        case("momentum 1, eps 0.1", (4, 24, 6, 6), "", momentum=1.0, eps=0.1),
        case("many rows", (64, 20, 8, 8), "split reduction"),
        case("many channels", (2, 24, 2, 2), "channels beyond one block", activation="relu"),
        *(case(f"activation {name}", (2, 16, 6, 6), "recomputed pre-activation", activation=name)
          for name in ("leaky_relu", "elu", "sigmoid", "tanh", "softplus")),
        case("add tanh", (2, 16, 6, 6), "derivative from the saved output", residual=True, activation="tanh"),
    ]  # fmt: skip


def _cross_entropy() -> list[Case]:
    def case(
        name: str,
        x: tuple[int, ...],
        target: Draw,
        why: str,
        weight: bool = False,
        scale: float = 1.0,
        shift: float = 0.0,
        **options: Any,
    ) -> Case:
        inputs = {"input": randn(*x, scale=scale, shift=shift), "target": target}
        if weight:
            inputs["weight"] = uniform(x[1] if len(x) > 1 else x[0])
        return Case("cross_entropy", name, inputs, options, ("input",), why=why)

    t = classes(16, high=10)
    return [
        case("mean", (16, 10), t, "many rows per program"),
        case("sum", (16, 10), t, "", reduction="sum"),
        case("none", (16, 10), t, "a gradient per row", reduction="none"),
        case("weight, smoothing and ignore_index", (16, 10), classes(16, high=10, ignored=-100),
             "all three together", weight=True, label_smoothing=0.1),
        case("ignore_index 3", (16, 10), classes(16, high=10, ignored=3), "a class that is ignored",
             ignore_index=3, reduction="none"),
        case("ignore_index 255", (12, 7), classes(12, high=7, ignored=255), "ignored beyond the classes",
             ignore_index=255),
        case("probabilities", (9, 13), probabilities(9, 13), "soft targets"),
        case("probabilities, weight, smoothing", (9, 13), probabilities(9, 13), "", weight=True,
             label_smoothing=0.2, reduction="none"),
        case("[N, C, H, W]", (2, 4, 5, 6), classes(2, 5, 6, high=4, ignored=-100), "segmentation",
             weight=True),
        case("[N, C, L] probabilities", (2, 5, 11), probabilities(2, 5, 11), "", reduction="sum"),
        case("[C]", (12,), lambda _: torch.tensor(5), "unbatched"),
        case("3000 classes", (5, 3000), classes(5, high=3000), "online softmax over blocks"),
        case("3000 classes, smoothing", (5, 3000), classes(5, high=3000), "", label_smoothing=0.1,
             weight=True),
        case("logits near -1000", (8, 10), classes(8, high=10), "a running maximum that started at 0",
             shift=-1000.0),
        case("logits near 200", (8, 10), classes(8, high=10), "overflow of exp", shift=200.0),
        case("one class", (6, 1), classes(6, high=1), "loss 0"),
    ]  # fmt: skip


def _max_pool2d() -> list[Case]:
    def case(name: str, x: tuple[int, ...], why: str, **options: Any) -> Case:
        return Case("max_pool2d", name, {"input": randn(*x)}, options, ("input",), why=why)

    return [
        case("2x2", (2, 6, 8, 8), "disjoint windows", kernel_size=2),
        case("2x2, odd size", (2, 5, 9, 7), "pixels in no window get 0", kernel_size=2),
        case("3x3 stride 2 padding 1", (2, 6, 9, 9), "overlap, padding never chosen", kernel_size=3, stride=2,
             padding=1),
        case("3x3 stride 1 padding 1", (1, 4, 8, 8), "nine windows per pixel", kernel_size=3, stride=1,
             padding=1),
        case("(3, 2) stride (1, 2) dilation (2, 3)", (1, 4, 12, 13), "nothing symmetric", kernel_size=(3, 2),
             stride=(1, 2), padding=(1, 0), dilation=(2, 3)),
        case("ceil_mode", (1, 4, 10, 11), "windows past the edge", kernel_size=3, stride=2, ceil_mode=True),
        case("stride above kernel", (1, 3, 11, 11), "gaps", kernel_size=2, stride=3),
        case("(64, 1)", (2, 6, 64, 1), "pooling over points", kernel_size=(64, 1)),
        case("(300, 1)", (1, 3, 300, 1), "two bytes per position", kernel_size=(300, 1)),
        case("unbatched", (4, 8, 8), "3-D input", kernel_size=2),
        case("return_indices", (2, 3, 9, 9), "torch's int64 indices", kernel_size=3, stride=2, padding=1,
             return_indices=True),
        Case("max_pool2d", "ties", {"input": lambda g: torch.randint(3, (2, 4, 8, 8), generator=g).float()},
             {"kernel_size": 3, "stride": 2}, ("input",), why="the first maximum gets the gradient"),
    ]  # fmt: skip


def _affine_grid_sample() -> list[Case]:
    def case(
        name: str,
        x: tuple[int, ...],
        theta: list[list[float]],
        why: str,
        batch: int = 2,
        size: tuple[int, int] | None = None,
        grads: tuple[str, ...] = ("input", "theta"),
        **options: Any,
    ) -> Case:
        # a different small shift for each sample, so that no coordinate falls on a pixel by chance
        def thetas(generator: torch.Generator) -> Tensor:
            jitter = torch.rand(batch, 2, 3, generator=generator) * (0.02 if "theta" in grads else 0.0)
            return torch.tensor(theta) + jitter

        options["size"] = (batch, x[1], *(size or x[2:]))
        inputs = {"input": randn(*x), "theta": thetas}
        return Case("affine_grid_sample", name, inputs, options, grads, keep=("theta",), why=why)

    turned = [[0.8, -0.45, 0.1], [0.5, 0.85, -0.15]]
    return [
        case("rotation", (2, 3, 10, 12), turned, "the usual transformer"),
        case("rotation, align_corners", (2, 3, 10, 12), turned, "", align_corners=True),
        case("identity", (2, 2, 9, 9), [[1.0, 0, 0], [0, 1.0, 0]], "coordinates on pixels", grads=("input",)),
        case("zoom in", (2, 1, 9, 9), [[0.3, 0.05, 0.2], [0, 0.3, -0.1]], "many outputs per input pixel"),
        case("zoom out", (2, 2, 12, 12), [[3.0, 0.2, 0.2], [-0.1, 3.0, -0.1]], "most samples outside"),
        case("border", (2, 2, 8, 9), [[1.5, -0.4, 0.3], [0.6, 1.4, 0.2]], "", padding_mode="border"),
        case("reflection", (2, 2, 8, 9), [[1.8, -0.4, 0.3], [0.6, 1.9, 0.2]], "", padding_mode="reflection"),
        case("reflection, align_corners", (2, 2, 8, 9), [[1.8, -0.4, 0.3], [0.6, 1.9, 0.2]], "",
             padding_mode="reflection", align_corners=True),
        case("nearest", (2, 3, 9, 9), [[0.81, -0.43, 0.107], [0.47, 0.83, -0.153]], "no sample halfway",
             grads=("input",), mode="nearest"),
        case("one image, three thetas", (1, 2, 9, 9), turned, "broadcast", batch=3),
        case("larger output", (2, 2, 6, 6), turned, "size of its own", size=(11, 9)),
        case("flip", (2, 2, 7, 7), [[-0.95, 0.0, 0.05], [0.03, 0.9, 0.05]], "negative determinant"),
        case("all zero theta", (2, 2, 7, 7), [[0.0, 0, 0.13], [0, 0.0, -0.27]], "singular: one point",
             grads=("input",)),
        case("many channels", (1, 40, 6, 6), turned, "channels beyond one block", batch=1),
    ]  # fmt: skip


def _tps_grid_sample() -> list[Case]:
    def case(
        name: str,
        x: tuple[int, ...],
        why: str,
        batch: int = 4,
        side: int = 3,
        scale: float = 1.0,
        bend: float = 0.2,
        contrast: float = 1.0,
        size: tuple[int, int] | None = None,
        grads: tuple[str, ...] = ("input", "points"),
        controls: Draw | None = None,
        **options: Any,
    ) -> Case:
        # of four samples: the gradient of a few points alone hangs on torch's luck with roundings
        # a regular grid, turned a little, scaled, and every point moved at random
        def points(generator: torch.Generator) -> Tensor:
            line = torch.linspace(-scale, scale, side)
            y, x = torch.meshgrid(line, line, indexing="ij")
            grid = torch.stack([0.9 * x - 0.3 * y + 0.07, 0.35 * x + 0.85 * y - 0.11], 2).view(-1, 2)
            return grid + bend * torch.randn(batch, side * side, 2, generator=generator)

        options["size"] = (batch, x[1], *(size or x[2:]))
        inputs = {"input": randn(*x, scale=contrast), "points": points}
        if controls is not None:
            inputs["control_points"] = controls
        keep = ("points", "control_points")
        return Case("tps_grid_sample", name, inputs, options, grads, keep=keep, why=why)

    return [
        case("3x3 points", (4, 3, 10, 12), "the usual warp"),
        case("3x3 points, align_corners", (4, 3, 10, 12), "", align_corners=True),
        case("2x2 points", (4, 2, 9, 9), "few control points", side=2),
        case("5x5 points", (1, 2, 9, 11), "more of them than a vector has lanes", batch=1, side=5, bend=0.05),
        case("points of one's own", (4, 2, 9, 10), "not a square grid, not regular",
             controls=lambda g: regular_points(9).float() + 0.3 * torch.rand(9, 2, generator=g)),
        case("strong bend", (4, 2, 9, 9), "folds: an input pixel is sampled from several places", bend=0.6),
        case("zoom in", (4, 1, 9, 9), "many outputs per input pixel", scale=0.3, bend=0.05),
        case("zoom out", (4, 2, 12, 12), "most samples outside", scale=3.0),
        case("border", (4, 2, 8, 9), "", scale=1.5, padding_mode="border"),
        case("reflection", (4, 2, 8, 9), "", scale=1.8, padding_mode="reflection"),
        case("reflection, align_corners", (4, 2, 8, 9), "", scale=1.8, padding_mode="reflection",
             align_corners=True),
        case("nearest", (4, 3, 9, 9), "", grads=("input",), mode="nearest"),
        case("one image, three splines", (1, 2, 9, 9), "broadcast", batch=3),
        case("larger output", (4, 2, 6, 6), "size of its own", size=(11, 9)),
        case("many channels", (1, 40, 6, 6), "channels beyond one block", batch=1),
        case("many tiles", (1, 1, 24, 23), "several blocks of pixels", batch=1, contrast=0.3),
    ]  # fmt: skip


CASES: tuple[Case, ...] = (
    *_conv2d(),
    *_batch_norm(),
    *_cross_entropy(),
    *_max_pool2d(),
    *_affine_grid_sample(),
    *_tps_grid_sample(),
)
