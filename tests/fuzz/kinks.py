"""What no rule can judge.

Where a derivative jumps, rounding decides on which side a value falls. Where an activation is saturated,
torch's derivative is rounding alone, in float64 too. Where a softmax is saturated in every row, all of
torch's gradients are exact but for values next to nothing. At NaN torch's elu on a CPU has two derivatives:
NaN in whole vectors, the incoming one in the values that are left over.
"""

import torch
from fuzz.examples import Example, double
from namesakes import NAMESAKES, tps_grid
from torch import Tensor
from torch.nn.modules.utils import _pair


def near_a_kink(example: Example, drawn: dict[str, Tensor]) -> bool:
    """Whether a value of what was drawn lies within rounding of a kink."""
    tensors = double(drawn)
    if example.op == "affine_grid_sample":
        size, align_corners = list(example.options["size"]), example.options["align_corners"]
        grid = torch.nn.functional.affine_grid(tensors["theta"], size, align_corners)
        return any(_jumps(axis, 1e-5) for axis in _pixels(grid, tensors["input"], align_corners))
    if example.op == "tps_grid_sample":
        return _spline_jumps(tensors, example.options)
    if example.op == "cross_entropy":
        return _saturated(tensors["input"])
    activation = example.options.get("activation")
    if activation == "elu" and not all(bool(t.isfinite().all()) for t in tensors.values()):
        return True
    if activation not in ("relu", "leaky_relu", "elu", "sigmoid", "tanh"):
        return False
    if example.op == "batch_norm":
        tensors = {"running_mean": None, "running_var": None} | tensors
    try:
        before = NAMESAKES[example.op](**tensors, **(example.options | {"activation": None}))
    except Exception:  # to be rejected
        return False
    if activation == "elu":  # below that a derivative is no normal number
        return bool((before < -80).any())
    finite = before[before.isfinite()].abs()
    if activation in ("sigmoid", "tanh"):  # derived from the output: where it is 1, float64 is no oracle
        return bool((finite > 12).any())
    return bool(finite.numel() and (finite < 1e-5 * finite.max()).any())


def crashes_torch(example: Example) -> bool:
    """Whole windows in the padding: there oneDNN's bfloat16 convolution (torch 2.13) crashes."""
    if example.op != "conv2d" or example.inputs["input"].dtype != torch.bfloat16:
        return False
    if isinstance(example.options["padding"], str):
        return False
    padding, dilation = (_pair(example.options[name]) for name in ("padding", "dilation"))
    window = example.inputs["weight"].shape[2:]
    return any(p > d * (k - 1) for p, d, k in zip(padding, dilation, window, strict=False))


def _saturated(logits: Tensor) -> bool:
    """Whether all rows give one class everything, to 1e-6."""
    if logits.dim() == 0 or logits.numel() == 0:
        return False
    classes = min(1, logits.dim() - 1)
    return bool((logits.softmax(classes).amax(classes) > 1 - 1e-6).all())


def _spline_jumps(tensors: dict[str, Tensor], options: dict) -> bool:
    """Rounding moves a spline the further, the nearer its control points lie to each other."""
    points, controls = tensors["points"], tensors.get("control_points")
    size, align_corners = options["size"], options["align_corners"]
    grid = tps_grid(points, size, controls, align_corners)
    rounding = float((grid - tps_grid(points.float(), size, controls, align_corners)).abs().max())
    within = 1e-5 + 10 * rounding * max(tensors["input"].shape[2:])
    return rounding > 1e-3 or any(
        _jumps(axis, within) for axis in _pixels(grid, tensors["input"], align_corners)
    )


def _pixels(grid: Tensor, image: Tensor, align_corners: bool) -> list[Tensor]:
    """Where the samples fall, in pixels, x and y."""
    extents = image.shape[3], image.shape[2]
    if align_corners:
        return [(grid[..., i] + 1) / 2 * (extents[i] - 1) for i in (0, 1)]
    return [((grid[..., i] + 1) * extents[i] - 1) / 2 for i in (0, 1)]


def _jumps(coordinates: Tensor, rounding: float) -> bool:
    """Pixels meet at whole coordinates, nearest ones and edges at halves."""
    distance = (2 * coordinates - (2 * coordinates).round()).abs()
    return bool((distance < rounding * coordinates.abs().clamp(min=1)).any())
