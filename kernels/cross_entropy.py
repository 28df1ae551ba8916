"""Softmax cross-entropy of logits x [N, C, D]; a row is the C logits of one (n, d), row r = n*D + d.

    lse = log(sum_c exp(x[c])),   nll(c) = lse - x[c],   W = sum_c weight[c],   ls = label_smoothing
    class t:          loss = (1 - ls) * weight[t] * nll(t) + ls/C * sum_c weight[c] * nll(c)
    probabilities q:  loss = sum_c weight[c] * q'[c] * nll(c),   q' = (1 - ls) * q + ls/C
    mean:             sum of losses / total_weight, the sum of weight[t] (or N*D for probabilities)

The logits are read once each way: forward keeps a running maximum and rescales what it has summed when
that grows. Saved are lse, one float32 per row, and total_weight; the softmax is never stored. A row whose
target is ignore_index has loss and gradient 0 whatever its logits are; one whose target is no class has NaN
for both, and its target is never used as an address.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._runtime import cdiv, index, launch, narrow, next_power_of_2, wide


@triton.jit
def _rows(R, D, BLOCK_R: tl.constexpr, WIDE: tl.constexpr):
    """This program's rows r as [BLOCK_R] (n, d), and which of them exist."""
    r = index(tl.program_id(0), WIDE) * BLOCK_R + tl.arange(0, BLOCK_R)
    return r, r // D, r % D, r < R


@triton.jit
def _classes(target, rows, C, IGNORE: tl.constexpr):
    """(t, kept, ignored) of class targets: t is a class wherever kept, and 0 elsewhere."""
    t = tl.load(target, rows, other=0).to(tl.int64)
    ignored = ~rows | (t == IGNORE)
    kept = ~ignored & (t >= 0) & (t < C)
    return tl.where(kept, t, 0), kept, ignored


@triton.jit
def _weights(weight, c, mask):
    """weight[c] in float32, or ones; 0 outside ``mask``."""
    if weight is not None:
        return tl.load(weight + c, mask, other=0.0).to(tl.float32)
    else:
        return tl.where(mask, 1.0, 0.0)


@triton.jit
def _probabilities(target, mask, C, label_smoothing):
    """q' = (1 - ls) * q + ls/C, 0 outside ``mask``."""
    q = tl.load(target, mask, other=0.0).to(tl.float32)
    return tl.where(mask, (1.0 - label_smoothing) * q + label_smoothing / C, 0.0)


@triton.jit
def _exp(x):
    """exp(x), 0 where that is denormal: half the instructions of tl.exp, in what sets the pace."""
    return tl.exp2(x * 1.4426950408889634)


@triton.jit
def _aligned(size, ALIGN: tl.constexpr):
    """``size``, a multiple of ALIGN, such that the compiler sees it (it looks out for 16 only by itself)."""
    return size // ALIGN * ALIGN


@triton.jit
def _finite(x):
    """x, or 0 where it is -inf: what may be subtracted from -inf without giving NaN."""
    return tl.where(x == float("-inf"), 0.0, x)


@triton.jit(do_not_specialize=["R"])
def _forward_kernel(
    x,  # [N, C, D] float
    target,  # [N, D] int64 or uint8, or probabilities [N, C, D] float
    weight,  # [C] float or None
    loss,  # [N, D] float; reduced: one float per program
    lse,  # [N, D] float32, contiguous
    total_weight,  # reduced: one float32 per program
    R, C, D, x_n, x_c, x_d, target_n, target_c, target_d, loss_n, loss_d, label_smoothing,
    IGNORE: tl.constexpr,
    REDUCE: tl.constexpr,
    DIVIDE: tl.constexpr,  # this one program sees all rows of a mean
    PROBABILITIES: tl.constexpr,
    SMOOTH: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    LOOP: tl.constexpr,  # C > BLOCK_C
    ALIGN: tl.constexpr,  # divides C and every stride along n and d
    WIDE: tl.constexpr,
):  # fmt: skip
    """Losses and lse of BLOCK_R rows: m = max x, s = sum exp(x - m), lse = m + log(s).

    The sums over classes, spread = sum a[c] * nll(c), are taken against a shift near the logits, so that
    they do not cancel: spread = sum a[c] * (shift - x[c]) + sum a[c] * (lse - shift).
    """
    r, n, d, rows = _rows(R, D, BLOCK_R, WIDE)
    C = _aligned(C, ALIGN)
    x += n * _aligned(x_n, ALIGN) + d * _aligned(x_d, ALIGN)
    if PROBABILITIES:
        target += n * _aligned(target_n, ALIGN) + d * _aligned(target_d, ALIGN)
    else:
        target += n * target_n + d * target_d
    read = rows
    if not PROBABILITIES:
        t, kept, ignored = _classes(target, rows, C, IGNORE)
        if BLOCK_R == 1:  # a row of its own is not read in vain
            read = kept

    m = tl.full((BLOCK_R,), float("-inf"), tl.float32)
    s = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    shift = tl.zeros((BLOCK_R,), tl.float32)
    spread = tl.zeros((BLOCK_R,), tl.float32)
    spread_weight = tl.zeros((BLOCK_R,), tl.float32)
    stop = C if LOOP else BLOCK_C
    for start in range(0, stop, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        inside = read[:, None] & (c < C)[None, :]
        at = index(c, WIDE)[None, :]
        value = tl.load(x[:, None] + at * x_c, inside, other=float("-inf")).to(tl.float32)
        before = m
        highest = tl.max(value, axis=1)
        m = tl.where(highest > m, highest, m)
        s = s * _exp(before - _finite(m))[:, None] + _exp(value - _finite(m)[:, None])
        if SMOOTH or PROBABILITIES:
            shift = tl.where(start == 0, _finite(m), shift)
            a = _weights(weight, c, c < C)[None, :]
            if PROBABILITIES:
                a *= _probabilities(target[:, None] + at * target_c, inside, C, label_smoothing)
            spread += tl.sum(tl.where(inside, a * (shift[:, None] - value), 0.0), axis=1)
            spread_weight += tl.sum(tl.where(inside, a, 0.0), axis=1)

    log_s = tl.log(tl.sum(s, axis=1))
    m = _finite(m)
    if lse is not None:
        tl.store(lse + r, m + log_s, rows)
    if SMOOTH or PROBABILITIES:
        spread += spread_weight * ((m - shift) + log_s)
    if PROBABILITIES:
        row_loss = tl.where(rows, spread, 0.0)
        row_weight = tl.where(rows, 1.0, 0.0)
    else:
        row_weight = _weights(weight, t, kept)
        x_t = tl.load(x + t * x_c, kept, other=0.0).to(tl.float32)
        row_loss = row_weight * (log_s - (x_t - m))
        if SMOOTH:
            row_loss = (1.0 - label_smoothing) * row_loss + label_smoothing / C * spread
        row_loss = tl.where(kept, row_loss, tl.where(ignored, 0.0, float("nan")))

    if REDUCE:
        total = tl.sum(row_loss, axis=0)
        if total_weight is not None:
            divisor = tl.sum(row_weight, axis=0)
            tl.store(total_weight + tl.program_id(0), divisor)
            if DIVIDE:
                total /= divisor
        tl.store(loss + tl.program_id(0), narrow(total, loss))
    else:
        tl.store(loss + n * loss_n + d * loss_d, narrow(row_loss, loss), rows)


@triton.jit(do_not_specialize=["P"])
def _reduce_kernel(
    losses,  # [P] float32, a partial sum per program of _forward_kernel
    weights,  # [P] float32, the same of the row weights; or None: no mean
    loss,  # [] float
    total_weight,  # [] float32
    P,
    BLOCK: tl.constexpr,
):
    """loss = sum losses (/ sum weights), in an order that is always the same."""
    total = tl.zeros((BLOCK,), tl.float32)
    divisor = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, P, BLOCK):
        p = start + tl.arange(0, BLOCK)
        total += tl.load(losses + p, p < P, other=0.0)
        if weights is not None:
            divisor += tl.load(weights + p, p < P, other=0.0)
    result = tl.sum(total, axis=0)
    if weights is not None:
        weight = tl.sum(divisor, axis=0)
        tl.store(total_weight, weight)
        result /= weight
    tl.store(loss, narrow(result, loss))


@triton.jit(do_not_specialize=["R"])
def _backward_kernel(
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
    r, n, d, rows = _rows(R, D, BLOCK_R, WIDE)
    C = _aligned(C, ALIGN)
    x += n * _aligned(x_n, ALIGN) + d * _aligned(x_d, ALIGN)
    if PROBABILITIES:
        target += n * _aligned(target_n, ALIGN) + d * _aligned(target_d, ALIGN)
    else:
        target += n * target_n + d * target_d
    grad_x += n * _aligned(grad_x_n, ALIGN) + d * _aligned(grad_x_d, ALIGN)
    scale = tl.load(grad_loss + n * grad_loss_n + d * grad_loss_d, rows, other=0.0).to(tl.float32)
    if total_weight is not None:
        scale /= tl.load(total_weight)
    read = rows
    if PROBABILITIES:
        sum_a = tl.zeros((BLOCK_R,), tl.float32)
    else:
        t, kept, ignored = _classes(target, rows, C, IGNORE)
        scale = tl.where(kept, scale, float("nan"))
        smooth = scale * (label_smoothing / C)
        hit = scale * ((1.0 - label_smoothing) * _weights(weight, t, kept))
        sum_a = hit
        if BLOCK_R == 1:
            read = kept

    stop = C if LOOP else BLOCK_C
    if SMOOTH or PROBABILITIES:
        for start in range(0, stop, BLOCK_C):
            c = start + tl.arange(0, BLOCK_C)
            a = _weights(weight, c, c < C)[None, :]
            if PROBABILITIES:
                at = target[:, None] + index(c, WIDE)[None, :] * target_c
                a *= _probabilities(at, rows[:, None] & (c < C)[None, :], C, label_smoothing)
                sum_a += scale * tl.sum(a, axis=1)
            else:
                sum_a += smooth * tl.sum(a, axis=1)

    if LOOP:
        row_lse = tl.load(lse + r, rows, other=0.0)
    for start in range(0, stop, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        inside = rows[:, None] & (c < C)[None, :]
        at = index(c, WIDE)[None, :]
        value = tl.load(x[:, None] + at * x_c, inside & read[:, None], other=float("-inf")).to(tl.float32)
        if LOOP:
            grad = _exp(value - row_lse[:, None]) * sum_a[:, None]
        else:  # the row is at hand: its own sum is more accurate than a rounded lse
            e = _exp(value - _finite(tl.max(value, axis=1))[:, None])
            grad = e * (sum_a / tl.sum(e, axis=1))[:, None]
        if PROBABILITIES:
            a = _probabilities(target[:, None] + at * target_c, inside, C, label_smoothing)
            grad -= scale[:, None] * (a * _weights(weight, c, c < C)[None, :])
        else:
            a = tl.where(c[None, :] == t[:, None], hit[:, None], 0.0)
            if SMOOTH:
                a += smooth[:, None] * _weights(weight, c, c < C)[None, :]
            grad = tl.where(ignored[:, None], 0.0, grad - a)
        tl.store(grad_x[:, None] + at * grad_x_c, narrow(grad, grad_x), inside)


def forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    loss: Tensor,
    lse: Tensor | None,
    total_weight: Tensor,
    *,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
) -> None:
    """Fill loss ([N, D], reduced []), lse [N, D] and, for the mean, total_weight []."""
    n, c, d = input.shape
    reduce, mean = reduction != "none", reduction == "mean"
    if n * d == 0:
        if mean:
            total_weight.zero_()
        if reduce:
            loss.fill_(float("nan") if mean else 0.0)
        return
    block_r, block_c, warps = _blocks(input, reduce)
    programs = cdiv(n * d, block_r)
    several = reduce and programs > 1
    # float32 partial sums, one or (with their weights) two per program
    partial = input.new_empty((2 if mean else 1, programs), dtype=torch.float32) if several else None
    losses, weights = (loss, total_weight) if partial is None else (partial[0], partial[-1])
    launch(
        _forward_kernel,
        (programs,),
        input,
        target,
        weight,
        losses,
        lse,
        weights if mean else None,
        n * d,
        c,
        d,
        *input.stride(),
        *_target_strides(target),
        *((0, 0) if reduce else loss.stride()),
        label_smoothing,
        IGNORE=ignore_index,
        REDUCE=reduce,
        DIVIDE=not several,
        PROBABILITIES=target.is_floating_point(),
        SMOOTH=label_smoothing > 0,
        BLOCK_R=block_r,
        BLOCK_C=block_c,
        LOOP=c > block_c,
        ALIGN=_alignment(input, target),
        WIDE=wide(input, target, lse, None if reduce else loss),
        num_warps=warps,
    )
    if several:
        launch(
            _reduce_kernel,
            (1,),
            losses,
            weights if mean else None,
            loss,
            total_weight if mean else None,
            programs,
            BLOCK=min(next_power_of_2(programs), 4096),
            num_warps=8,
        )


def backward(
    grad_loss: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    lse: Tensor,
    total_weight: Tensor,
    grad_input: Tensor,
    *,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
) -> None:
    """Fill grad_input [N, C, D] from grad_loss ([N, D], reduced []): every element is written."""
    n, c, d = input.shape
    block_r, block_c, warps = _blocks(input, False)
    launch(
        _backward_kernel,
        (cdiv(n * d, block_r),),
        grad_loss,
        input,
        target,
        weight,
        lse,
        total_weight if reduction == "mean" else None,
        grad_input,
        n * d,
        c,
        d,
        *input.stride(),
        *_target_strides(target),
        *grad_input.stride(),
        *(grad_loss.stride() if reduction == "none" else (0, 0)),
        label_smoothing,
        IGNORE=ignore_index,
        PROBABILITIES=target.is_floating_point(),
        SMOOTH=label_smoothing > 0,
        BLOCK_R=block_r,
        BLOCK_C=block_c,
        LOOP=c > block_c,
        ALIGN=_alignment(input, target, grad_input),
        WIDE=wide(grad_loss, input, target, lse, grad_input),
        num_warps=warps,
    )


def _target_strides(target: Tensor) -> tuple[int, int, int]:
    """(n, c, d); class indices have no class axis."""
    return target.stride() if target.dim() == 3 else (target.stride(0), 0, target.stride(1))


def _alignment(*tensors: Tensor) -> int:
    """What divides C and the strides along n and d of all [N, C, D] among ``tensors``, 16 at most."""
    whole = [t for t in tensors if t.dim() == 3]
    strides = [t.stride(i) for t in whole for i in (0, 2) if t.shape[i] > 1]
    return math.gcd(16, whole[0].shape[1], *strides)


def _blocks(input: Tensor, reduce: bool) -> tuple[int, int, int]:
    """(rows, classes, warps) of a program.

    Lanes run along whichever of classes and rows is contiguous. A small problem that is to be reduced fits
    in one program, and so in one launch.
    """
    n, c, d = input.shape
    classes = next_power_of_2(c)
    if reduce and next_power_of_2(n * d) * classes <= 8192:
        rows = next_power_of_2(n * d)
    elif d > 1 and input.stride(2) < input.stride(1):
        classes = min(classes, 64)
        rows = min(4096 // classes, 256)
    else:
        classes = min(classes, 4096)
        rows = max(1024 // classes, 1)
    # bytes in flight count for long rows, latency for short ones, registers where sums outlive a block
    per_thread = 8 if classes <= 64 else 32 if c <= classes else 16
    return rows, classes, min(max(rows * classes // (32 * per_thread), 1), 8)
