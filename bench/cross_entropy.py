"""Mean softmax cross-entropy, from ten classes to a vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch.nn.functional as T

from fastdl.parity.cases import classes, randn

from .case import Case, Goal, Tensors, Work, size


def work(tensors: Tensors, options: Mapping[str, Any], direction: str) -> Work:
    """Forward reads the logits; the gradient reads them again and writes as much."""
    t = size(tensors["input"])
    return Work({"forward": 1, "backward": 2, "both": 3}[direction] * t)


def loss(rows: int, number: int, goal: Goal | None = None) -> Case:
    return Case(
        "cross_entropy",
        f"({rows}, {number})",
        {"input": randn(rows, number), "target": classes(rows, high=number)},
        T.cross_entropy,
        work,
        directions={"forward": None, "both": goal},
    )


def cpu() -> Iterator[Case]:
    yield loss(4096, 1000, Goal(2.5, 1.0))
    yield loss(1024, 32000, Goal(2.0, 1.0))
    yield loss(64, 10, Goal(1.5, 1.0))
    yield loss(256, 1000)


def cuda() -> Iterator[Case]:
    yield loss(256, 10)
    yield loss(256, 1000)
    yield loss(8192, 1000)
    yield loss(8192, 32000, Goal(2.5, 1.5))
    yield loss(4096, 128256, Goal(2.5, 1.6))
