"""The gradient of the logits, for losses of rows as for their sum or mean."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ._runtime import cdiv, index, launch, narrow, wide
from .cross_entropy_rows import (
    Blocks,
    aligned,
    alignment,
    classes_of,
    fast_exp,
    finite,
    probabilities_of,
    rows_of,
    target_strides,
    weights_of,
)


@triton.jit(do_not_specialize=["R"])
def cross_entropy_gradient(
    grad_loss,  # [N, D] float; reduced: [] float
    x,  # [N, C, D] float
    target,  # [N, D] int64 or uint8, or probabilities [N, C, D] float
    weight,  # [C] float or None
    lse,  # [N, D] float32, contiguous
    total_weight,  # [] float32 for the mean, else None
    grad_x,  # [N, C, D] float
    R, C, D, x_n, x_c, x_d, target_n, target_c, target_d, grad_x_n, grad_x_c, grad_x_d,
    grad_loss_n, grad_loss_d, label_smoothing,
    IGNORE: tl.constexpr,
    PROBABILITIES: tl.constexpr,
    SMOOTH: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    LOOP: tl.constexpr,  # C > BLOCK_C
    ALIGN: tl.constexpr,  # divides C and every stride along n and d
    WIDE: tl.constexpr,
):  # fmt: skip
    """grad_x[c] = softmax[c] * sum_k a[k] - a[c], the loss times its gradient being sum_c a[c] * nll(c).

    With scale = grad_loss (/ total_weight), a[c] = scale * weight[c] * q'[c] for probabilities and
    scale * ([c = t] * (1 - ls) * weight[t] + ls/C * weight[c]) for classes.
    """
    r, n, d, rows = rows_of(R, D, BLOCK_R, WIDE)
    C = aligned(C, ALIGN)
    x += n * aligned(x_n, ALIGN) + d * aligned(x_d, ALIGN)
    if PROBABILITIES:
        target += n * aligned(target_n, ALIGN) + d * aligned(target_d, ALIGN)
    else:
        target += n * target_n + d * target_d
    grad_x += n * aligned(grad_x_n, ALIGN) + d * aligned(grad_x_d, ALIGN)
    scale = tl.load(grad_loss + n * grad_loss_n + d * grad_loss_d, rows, other=0.0).to(tl.float32)
    if total_weight is not None:
        scale /= tl.load(total_weight)
    read = rows
    if PROBABILITIES:
        sum_a = tl.zeros((BLOCK_R,), tl.float32)
    else:
        t, kept, ignored = classes_of(target, rows, C, IGNORE)
        scale = tl.where(kept, scale, float("nan"))
        smooth = scale * (label_smoothing / C)
        hit = scale * ((1.0 - label_smoothing) * weights_of(weight, t, kept))
        sum_a = hit
        if BLOCK_R == 1:
            read = kept

    stop = C if LOOP else BLOCK_C
    if SMOOTH or PROBABILITIES:
        for start in range(0, stop, BLOCK_C):
            c = start + tl.arange(0, BLOCK_C)
            a = weights_of(weight, c, c < C)[None, :]
            if PROBABILITIES:
                at = target[:, None] + index(c, WIDE)[None, :] * target_c
                a *= probabilities_of(at, rows[:, None] & (c < C)[None, :], C, label_smoothing)
                sum_a += scale * tl.sum(a, axis=1)
            else:
                sum_a += smooth * tl.sum(a, axis=1)

    if LOOP:
        row_lse = tl.load(lse + r, rows, other=0.0)
        # Far from 0 its rounding is worse than that of torch's log-probabilities (for many classes 10 to 20):
        # then the row is read once more, and divided by its own sum.
        if tl.max(tl.abs(row_lse)) > 32.0:
            total = tl.zeros((BLOCK_R,), tl.float32)
            for start in range(0, stop, BLOCK_C):
                c = start + tl.arange(0, BLOCK_C)
                inside = read[:, None] & (c < C)[None, :]
                at = x[:, None] + index(c, WIDE)[None, :] * x_c
                value = tl.load(at, inside, other=float("-inf")).to(tl.float32)
                total += tl.sum(fast_exp(value - row_lse[:, None]), axis=1)
            sum_a /= total
    for start in range(0, stop, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        inside = rows[:, None] & (c < C)[None, :]
        at = index(c, WIDE)[None, :]
        value = tl.load(x[:, None] + at * x_c, inside & read[:, None], other=float("-inf")).to(tl.float32)
        if LOOP:
            grad = fast_exp(value - row_lse[:, None]) * sum_a[:, None]
        else:  # the row is at hand: its own sum is more accurate than a rounded lse
            e = fast_exp(value - finite(tl.max(value, axis=1))[:, None])
            grad = e * (sum_a / tl.sum(e, axis=1))[:, None]
        if PROBABILITIES:
            a = probabilities_of(target[:, None] + at * target_c, inside, C, label_smoothing)
            grad -= scale[:, None] * (a * weights_of(weight, c, c < C)[None, :])
        else:
            a = tl.where(c[None, :] == t[:, None], hit[:, None], 0.0)
            if SMOOTH:
                a += smooth[:, None] * weights_of(weight, c, c < C)[None, :]
            grad = tl.where(ignored[:, None], 0.0, grad - a)
        tl.store(grad_x[:, None] + at * grad_x_c, narrow(grad, grad_x), inside)


def gradient(
    grad_loss: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    lse: Tensor,
    total_weight: Tensor | None,
    grad_input: Tensor,
    blocks: Blocks,
    *,
    ignore_index: int,
    label_smoothing: float,
    reduce: bool,
) -> None:
    """Fill grad_input [N, C, D] from grad_loss ([N, D], reduced []); total_weight: the divisor of a mean."""
    n, c, d = input.shape
    launch(
        cross_entropy_gradient,
        (cdiv(n * d, blocks.rows),),
        grad_loss,
        input,
        target,
        weight,
        lse,
        total_weight,
        grad_input,
        n * d,
        c,
        d,
        *input.stride(),
        *target_strides(target),
        *grad_input.stride(),
        *((0, 0) if reduce else grad_loss.stride()),
        label_smoothing,
        IGNORE=ignore_index,
        PROBABILITIES=target.is_floating_point(),
        SMOOTH=label_smoothing > 0,
        BLOCK_R=blocks.rows,
        BLOCK_C=blocks.classes,
        LOOP=c > blocks.classes,
        ALIGN=alignment(input, target, grad_input),
        WIDE=wide(grad_loss, input, target, lse, grad_input),
        num_warps=blocks.warps,
    )
