"""cross_entropy's gradient taken in forward, piece by piece, while a piece of the logits is in the cache.

Plainly, the logits come from memory twice: forward, and again for the gradient. Here every piece has both
before the next one is read; what is kept for backward is the gradient itself, in memory of its own or in that
of the logits. Backward multiplies it by the incoming gradient, unless that is 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import backends
from ._common import complaint

OP = "cross_entropy"

#: Bytes of logits in a piece, on a CPU: with their gradient a share of the last-level cache.
CPU_BYTES = 4 << 20


def check(input: Tensor, gradient_in_forward: bool, inplace: bool, reduction: str) -> None:
    """Refuse what cannot be meant.

    Raises:
        ValueError: no reduction, or ``inplace`` without ``gradient_in_forward``.
        RuntimeError: ``inplace`` on a leaf that requires a gradient, or on memory that overlaps itself.
    """
    if inplace and not gradient_in_forward:
        raise ValueError(complaint(OP, "gradient_in_forward=True with inplace=True", False))
    if gradient_in_forward and reduction == "none":
        remedy = "each row's loss has an incoming gradient of its own"
        expected = "reduction 'mean' or 'sum' with gradient_in_forward"
        raise ValueError(complaint(OP, expected, "'none'", remedy))
    if not inplace or torch.compiler.is_compiling():
        return
    if input.is_leaf and input.requires_grad:
        got = "a leaf that requires a gradient"
        raise RuntimeError(complaint(OP, "logits that something computed with inplace=True", got))
    if torch._debug_has_internal_overlap(input) == 1:
        got = f"strides {input.stride()}"
        raise RuntimeError(complaint(OP, "logits with memory of their own with inplace=True", got))


def why_not(input: Tensor, backend: str, inplace: bool) -> str | None:
    """Why a call is served without; None if nothing stands against it."""
    if backend == "reference":
        return "no kernel serves the call"
    if torch.compiler.is_compiling():
        return "torch.compile moves no gradient into forward"
    if input.dtype == torch.float16:
        return "a loss scale comes too late for gradients that float16 has already rounded to 0"
    if not inplace and input.numel() * input.element_size() <= _piece_bytes(input.device):
        return "the logits are still in the cache when backward reads them"
    return None


class Arguments(NamedTuple):
    """Those of the autograd.Function."""

    logits: Tensor  # [N, C, D]
    target: Tensor  # [N, D] class indices or [N, C, D] probabilities
    weight: Tensor | None  # [C]
    ignore_index: int
    reduction: str  # "mean" or "sum"
    label_smoothing: float
    dtype: torch.dtype  # of the loss
    backend: str
    inplace: bool


class CrossEntropyInForward(torch.autograd.Function):
    """The loss []; apply takes ``Arguments``."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        a = Arguments(*args)
        grad = a.logits.detach() if a.inplace else torch.empty_like(a.logits)
        loss = _fill(a, grad)
        torch.autograd.graph.increment_version(grad)  # whoever saved the logits for a backward will notice
        ctx.save_for_backward(grad)
        ctx.backend = a.backend
        ctx.spent = False
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        expected, remedy = "one first derivative with gradient_in_forward", "leave gradient_in_forward out"
        if torch.is_grad_enabled():
            raise RuntimeError(complaint(OP, expected, "create_graph=True", remedy))
        if ctx.spent:
            raise RuntimeError(complaint(OP, expected, "a second backward", remedy))
        (grad,) = ctx.saved_tensors
        ctx.spent = True
        _scale(grad, grad_loss, ctx.backend)
        return grad, *[None] * (len(Arguments._fields) - 1)


def _fill(a: Arguments, grad: Tensor) -> Tensor:
    """The loss; ``grad`` [N, C, D] (it may be the logits) is filled with its gradient."""
    kernel = backends.kernel(a.backend, OP)
    n, c, d = a.logits.shape
    losses, lse = torch.empty((2, n, d), device=a.logits.device)
    nothing, one = losses.new_empty(0), losses.new_ones(())
    total_weight = _total_weight(a) if a.reduction == "mean" else nothing
    options = {"ignore_index": a.ignore_index, "label_smoothing": a.label_smoothing}
    for i, j in _pieces(n, d, max(1, _piece_bytes(grad.device) // (c * grad.element_size()))):
        x, t, g = a.logits[i, :, j], a.target[i, ..., j], grad[i, :, j]
        kernel.forward(x, t, a.weight, losses[i, j], lse[i, j], nothing, reduction="none", **options)
        kernel.backward(one, x, t, a.weight, lse[i, j], total_weight, g, reduction=a.reduction, **options)
    loss = losses.sum(dtype=torch.float64)
    if a.reduction == "mean":  # NaN over no weight at all, though smoothing gives such rows a loss
        loss = torch.where(total_weight == 0, float("nan"), loss / total_weight)
    return loss.to(a.dtype)


def _piece_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return CPU_BYTES
    return torch.cuda.get_device_properties(device).L2_cache_size // 2


def _pieces(n: int, d: int, rows: int) -> Iterator[tuple[slice, slice]]:
    """[N, D] in pieces of at most ``rows``."""
    if rows >= d:
        step = rows // d
        yield from ((slice(i, i + step), slice(None)) for i in range(0, n, step))
    else:
        yield from ((slice(i, i + 1), slice(j, j + rows)) for i in range(n) for j in range(0, d, rows))


def _total_weight(a: Arguments) -> Tensor:
    """What the mean divides by, [] float32; without looking at data from the host."""
    n, c, d = a.logits.shape
    if a.target.is_floating_point():
        return torch.full((), float(n * d), device=a.logits.device)
    kept = (a.target != a.ignore_index) & (a.target >= 0) & (a.target < c)
    if a.weight is None:
        return kept.sum(dtype=torch.float64).float()
    weights = a.weight.detach().double()[a.target.long().clamp(0, c - 1)]
    return torch.where(kept, weights, 0.0).sum().float()


def _scale(grad: Tensor, grad_loss: Tensor, backend: str) -> None:
    """grad *= grad_loss. The kernel finds out by itself whether there is anything to do: nobody waits."""
    if torch.ops.aten.is_non_overlapping_and_dense.default(grad):
        flat = grad.as_strided((grad.numel(),), (1,))
        backends.kernel(backend, OP).scale(flat, grad_loss)
    else:
        grad.mul_(grad_loss)
