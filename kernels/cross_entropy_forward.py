"""The losses of rows, and their sum or mean in a second launch where one program does not see all rows."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ._runtime import cdiv, index, launch, narrow, next_power_of_2, wide
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

# ------------------------------------------------------------------------------------------ kernels


@triton.jit(do_not_specialize=["R"])
def cross_entropy_losses(
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
    r, n, d, rows = rows_of(R, D, BLOCK_R, WIDE)
    C = aligned(C, ALIGN)
    x += n * aligned(x_n, ALIGN) + d * aligned(x_d, ALIGN)
    if PROBABILITIES:
        target += n * aligned(target_n, ALIGN) + d * aligned(target_d, ALIGN)
    else:
        target += n * target_n + d * target_d
    read = rows
    if not PROBABILITIES:
        t, kept, ignored = classes_of(target, rows, C, IGNORE)
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
        s = s * fast_exp(before - finite(m))[:, None] + fast_exp(value - finite(m)[:, None])
        if SMOOTH or PROBABILITIES:
            shift = tl.where(start == 0, finite(m), shift)
            a = weights_of(weight, c, c < C)[None, :]
            if PROBABILITIES:
                a *= probabilities_of(target[:, None] + at * target_c, inside, C, label_smoothing)
            spread += tl.sum(tl.where(inside, a * (shift[:, None] - value), 0.0), axis=1)
            spread_weight += tl.sum(tl.where(inside, a, 0.0), axis=1)

    log_s = tl.log(tl.sum(s, axis=1))
    m = finite(m)
    if lse is not None:
        tl.store(lse + r, m + log_s, rows)
    if SMOOTH or PROBABILITIES:
        spread += spread_weight * ((m - shift) + log_s)
    if PROBABILITIES:
        row_loss = tl.where(rows, spread, 0.0)
        row_weight = tl.where(rows, 1.0, 0.0)
    else:
        row_weight = weights_of(weight, t, kept)
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
                # NaN over no weight at all, though smoothing gives such rows a loss
                total = tl.where(divisor == 0.0, float("nan"), total / divisor)
        tl.store(loss + tl.program_id(0), narrow(total, loss))
    else:
        tl.store(loss + n * loss_n + d * loss_d, narrow(row_loss, loss), rows)


@triton.jit(do_not_specialize=["P"])
def cross_entropy_reduce(
    losses,  # [P] float32, a partial sum per program of cross_entropy_losses
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
        result = tl.where(weight == 0.0, float("nan"), result / weight)
    tl.store(loss, narrow(result, loss))


# ---------------------------------------------------------------------------------------- launchers


def losses(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    loss: Tensor,
    lse: Tensor | None,
    total_weight: Tensor | None,
    blocks: Blocks,
    *,
    ignore_index: int,
    label_smoothing: float,
    reduce: bool,
    divide: bool,
) -> None:
    """Fill loss [N, D], or its sum for each program, and lse; with total_weight, a mean's divisors, too."""
    n, c, d = input.shape
    launch(
        cross_entropy_losses,
        (cdiv(n * d, blocks.rows),),
        input,
        target,
        weight,
        loss,
        lse,
        total_weight,
        n * d,
        c,
        d,
        *input.stride(),
        *target_strides(target),
        *((0, 0) if reduce else loss.stride()),
        label_smoothing,
        IGNORE=ignore_index,
        REDUCE=reduce,
        DIVIDE=divide,
        PROBABILITIES=target.is_floating_point(),
        SMOOTH=label_smoothing > 0,
        BLOCK_R=blocks.rows,
        BLOCK_C=blocks.classes,
        LOOP=c > blocks.classes,
        ALIGN=alignment(input, target),
        WIDE=wide(input, target, lse, None if reduce else loss),
        num_warps=blocks.warps,
    )


def add_up(sums: Tensor, divisors: Tensor | None, loss: Tensor, total_weight: Tensor | None) -> None:
    """Fill loss [] from the programs' sums [P]; with their divisors [P], total_weight [] and a mean."""
    programs = sums.numel()
    block = min(next_power_of_2(programs), 4096)
    launch(cross_entropy_reduce, (1,), sums, divisors, loss, total_weight, programs, BLOCK=block, num_warps=8)
