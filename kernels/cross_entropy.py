"""Softmax cross-entropy of logits x [N, C, D]; a row is the C logits of one (n, d), row r = n*D + d.

    lse = log(sum_c exp(x[c])),   nll(c) = lse - x[c],   ls = label_smoothing
    class t:          loss = (1 - ls) * weight[t] * nll(t) + ls/C * sum_c weight[c] * nll(c)
    probabilities q:  loss = sum_c weight[c] * q'[c] * nll(c),   q' = (1 - ls) * q + ls/C
    mean:             sum of losses / total_weight, the sum of weight[t] (or N*D for probabilities)

The files:

    cross_entropy_rows.py      how the logits are cut into blocks; a row's target and weights
    cross_entropy_forward.py   losses and lse of rows; their sum or mean
    cross_entropy_backward.py  grad_x[c] = softmax[c] * sum_k a[k] - a[c], a[c] being the factor of nll(c)
    cross_entropy_scale.py     times the incoming gradient, for one that was computed in forward

The logits are read once each way: forward keeps a running maximum and rescales what it has summed when
that grows. Saved are lse, one float32 per row, and total_weight; the softmax is never stored. A row whose
target is ignore_index has loss and gradient 0 whatever its logits are; one whose target is no class has NaN
for both, and its target is never used as an address.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._runtime import cdiv
from .cross_entropy_backward import gradient
from .cross_entropy_forward import add_up, losses
from .cross_entropy_rows import blocks_of
from .cross_entropy_scale import scale as scale


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
    n, _, d = input.shape
    reduce, mean = reduction != "none", reduction == "mean"
    if n * d == 0:
        if mean:
            total_weight.zero_()
        if reduce:
            loss.fill_(float("nan") if mean else 0.0)
        return
    blocks = blocks_of(input, reduce)
    programs = cdiv(n * d, blocks.rows)
    several = reduce and programs > 1
    # float32 partial sums, one or (with their weights) two per program
    partial = input.new_empty((2 if mean else 1, programs), dtype=torch.float32) if several else None
    sums, divisors = (loss, total_weight) if partial is None else (partial[0], partial[-1])
    divisors = divisors if mean else None
    losses(
        input, target, weight, sums, lse, divisors, blocks, ignore_index=ignore_index,
        label_smoothing=label_smoothing, reduce=reduce, divide=not several,
    )  # fmt: skip
    if several:
        add_up(sums, divisors, loss, total_weight if mean else None)


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
    gradient(
        grad_loss, input, target, weight, lse, total_weight if reduction == "mean" else None, grad_input,
        blocks_of(input, False), ignore_index=ignore_index, label_smoothing=label_smoothing,
        reduce=reduction != "none",
    )  # fmt: skip
