"""What the fuzzer draws: a call of an op with any shapes, arguments, dtypes, memory layouts and values.

One strategy per op, `EXAMPLES[op]`; a new op adds one. Arguments are drawn without regard to whether torch
accepts them together: what it rejects is to be rejected alike.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

LAYOUTS = ("contiguous", "channels_last", "strided", "transposed", "reversed axes", "expanded", "offset")


@dataclass(frozen=True)
class Input:
    """A tensor to draw: ``values`` names a row of VALUES, or is a range of integers (classes)."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    values: str | tuple[int, int, int] = "normal"
    grad: bool = True
    scale: float = 1.0

    def draw(self, generator: torch.Generator, nudge: torch.Generator | None = None) -> Tensor:
        """Numbers from ``generator``; ``nudge`` moves each a little: a rounding, and 1e-5 at least."""
        if isinstance(self.values, tuple):
            low, high, ignored = self.values
            drawn = torch.randint(low, high, self.shape, generator=generator)
            drawn = drawn.where(torch.rand(self.shape, generator=generator) < 0.8, ignored)
            return lay_out(drawn.to(self.dtype), self.layout)
        drawn = VALUES[self.values](torch.randn(self.shape, generator=generator), generator) * self.scale
        drawn = drawn.to(self.dtype)
        if nudge is not None:
            way = torch.empty(drawn.shape).uniform_(-1, 1, generator=nudge)
            drawn *= 1 + way * max(torch.finfo(self.dtype).eps, 1e-5)
        return lay_out(drawn, self.layout)


@dataclass(frozen=True)
class Example:
    """A call of ``op``: its tensors by argument, its other arguments, and how the gradient comes in."""

    op: str
    inputs: dict[str, Input]
    options: dict[str, Any] = field(default_factory=dict)
    incoming: str = "contiguous"
    updated: tuple[str, ...] = ()


def draw(example: Example, seed: int, nudge: int | None = None) -> dict[str, Tensor]:
    """The tensors of ``example``; those with a ``nudge`` lie next to those without."""
    generator = torch.Generator().manual_seed(seed)
    nudging = None if nudge is None else torch.Generator().manual_seed(nudge)
    return {name: each.draw(generator, nudging) for name, each in example.inputs.items()}


def double(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.double() if t.is_floating_point() else t for name, t in tensors.items()}


def _specials(x: Tensor, generator: torch.Generator) -> Tensor:
    """A few NaN and infinities among normal numbers."""
    chance = torch.rand(x.shape, generator=generator)
    for value, low in ((float("nan"), 0.0), (float("inf"), 0.02), (float("-inf"), 0.03)):
        x = x.where((chance < low) | (chance >= low + 0.01), value)
    return x


#: What normal numbers become. A probability is one along axis 1 of its tensor.
VALUES = {
    "normal": lambda x, _: x,
    "ties": lambda x, _: x.round(),
    "far": lambda x, _: x * 0.1 + 100,
    "tiny": lambda x, _: x * 1e-6,
    "large": lambda x, _: x * 1e3,
    "apart": lambda x, _: spiral(len(x)) + 0.05 * x.clamp(-1, 1),
    "constant": lambda x, _: torch.full_like(x, 0.75),
    "special": _specials,
    "positive": lambda x, _: x.abs() + 0.5,
    "probability": lambda x, _: x.softmax(min(1, x.dim() - 1)),
}


def spiral(count: int) -> Tensor:
    """``[count, 2]`` points in the unit disc, about as far from each other as they can be."""
    k = torch.arange(count)
    radius, angle = ((k + 0.5) / count).sqrt(), k * 2.39996
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1)


def lay_out(x: Tensor, layout: str) -> Tensor:
    """The same values (``expanded``: those of the first slice) in another layout."""
    if layout == "channels_last" and x.dim() in (4, 5):
        return x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)
    hole = float("nan") if x.is_floating_point() else 77
    if layout == "strided" and x.dim():
        wide = x.new_full((*x.shape[:-1], 2 * x.shape[-1] + 1), hole)
        wide[..., 1::2] = x
        return wide[..., 1::2]
    if layout == "transposed" and x.dim() > 1:
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "reversed axes":
        axes = range(x.dim() - 1, -1, -1)
        return x.permute(*axes).contiguous().permute(*axes) if x.dim() else x
    if layout == "expanded" and x.dim() and x.shape[0]:
        return x[:1].expand_as(x)
    if layout == "offset":
        frame = x.new_full((x.numel() + 8,), hole)
        frame[1 : 1 + x.numel()] = x.flatten()
        return frame[1 : 1 + x.numel()].view(x.shape)
    return x


layouts = st.sampled_from(LAYOUTS)
dtypes = st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16])
values = st.sampled_from(
    ["normal", "normal", "normal", "ties", "far", "tiny", "large", "constant", "special"]
)
channels = st.one_of(st.integers(1, 9), st.sampled_from([15, 16, 17, 31, 32, 33, 48]))
flags = st.booleans()
either = st.sampled_from
activations = either([None, None, "relu", "relu", "leaky_relu", "elu", "sigmoid", "tanh", "softplus"])


def extents(most: int = 14):
    """Of an image: small ones, and some about the width of a vector."""
    return st.one_of(st.integers(1, most), either([1, 2, 15, 16, 17, 31, 33]))


def pairs(elements):
    """An int, or a (height, width)."""
    return st.one_of(elements, st.tuples(elements, elements))


@st.composite
def conv2d(draw) -> Example:
    dtype, groups = draw(dtypes), draw(either([1, 1, 1, 2, 3, 4]))
    per_group, depthwise = draw(channels), draw(either([False, False, False, True]))
    if depthwise:
        groups, per_group = draw(channels), 1
    c, k = per_group * groups, groups * draw(either([1, 1, 2]) if depthwise else channels)
    window = (draw(either([1, 2, 3, 3, 4, 5, 7])), draw(either([1, 2, 3, 3, 4, 5, 7])))
    n = draw(st.integers(0, 3))
    image = draw(extents()), draw(extents())
    if c * k * n * image[0] * image[1] > 60_000:  # keep a sample cheap
        n, image = min(n, 1), (min(image[0], 9), min(image[1], 9))
    batched = draw(either([True, True, True, False]))
    kind = draw(values)
    inputs = {
        "input": Input((n, c, *image) if batched else (c, *image), dtype, draw(layouts), kind),
        "weight": Input((k, c // groups, *window), dtype, draw(layouts), scale=0.2),
    }
    if draw(flags):
        inputs["bias"] = Input((k,), dtype, draw(layouts))
    options = {
        "stride": draw(pairs(st.integers(1, 3))),
        "padding": draw(st.one_of(pairs(st.integers(0, 3)), either(["same", "valid"]))),
        "dilation": draw(pairs(st.integers(1, 3))),
        "groups": groups,
        "activation": draw(activations),
    }
    return Example("conv2d", inputs, options, draw(layouts))


@st.composite
def batch_norm(draw) -> Example:
    dtype, c = draw(dtypes), draw(channels)
    shape = (draw(st.integers(0, 6)), c, *(draw(extents(9)) for _ in range(draw(st.integers(0, 3)))))
    if torch.Size(shape).numel() > 20_000:
        shape = (*shape[:2], *(min(extent, 9) for extent in shape[2:]))
    own = draw(either([torch.float32, dtype]))
    training = draw(flags)
    inputs = {"input": Input(shape, dtype, draw(layouts), draw(values))}
    running = not training or draw(flags)
    for name, kind in (("running_mean", "normal"), ("running_var", "positive")):
        if running:
            inputs[name] = Input((c,), own, values=kind, grad=False)
    for name in ("weight", "bias"):
        if draw(either([True, True, True, False])):
            inputs[name] = Input((c,), own, draw(layouts))
    if draw(either([False, False, True])):
        inputs["residual"] = Input(shape, dtype, draw(layouts))
    options = {
        "training": training,
        "momentum": draw(either([0.1, 0.0, 1.0, 0.3])),
        "eps": draw(either([1e-5, 1e-3, 0.1])),
        "activation": draw(activations),
    }
    updated = ("running_mean", "running_var") if running and training else ()
    return Example("batch_norm", inputs, options, draw(layouts), updated)


@st.composite
def cross_entropy(draw) -> Example:
    dtype = draw(dtypes)
    c = draw(st.one_of(st.integers(1, 20), either([31, 32, 33, 63, 65, 127, 128, 129, 257, 1000, 1025])))
    extra = () if c > 200 else tuple(draw(st.integers(1, 7)) for _ in range(draw(st.integers(0, 3))))
    n = draw(st.integers(0, 8))
    shape = (c,) if draw(either([False, False, False, True])) else (n, c, *extra)
    rows = () if len(shape) == 1 else (n, *extra)
    inputs = {"input": Input(shape, dtype, draw(layouts), draw(values), scale=draw(either([1.0, 5.0])))}
    ignore_index, smoothed = draw(either([-100, 0, 255, -1])), draw(flags)
    if draw(either([True, True, False])):
        # torch takes uint8 for [N, C] and [C] without smoothing, we always
        narrow = c <= 256 and ignore_index >= 0 and not extra and not smoothed and draw(flags)
        classes = (0, c, draw(either([0, 0, ignore_index, ignore_index, c])))  # c: out of range
        inputs["target"] = Input(rows, torch.uint8 if narrow else torch.int64, draw(layouts), classes, False)
    else:
        inputs["target"] = Input(shape, dtype, draw(layouts), "probability", grad=False)
        ignore_index = draw(either([-100, -100, -100, 0]))
    if draw(flags):
        inputs["weight"] = Input((c,), dtype, draw(layouts), "positive", grad=False)
    options = {
        "reduction": draw(either(["mean", "mean", "sum", "none"])),
        "label_smoothing": draw(either([0.1, 1.0])) if smoothed else 0.0,
        "ignore_index": ignore_index,
    }
    return Example("cross_entropy", inputs, options, draw(layouts))


@st.composite
def max_pool2d(draw) -> Example:
    image = draw(extents(20)), draw(extents(20))
    shape = (draw(st.integers(0, 3)), draw(channels), *image)
    shape = shape if draw(either([True, True, True, False])) else shape[1:]
    window = pairs(either([1, 2, 2, 3, 3, 4, 5, 7]))
    padding = draw(pairs(either([0, 0, 1, 1, 2, 3])))
    # torch writes out of bounds where a window has only padding: regressions/test_window_of_padding.py
    dilation = draw(pairs(either([1, 1, 1, 2, 3]))) if padding in (0, (0, 0)) else 1
    options = {
        "kernel_size": draw(window),
        "stride": draw(st.one_of(st.none(), pairs(st.integers(1, 4)))),
        "padding": padding,
        "dilation": dilation,
        "ceil_mode": draw(flags),
        "return_indices": draw(flags),
    }
    return Example(
        "max_pool2d",
        {"input": Input(shape, draw(dtypes), draw(layouts), draw(values))},
        options,
        draw(layouts),
    )


@st.composite
def affine_grid_sample(draw) -> Example:
    n, c = draw(st.integers(1, 3)), draw(either([1, 2, 3, 4, 5, 8, 9, 16, 17]))
    shared = draw(either([False, False, True]))
    shape = (1 if shared else n, c, draw(extents()), draw(extents()))
    size = (n, c, draw(extents()), draw(extents()))
    theta = Input((n, 2, 3), draw(either([torch.float32, torch.float32, torch.bfloat16])), draw(layouts))
    kind = draw(either(["normal", "normal", "ties", "far", "large", "special"]))
    inputs = {
        "input": Input(shape, draw(dtypes), draw(layouts), kind),
        "theta": Input(theta.shape, theta.dtype, theta.layout, scale=draw(either([0.3, 1.0, 4.0]))),
    }
    options = {
        "size": size,
        "mode": draw(either(["bilinear", "bilinear", "nearest"])),
        "padding_mode": draw(either(["zeros", "border", "reflection"])),
        "align_corners": draw(flags),
    }
    return Example("affine_grid_sample", inputs, options, draw(layouts))


@st.composite
def tps_grid_sample(draw) -> Example:
    n, c = draw(st.integers(1, 3)), draw(either([1, 2, 3, 4, 5, 8, 9, 16, 17]))
    shared, regular = draw(either([False, False, True])), draw(either([True, True, False]))
    count = draw(either([4, 9, 9, 16])) if regular else draw(st.integers(4, 12))
    kind = draw(either(["normal", "normal", "ties", "far", "large", "special"]))
    shape = (1 if shared else n, c, draw(extents()), draw(extents()))
    inputs = {
        "input": Input(shape, draw(dtypes), draw(layouts), kind),
        "points": Input(
            (n, count, 2),
            draw(either([torch.float32, torch.float32, torch.bfloat16])),
            draw(layouts),
            scale=draw(either([0.3, 1.0, 2.0])),
        ),
    }
    if not regular:  # near each other both sides are off, by luck
        layout = draw(either(LAYOUTS[:4]))
        inputs["control_points"] = Input((count, 2), torch.float32, layout, "apart", grad=False)
    options = {
        "size": (n, c, draw(extents()), draw(extents())),
        "mode": draw(either(["bilinear", "bilinear", "nearest"])),
        "padding_mode": draw(either(["zeros", "border", "reflection"])),
        "align_corners": draw(flags),
    }
    return Example("tps_grid_sample", inputs, options, draw(layouts))


EXAMPLES = {
    "conv2d": conv2d(),
    "batch_norm": batch_norm(),
    "cross_entropy": cross_entropy(),
    "max_pool2d": max_pool2d(),
    "affine_grid_sample": affine_grid_sample(),
    "tps_grid_sample": tps_grid_sample(),
}
