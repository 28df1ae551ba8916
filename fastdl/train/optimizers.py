"""Optimisers and learning-rate schedules by name."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn, optim

OPTIMIZERS: dict[str, Callable[..., optim.Optimizer]] = {
    "sgd": optim.SGD,
    "momentum": lambda p, **o: optim.SGD(p, momentum=0.9, **o),
    "nesterov": lambda p, **o: optim.SGD(p, momentum=0.9, nesterov=True, **o),
    "adagrad": optim.Adagrad,
    "rmsprop": optim.RMSprop,
    "adam": optim.Adam,
    "adamw": optim.AdamW,
}


def _one_cycle(t: float) -> float:
    """Up from a 25th in the first three tenths, then down to nearly nothing, both along a cosine."""
    if t < 0.3:
        return 0.52 - 0.48 * math.cos(math.pi * t / 0.3)
    return 0.5 + 0.5 * math.cos(math.pi * (t - 0.3) / 0.7)


#: The part of the full rate after the part t (0 to 1) of the run: nothing else to be kept for a resumed one.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda t: 1.0,
    "cosine": lambda t: 0.5 + 0.5 * math.cos(math.pi * t),
    "step": lambda t: 0.1 ** int(t * 3),
    "warmup": lambda t: min(1.0, t / 0.1),
    "one_cycle": _one_cycle,
}


def make_optimizer(
    model: nn.Module, name: str, lr: float, weight_decay: float, slow: tuple[str, float]
) -> optim.Optimizer:
    """The optimiser, each of whose groups keeps its full rate as "full_lr"."""
    prefix, part = slow
    chosen = {True: [], False: []}
    for key, parameter in model.named_parameters():
        chosen[bool(prefix) and key.startswith(prefix)].append(parameter)
    groups = [
        {"params": parameters, "lr": rate, "full_lr": rate}
        for parameters, rate in ((chosen[False], lr), (chosen[True], part * lr))
        if parameters
    ]
    return OPTIMIZERS[name](groups, lr=lr, weight_decay=weight_decay)


def set_rate(optimizer: torch.optim.Optimizer, schedule: str, t: float) -> None:
    """Each group's rate after the part ``t`` of the run."""
    for group in optimizer.param_groups:
        group["lr"] = group["full_lr"] * SCHEDULES[schedule](t)
