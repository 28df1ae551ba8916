"""Benchmarks of every op against PyTorch and whoever else is there: ``fastdl bench``.

One file per op holds its cases, what a user of plain PyTorch would write, and the least work that the op
takes; ``peers`` says who is measured, ``timers`` how; ``runner`` checks before it times; ``report`` shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from fastdl.backends import OPS

from . import affine_grid_sample, batch_norm, conv2d, cross_entropy, max_pool2d, tps_grid_sample
from . import models as _models
from .case import DIRECTIONS, LAYOUTS, Case
from .models import Step
from .page import write as write_page
from .peers import DEFAULT, EAGER, OURS, OWN, PEERS
from .report import SchemaError, read, summary, write
from .row import Row
from .runner import measure
from .timers import keep_heap

__all__ = [
    "DEFAULT",
    "DIRECTIONS",
    "EAGER",
    "LAYOUTS",
    "OPS",
    "OURS",
    "OWN",
    "PEERS",
    "Case",
    "Row",
    "SchemaError",
    "Step",
    "cases",
    "keep_heap",
    "measure",
    "measure_step",
    "read",
    "steps",
    "summary",
    "write",
    "write_page",
]

_TABLES: dict[str, Any] = {
    "conv2d": conv2d,
    "batch_norm": batch_norm,
    "cross_entropy": cross_entropy,
    "max_pool2d": max_pool2d,
    "affine_grid_sample": affine_grid_sample,
    "tps_grid_sample": tps_grid_sample,
}
assert tuple(_TABLES) == OPS

measure_step = _models.measure


def cases(device: torch.device, ops: Sequence[str] = OPS, names: Sequence[str] = ()) -> Iterator[Case]:
    """The cases for a kind of device, op by op; of ``names``, those that contain one of them."""
    for op in ops:
        for case in getattr(_TABLES[op], device.type)():
            if not names or any(name in case.name for name in names):
                yield case


def steps(device: torch.device, names: Sequence[str] = ()) -> Iterator[Step]:
    """The training steps for a kind of device."""
    for step in getattr(_models, device.type)():
        if not names or any(name in step.name for name in names):
            yield step
