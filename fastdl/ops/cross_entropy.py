"""cross_entropy: one read of the logits forward; one float32 per row is saved, never the softmax."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import backends, reference
from . import cross_entropy_in_forward as in_forward
from ._common import (
    autocast_dtype,
    check_tensors,
    complaint,
    differentiate,
    needs_grad,
    register,
    short_way,
    unsupported,
)

OP = "cross_entropy"


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    gradient_in_forward: bool,
    inplace: bool,
) -> Tensor:
    """``fastdl.functional.cross_entropy`` after its defaults and legacy arguments."""
    if not gradient_in_forward and not inplace:
        loss = short_way(OP, input, target, weight, ignore_index, reduction, label_smoothing)
        if loss is not None:
            return loss
    check_tensors(OP, ("weight",), input=input, target=target, weight=weight)
    _check(input, target, weight, ignore_index, reduction, label_smoothing)
    in_forward.check(input, gradient_in_forward, inplace, reduction)

    empty = input.numel() == 0
    why_not = _unsupported(input, target, weight)
    backend = backends.choose(OP, input.device, input.dtype, why_not, empty, (input,)).backend
    if backend == "reference":
        try:
            return reference.cross_entropy(input, target, weight, ignore_index, reduction, label_smoothing)
        except IndexError:
            _check_range(target, input.shape[_class_axis(input)], ignore_index)
            raise

    # [N, C, D] logits, [N, D] or [N, C, D] targets, whatever the number of dimensions
    n, c = (1, input.shape[0]) if input.dim() == 1 else (input.shape[0], input.shape[1])
    logits = input.reshape(n, c, -1)
    flat = target.reshape(n, c, -1) if target.is_floating_point() else target.reshape(n, -1)
    # autocast's policy is float32; the kernels compute in it anyway, so the logits need no copy
    dtype = torch.float32 if autocast_dtype(input) else input.dtype
    weight = None if weight is None else weight.contiguous()
    args = (logits, flat, weight, ignore_index, reduction, label_smoothing, dtype, backend)
    if gradient_in_forward and needs_grad(input) and in_forward.why_not(input, backend, inplace) is None:
        _check_classes(flat, c, ignore_index)
        return in_forward.CrossEntropyInForward.apply(*args, inplace)
    loss = _CrossEntropy.apply(*args) if needs_grad(input) else forward_op(*args)[0]
    return loss.reshape(_rows_shape(input)) if reduction == "none" else loss


def _class_axis(input: Tensor) -> int:
    return 0 if input.dim() == 1 else 1


def _rows_shape(input: Tensor) -> torch.Size:
    return input.shape[:0] if input.dim() == 1 else input.shape[:1] + input.shape[2:]


def _check(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
) -> None:
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(complaint(OP, "reduction to be 'none', 'mean' or 'sum'", repr(reduction)))
    if not 0.0 <= label_smoothing <= 1.0:
        raise RuntimeError(complaint(OP, "label_smoothing between 0.0 and 1.0", label_smoothing))
    if input.dim() == 0:
        raise RuntimeError(complaint(OP, "input of shape [C], [N, C] or [N, C, d1, ...]", "a scalar"))
    classes = input.shape[_class_axis(input)]
    if weight is not None and weight.shape != (classes,):
        raise RuntimeError(complaint(OP, f"weight of shape [{classes}], one per class", list(weight.shape)))
    if target.shape == input.shape and target.is_floating_point():
        if ignore_index >= 0:
            raise RuntimeError(
                complaint(OP, "no ignore_index with class probabilities as target", ignore_index)
            )
        return
    rows = _rows_shape(input)
    if target.shape != rows:
        # torch says ValueError for a wrong batch size only
        batches = target.shape[:1] != rows[:1] and target.dim() > 0 and input.dim() > 1
        error = ValueError if batches else RuntimeError
        raise error(
            complaint(
                OP,
                f"target of shape {list(rows)} (class indices) or {list(input.shape)} (probabilities)",
                list(target.shape),
            )
        )
    if target.dtype not in (torch.int64, torch.uint8):
        raise RuntimeError(
            complaint(OP, "target of dtype int64 or uint8 (class indices)", target.dtype, "use target.long()")
        )


def _check_range(target: Tensor, classes: int, ignore_index: int) -> None:
    """IndexError for the first target that is neither a class nor ignored; synchronises with the device."""
    bad = ((target < 0) | (target >= classes)) & (target != ignore_index)
    if bad.any():
        row = int(bad.flatten().nonzero()[0])
        got = f"{int(target.flatten()[row])} in row {row}"
        raise IndexError(complaint(OP, f"targets in [0, {classes}) or equal to {ignore_index}", got))


def _check_classes(target: Tensor, classes: int, ignore_index: int) -> None:
    """The same of class indices, where looking at them costs no waiting for a GPU or was asked for."""
    if not target.is_floating_point() and (target.device.type == "cpu" or backends.CHECK):
        _check_range(target, classes, ignore_index)


def _unsupported(input: Tensor, target: Tensor, weight: Tensor | None) -> str | None:
    if target.is_floating_point() and target.dtype != input.dtype:
        return "probabilities of another dtype than the logits"
    if needs_grad(target, weight):
        return "gradients for target or weight"
    if weight is not None and weight.dtype != input.dtype and not autocast_dtype(input):
        return "weight of another dtype than the logits"
    return unsupported(input, target, weight)


class Forward(NamedTuple):
    """The arguments of cross_entropy_forward."""

    logits: Tensor  # [N, C, D]
    target: Tensor  # [N, D] class indices or [N, C, D] probabilities
    weight: Tensor | None  # [C]
    ignore_index: int
    reduction: str
    label_smoothing: float
    dtype: torch.dtype  # of the loss
    backend: str


class Backward(NamedTuple):
    """The arguments of cross_entropy_backward."""

    grad_loss: Tensor  # [] or [N, D]
    logits: Tensor  # [N, C, D]
    target: Tensor  # [N, D] or [N, C, D]
    weight: Tensor | None  # [C]
    lse: Tensor  # [N, D]
    total_weight: Tensor  # [] for 'mean'
    ignore_index: int
    reduction: str
    label_smoothing: float
    backend: str


def _options(a: Forward | Backward) -> dict[str, Any]:
    return {
        "ignore_index": a.ignore_index,
        "reduction": a.reduction,
        "label_smoothing": a.label_smoothing,
    }


def _allocate_forward(a: Forward) -> tuple[Tensor, Tensor, Tensor]:
    """loss [] or [N, D]; log-sum-exp [N, D] float32; for 'mean' its divisor [] float32."""
    rows = (a.logits.shape[0], a.logits.shape[2])
    return (
        a.logits.new_empty(rows if a.reduction == "none" else (), dtype=a.dtype),
        a.logits.new_empty(rows, dtype=torch.float32),
        a.logits.new_empty(() if a.reduction == "mean" else 0, dtype=torch.float32),
    )


def _fill_forward(outputs: tuple[Tensor, Tensor, Tensor], a: Forward) -> None:
    # checked here rather than in the public function: torch.compile need not trace a branch on data
    _check_classes(a.target, a.logits.shape[1], a.ignore_index)
    backends.kernel(a.backend, OP).forward(a.logits, a.target, a.weight, *outputs, **_options(a))


def _allocate_backward(a: Backward) -> Tensor:
    return torch.empty_like(a.logits)


def _fill_backward(grad_logits: Tensor, a: Backward) -> None:
    backends.kernel(a.backend, OP).backward(
        a.grad_loss, a.logits, a.target, a.weight, a.lse, a.total_weight, grad_logits, **_options(a)
    )


forward_op = register(
    "cross_entropy_forward",
    "(Tensor logits, Tensor target, Tensor? weight, int ignore_index, str reduction, float label_smoothing, "
    "ScalarType dtype, str backend) -> (Tensor, Tensor, Tensor)",
    Forward,
    _allocate_forward,
    _fill_forward,
)
backward_op = register(
    "cross_entropy_backward",
    "(Tensor grad_loss, Tensor logits, Tensor target, Tensor? weight, Tensor lse, Tensor total_weight, "
    "int ignore_index, str reduction, float label_smoothing, str backend) -> Tensor",
    Backward,
    _allocate_backward,
    _fill_backward,
)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        a = Forward(*args)
        loss, lse, total_weight = forward_op(*args)
        ctx.save_for_backward(a.logits, a.target, a.weight, lse, total_weight)
        ctx.options = (a.ignore_index, a.reduction, a.label_smoothing)
        ctx.backend = a.backend
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        logits, target, weight, lse, total_weight = ctx.saved_tensors
        if torch.is_grad_enabled():
            (grad_logits,) = differentiable_backward(grad_loss, logits, target, weight, *ctx.options)
        else:
            grad_logits = backward_op(
                grad_loss, logits, target, weight, lse, total_weight, *ctx.options, ctx.backend
            )
        return grad_logits, *[None] * (len(Forward._fields) - 1)


def differentiable_backward(
    grad_loss: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
) -> list[Tensor | None]:
    """The gradient of input by plain torch in the dtype of the loss, so that it can be differentiated."""
    dtype = grad_loss.dtype
    weight = None if weight is None else weight.to(dtype)
    probabilities = target.to(dtype) if target.is_floating_point() else target
    with reference.no_autocast(input):
        loss = reference.cross_entropy(
            input.to(dtype), probabilities, weight, ignore_index, reduction, label_smoothing
        )
    return differentiate(loss, [input], grad_loss)


def legacy_reduction(size_average: bool | None, reduce: bool | None, reduction: str) -> str:
    """The reduction that the deprecated size_average and reduce stand for, with torch's own warning."""
    if size_average is None and reduce is None:
        return reduction
    return F._Reduction.legacy_get_string(size_average, reduce)
