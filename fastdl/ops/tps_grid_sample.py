"""tps_grid_sample: an image sampled through a thin-plate spline, the grid never in memory.

The spline through the points is linear in them: their coefficients are one small matrix product, which plain
torch does and differentiates. The kernels take it from there. Saved for backward: the input, the coefficients
and the control points.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import backends, reference
from . import _sampling
from ._common import (
    PLAIN,
    check_tensors,
    complaint,
    differentiate,
    library,
    needs_grad,
    register,
    short_way,
    wanted,
)

OP = "tps_grid_sample"

#: More control points than that have no kernel.
MOST_POINTS = 256


def tps_grid_sample(
    input: Tensor,
    points: Tensor,
    size: Any,
    control_points: Tensor | None,
    mode: str,
    padding_mode: str,
    align_corners: bool | None,
) -> Tensor:
    """``fastdl.functional.tps_grid_sample`` after its defaults."""
    out = _short_way(input, points, size, control_points, mode, padding_mode, bool(align_corners))
    if out is not None:
        return out
    check_tensors(OP, optional=("control_points",), input=input, points=points, control_points=control_points)
    align_corners = bool(align_corners)
    _check(input, points, size, control_points, mode, padding_mode)

    empty = input.numel() == 0 or points.numel() == 0
    unsupported = _unsupported(input, points, control_points, mode)
    backend = backends.choose(OP, input.device, input.dtype, unsupported, empty, (input,)).backend
    dtype = _sampling.output_dtype(input)
    precise = torch.promote_types(torch.promote_types(input.dtype, points.dtype), torch.float32)
    with reference.no_autocast(input):
        if control_points is None:
            control_points, system = _regular(points, precise)
        else:
            system = reference.tps_system(control_points)
            control_points = control_points.to(precise)
        # in float64: the coefficients are small differences of large sums
        theta = torch.matmul(points.double().transpose(1, 2), system).to(precise)
        if backend == "reference":
            options = (size, mode, padding_mode, align_corners)
            return reference.tps_grid_sample(input.to(dtype), theta, control_points, *options)

    args = (input, theta, control_points, [*size[2:]], mode, padding_mode, align_corners, dtype, backend)
    return _TPSGridSample.apply(*args) if needs_grad(input, theta) else forward_op(*args)


def _short_way(input: Any, points: Any, size: Any, controls: Any, *options: Any) -> Tensor | None:
    """A plain call with regular control points."""
    if controls is not None or not isinstance(size, (tuple, list)) or len(size) != 4:
        return None
    if type(points) not in PLAIN or _traced(points) or points.dim() != 3:
        return None
    count = points.shape[1]
    if count > MOST_POINTS or count < 4 or math.isqrt(count) ** 2 != count:
        return None
    return short_way(OP, input, points, *_kept(count, torch.float32, points.device), *size, *options)


def regular_points(count: int) -> Tensor:
    """``[count, 2]``: x and y of a regular square grid from -1 to 1, row by row, in float64."""
    line = torch.linspace(-1, 1, math.isqrt(count), dtype=torch.float64, device="cpu")
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], 1)


def _regular(points: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The regular control points of ``points`` in ``dtype`` and their system in float64."""
    args = operator.index(points.shape[1]), dtype, points.device  # a symbolic size becomes a number
    if _traced(points):
        return torch.ops.fastdl.tps_regular(*args)
    return _kept(*args)


@functools.cache
def _kept(count: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Made once, on the CPU in float64."""
    with torch.inference_mode(False), torch.no_grad():
        controls = regular_points(count)
        system = reference.tps_system(controls).contiguous()
        return controls.to(dtype).to(device), system.to(device)


# What is traced asks an op: a tensor of the cache would not mix with its own.
library.define("tps_regular(int count, ScalarType dtype, Device device) -> (Tensor, Tensor)")
library.impl("tps_regular", lambda *args: tuple(t.clone() for t in _kept(*args)), "BackendSelect")


@torch.library.register_fake("fastdl::tps_regular", lib=library)
def _fake(count: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    controls = torch.empty(count, 2, dtype=dtype, device=device)
    return controls, torch.empty(count, 3 + count, dtype=torch.float64, device=device)


def _check(
    input: Tensor, points: Tensor, size: Any, controls: Tensor | None, mode: str, padding_mode: str
) -> None:
    _sampling.check_modes(OP, mode, padding_mode)
    for name, tensor in (("points", points), ("control_points", controls)):
        if tensor is not None and not tensor.is_floating_point():
            raise ValueError(complaint(OP, f"{name} of a floating-point dtype", tensor.dtype))
    if not isinstance(size, (tuple, list)) or len(size) != 4:
        raise NotImplementedError(complaint(OP, "size to be (N, C, H, W)", size))
    if points.dim() != 3 or points.shape[2] != 2:
        raise ValueError(complaint(OP, "points of shape [N, K, 2]", list(points.shape)))
    count = points.shape[1]
    if controls is None and (count < 4 or math.isqrt(operator.index(count)) ** 2 != count):
        expected = "points of a square grid, [N, 4, 2], [N, 9, 2], ..."
        raise ValueError(complaint(OP, expected, list(points.shape), "else pass control_points"))
    if controls is not None and (controls.shape != (count, 2) or count < 3):
        expected = f"control_points of shape [{max(count, 3)}, 2], like points"
        raise ValueError(complaint(OP, expected, list(controls.shape)))
    if controls is not None and _on_a_line(controls):
        raise ValueError(complaint(OP, "control_points that do not lie on one line", controls.tolist()))
    _sampling.check_sizes(OP, input, "points", points.shape[0], size)


def _on_a_line(controls: Tensor) -> bool:
    """Whether no spline goes through them; not asked where nobody can wait for the answer."""
    if controls.device.type != "cpu" or _traced(controls) or torch._C._are_functorch_transforms_active():
        return False
    centred = (controls - controls.mean(0)).detach().double()
    spread = centred.t() @ centred
    return bool(spread.det() <= 1e-12 * spread.trace() ** 2)


def _traced(tensor: Tensor) -> bool:
    """Whether it may stand for others, as under Dynamo, with FakeTensor or make_fx."""
    plain = type(tensor) in PLAIN
    return torch.compiler.is_compiling() or not plain or torch._C._len_torch_dispatch_stack() > 0


def _unsupported(input: Tensor, points: Tensor, controls: Tensor | None, mode: str) -> str | None:
    if points.dtype == torch.float64 or (controls is not None and controls.dtype == torch.float64):
        return "points in float64 have no kernel"
    if points.shape[1] > MOST_POINTS:
        return f"more than {MOST_POINTS} control points have no kernel"
    if controls is not None and needs_grad(controls):
        return "the gradient of control_points has no kernel"
    return _sampling.unsupported(mode, input, points)


class Forward(NamedTuple):
    """The arguments of tps_grid_sample_forward."""

    x: Tensor  # [N or 1, C, H, W]
    theta: Tensor  # [N, 2, 3 + K] float32
    control_points: Tensor  # [K, 2] float32
    size: list[int]  # [OH, OW]
    mode: str
    padding_mode: str
    align_corners: bool
    dtype: torch.dtype  # of the output
    backend: str


class Backward(NamedTuple):
    """The arguments of tps_grid_sample_backward."""

    grad_out: Tensor  # [N, C, OH, OW]
    x: Tensor  # [N or 1, C, H, W]
    theta: Tensor  # [N, 2, 3 + K] float32
    control_points: Tensor  # [K, 2] float32
    mode: str
    padding_mode: str
    align_corners: bool
    output_mask: list[bool]  # which of grad_x, grad_theta are wanted
    backend: str


def _options(a: Forward | Backward) -> dict[str, Any]:
    return {"mode": a.mode, "padding_mode": a.padding_mode, "align_corners": a.align_corners}


def _allocate_forward(a: Forward) -> Tensor:
    """out [N, C, OH, OW], contiguous whatever x is, as grid_sample's."""
    return a.x.new_empty((a.theta.shape[0], a.x.shape[1], *a.size), dtype=a.dtype)


def _fill_forward(out: Tensor, a: Forward) -> None:
    backends.kernel(a.backend, OP).forward(a.x, a.theta, a.control_points, out, **_options(a))


def _allocate_backward(a: Backward) -> tuple[Tensor, Tensor]:
    """grad_x of x's shape and grad_theta [N, 2, 3 + K], both contiguous."""
    return (
        a.x.new_empty(a.x.shape if a.output_mask[0] else 0),
        a.theta.new_empty(a.theta.shape if a.output_mask[1] else 0),
    )


def _fill_backward(outputs: tuple[Tensor, Tensor], a: Backward) -> None:
    backends.kernel(a.backend, OP).backward(
        a.grad_out, a.x, a.theta, a.control_points, *map(wanted, outputs, a.output_mask), **_options(a)
    )


forward_op = register(
    "tps_grid_sample_forward",
    "(Tensor x, Tensor theta, Tensor control_points, SymInt[] size, str mode, str padding_mode, "
    "bool align_corners, ScalarType dtype, str backend) -> Tensor",
    Forward,
    _allocate_forward,
    _fill_forward,
)
backward_op = register(
    "tps_grid_sample_backward",
    "(Tensor grad_out, Tensor x, Tensor theta, Tensor control_points, str mode, str padding_mode, "
    "bool align_corners, bool[] output_mask, str backend) -> (Tensor, Tensor)",
    Backward,
    _allocate_backward,
    _fill_backward,
)


class _TPSGridSample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        a = Forward(*args)
        ctx.save_for_backward(a.x, a.theta, a.control_points)
        ctx.options = (a.mode, a.padding_mode, a.align_corners)
        ctx.size, ctx.backend = a.size, a.backend
        return forward_op(*args)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        x, theta, control_points = ctx.saved_tensors
        needs = [ctx.needs_input_grad[i] for i in range(2)]
        if torch.is_grad_enabled():
            grads = differentiable_backward(grad_out, x, theta, control_points, ctx.size, *ctx.options)
        else:
            found = backward_op(grad_out, x, theta, control_points, *ctx.options, needs, ctx.backend)
            grads = [*map(wanted, found, needs)]
        return *grads, *[None] * (len(Forward._fields) - 2)


def differentiable_backward(
    grad_out: Tensor,
    x: Tensor,
    theta: Tensor,
    control_points: Tensor,
    size: Sequence[int],
    mode: str,
    padding_mode: str,
    align_corners: bool,
) -> list[Tensor | None]:
    """The gradients of x and theta by plain torch, in the output's dtype: they can be differentiated."""
    whole = (theta.shape[0], x.shape[1], *size)
    with reference.no_autocast(x):
        y = reference.tps_grid_sample(
            x.to(grad_out.dtype), theta, control_points, whole, mode, padding_mode, align_corners
        )
    return differentiate(y, [x, theta], grad_out)
