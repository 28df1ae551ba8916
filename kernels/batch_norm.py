"""Batch norm: out = act((x - mean) * invstd * weight + bias + residual), with its gradients.

x is dense: contiguous, channels-last, or 2-D. The files:

    batch_norm_tiles.py       how x is cut into channel blocks, tiles and splits
    batch_norm_statistics.py  mean and invstd per channel; the running statistics
    batch_norm_normalise.py   out = act((x - mean) * scale + bias + residual), scale = weight * invstd
    batch_norm_activation.py  the pre-activation, relu's mask, dz = grad_out * act'
    batch_norm_backward.py    grad_bias = sum dz, grad_weight = sum dz * xhat, xhat = (x - mean) * invstd
                              grad_x = (dz - mean(dz) - xhat * mean(dz * xhat)) * scale, grad_residual = dz

Training takes three launches: partial statistics (channel blocks times splits, to fill the card), their
combination (which writes mean, invstd and the running statistics), and the elementwise pass. A kernel
that ends with "the last block combines" would save the second one, at the price of a counter that
streams must not share and that something must zero. Channels of few tiles, where a launch costs more
than the work, take one launch instead: each program computes and applies the statistics of its
channels. Backward has the same shape. No atomics: partials are combined in index order.

Saved for backward: x, weight, bias, mean and invstd [C] float32, and behind a residual relu's mask, one bit
per element, or for other activations out. Without a residual the pre-activation is recomputed.
"""

from __future__ import annotations

import torch

from .batch_norm_backward import gradients, parameter_gradients
from .batch_norm_normalise import normalise
from .batch_norm_statistics import batch_statistics, eval_statistics
from .batch_norm_tiles import plan_of


def forward(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    out: torch.Tensor,
    mean: torch.Tensor | None,
    invstd: torch.Tensor | None,
    mask: torch.Tensor | None,
    *,
    training: bool,
    momentum: float,
    eps: float,
    activation: str,
    activation_param: float,
) -> None:
    """Fill out, the batch's mean and invstd [C] float32, and mask; move the running statistics.

    x, residual, out [N, C, *] dense with the same strides; weight, bias, running_* [C]. In evaluation mean
    and invstd are the running ones, written where wanted. mask: one bit per element in x's memory order,
    set where relu passes the gradient.
    """
    if x.numel() == 0:
        if training:  # no batch, no statistics: the running ones stay
            mean.zero_()
            invstd.zero_()
        elif mean is not None and x.shape[1]:
            eval_statistics(running_mean, running_var, mean, invstd, eps)
        return
    plan = plan_of(x, reduces=training)
    if training and plan.whole:
        source = "compute"
    elif training:
        source = "load"
        batch_statistics(x, mean, invstd, running_mean, running_var, momentum, eps, plan)
    elif mean is not None:
        source = "load"
        eval_statistics(running_mean, running_var, mean, invstd, eps)
    else:
        source = "running"
    normalise(
        x, weight, bias, residual, running_mean, running_var, out, mean, invstd, mask, source, momentum, eps,
        activation, activation_param, plan,
    )  # fmt: skip


def backward(
    grad_out: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    out: torch.Tensor | None,
    mean: torch.Tensor,
    invstd: torch.Tensor,
    mask: torch.Tensor | None,
    grad_x: torch.Tensor | None,
    grad_weight: torch.Tensor | None,
    grad_bias: torch.Tensor | None,
    grad_residual: torch.Tensor | None,
    *,
    training: bool,
    activation: str,
    activation_param: float,
) -> None:
    """Fill the gradients that are not None.

    grad_out has x's strides. The activation's derivative comes from mask (relu), else from out, else from
    the pre-activation recomputed from x (which has no residual in it).
    """
    if x.numel() == 0:
        for grad in (grad_weight, grad_bias):
            if grad is not None:
                grad.zero_()
        return
    parameters = grad_weight is not None or grad_bias is not None
    elements = grad_x is not None or grad_residual is not None
    batch = training and grad_x is not None  # the batch's statistics depend on x
    plan = plan_of(x, reduces=parameters or batch)
    saved = (grad_out, x, out, mask, weight, bias, mean, invstd)
    means, source = None, ""
    if plan.whole:
        source = "compute"
    elif parameters or batch:
        if batch:
            means, source = torch.empty(2, x.shape[1], dtype=torch.float32, device=x.device), "load"
        parameter_gradients(saved, grad_weight, grad_bias, means, activation, activation_param, plan)
    if elements or source == "compute":
        gradients(
            saved, means, grad_x, grad_residual, grad_weight, grad_bias, source, batch, activation,
            activation_param, plan,
        )  # fmt: skip
