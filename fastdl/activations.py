"""The activations that kernels fuse, as one table of data.

Each entry gives the function and its derivative *in terms of the output*, which is what a fused op has at
hand in backward. ``kernels/activation.py`` holds the same formulas for Triton; a test keeps the two equal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Activation(NamedTuple):
    """One activation: ``function(x, param)`` and ``derivative(y, param)`` with ``y = function(x, param)``."""

    function: Callable[[Tensor, float], Tensor]
    derivative: Callable[[Tensor, float], Tensor]
    param: float  # torch's default for the one parameter it has; 0.0 where it has none
    param_name: str = ""


ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation(
        lambda x, _: F.relu(x),
        lambda y, _: (~(y <= 0)).to(y.dtype),  # 1 at NaN, as torch's
        0.0,
    ),
    "leaky_relu": Activation(
        lambda x, slope: F.leaky_relu(x, slope),
        lambda y, slope: torch.where(y > 0, torch.ones_like(y), slope),
        0.01,
        "negative_slope",
    ),
    "elu": Activation(
        lambda x, alpha: F.elu(x, alpha),
        lambda y, alpha: torch.where(y <= 0, y + alpha, 1.0),
        1.0,
        "alpha",
    ),
    "sigmoid": Activation(
        lambda x, _: torch.sigmoid(x),
        lambda y, _: (1 - y) * y,
        0.0,
    ),
    "tanh": Activation(
        lambda x, _: torch.tanh(x),
        lambda y, _: 1 - y * y,
        0.0,
    ),
    "softplus": Activation(
        lambda x, _: F.softplus(x),
        lambda y, _: torch.where(y > 20, 1.0, -torch.expm1(-y)),
        0.0,
    ),
}


def resolve(op: str, activation: str | None, param: float | None) -> tuple[str, float]:
    """The activation as kernels take it: its name ("" for none) and the value of its parameter.

    Raises:
        ValueError: for an unknown name, a parameter the activation does not have, or one for which the
            derivative cannot be told from the output (a negative slope, an alpha that is not positive).
    """
    if activation is None:
        if param is not None:
            raise ValueError(
                f"fastdl.{op}: expected activation_param with an activation, got activation=None"
            )
        return "", 0.0
    entry = ACTIVATIONS.get(activation)
    if entry is None:
        raise ValueError(
            f"fastdl.{op}: expected activation to be None or one of {', '.join(ACTIVATIONS)}, "
            f"got {activation!r}"
        )
    if param is None:
        return activation, entry.param
    if not entry.param_name:
        raise ValueError(f"fastdl.{op}: expected no activation_param for {activation!r}, got {param}")
    if param < 0 or (activation == "elu" and param == 0):
        bound = "positive" if activation == "elu" else "non-negative"
        raise ValueError(
            f"fastdl.{op}: expected {entry.param_name} of {activation!r} to be {bound}, got {param}"
        )
    return activation, float(param)


def apply(x: Tensor, activation: str, param: float) -> Tensor:
    """``activation`` of ``x`` in plain torch; "" returns ``x`` itself."""
    return ACTIVATIONS[activation].function(x, param) if activation else x
