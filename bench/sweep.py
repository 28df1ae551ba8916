"""How cost grows: one op over sizes, with the line ``overhead + bytes / rate`` that fits it best."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from . import affine_grid_sample, batch_norm, conv2d, cross_entropy, max_pool2d, tps_grid_sample
from .case import Case

_BOTH = {"forward": None, "both": None}

#: What grows, by op: name and the cases from small to large. The last exceed any cache of a CPU.
SWEEPS: dict[str, dict[str, list[Case]]] = {
    "conv2d": {
        "batch, 1->6 5x5 @28": [
            conv2d.layer(f"batch {n}", (n, 1, 28, 28), 6, 5, _BOTH) for n in (1, 4, 16, 64, 256, 1024)
        ],
        "channels, 3x3 @28": [
            conv2d.layer(f"{c} channels", (4, c, 28, 28), c, 3, _BOTH, padding=1) for c in (4, 16, 64, 128)
        ],
    },
    "batch_norm": {
        "batch, 64 @14": [
            batch_norm.layer(f"batch {n}", (n, 64, 14, 14), _BOTH) for n in (1, 4, 16, 64, 256, 1024)
        ],
        "image, 16x16 of": [
            batch_norm.layer(f"@{p}", (16, 16, p, p), _BOTH) for p in (4, 8, 16, 32, 64, 128)
        ],
    },
    "cross_entropy": {
        "classes, 256 rows": [cross_entropy.loss(256, v, None) for v in (10, 100, 1000, 10000, 50000)],
        "rows, 1000 classes": [cross_entropy.loss(n, 1000, None) for n in (1, 16, 256, 4096)],
    },
    "max_pool2d": {
        "batch, 2x2 of 16 @32": [
            max_pool2d.pool(f"batch {n}", (n, 16, 32, 32), _BOTH, kernel_size=2) for n in (1, 4, 16, 64, 256)
        ],
    },
    "affine_grid_sample": {
        "number of theta, 1x28x28": [
            affine_grid_sample.sampler((n, 1, 28, 28), _BOTH) for n in (1, 4, 16, 64, 256, 1024)
        ],
        "image, 4x3 of": [affine_grid_sample.sampler((4, 3, p, p), _BOTH) for p in (16, 32, 64, 128, 256)],
    },
    "tps_grid_sample": {
        "number of splines, 1x48x48": [
            tps_grid_sample.sampler((n, 1, 48, 48), _BOTH) for n in (1, 4, 16, 64, 256)
        ],
        "image, 4x3 of": [tps_grid_sample.sampler((4, 3, p, p), _BOTH) for p in (16, 32, 64, 128, 256)],
    },
}


class Fit(NamedTuple):
    """``time = overhead + bytes / rate``."""

    overhead_us: float
    gb_per_s: float


def cases(op: str) -> Iterator[tuple[str, Case]]:
    """What grows, and the case."""
    for name, some in SWEEPS[op].items():
        for case in some:
            yield name, case


def fit(bytes: Sequence[float], milliseconds: Sequence[float]) -> Fit | None:
    """The line through the points that errs least relative to each; None for fewer than three."""
    if len(bytes) < 3:
        return None
    x = torch.tensor(bytes, dtype=torch.float64)
    y = torch.tensor(milliseconds, dtype=torch.float64)
    a = torch.stack([torch.ones_like(x), x], 1) / y[:, None]
    overhead, slope = torch.linalg.lstsq(a, torch.ones_like(y)[:, None]).solution[:, 0].tolist()
    if slope <= 0:
        return None
    return Fit(max(overhead, 0.0) * 1e3, 1e-6 / slope)


def fits(results: Sequence[dict[str, Any]]) -> dict[tuple[str, ...], Fit]:
    """By op, what grows, direction, timer and implementation."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for r in results:
        if r.get("sweep") and r["status"] == "measured" and r.get("gb_per_s"):
            key = (r["op"], r["sweep"], r["direction"], r["timer"], r["implementation"])
            groups.setdefault(key, []).append(r)
    found = {}
    for key, some in groups.items():
        bytes = [r["gb_per_s"] * r["median_ms"] * 1e6 for r in some]
        line = fit(bytes, [r["median_ms"] for r in some])
        if line is not None:
            found[key] = line
    return found
