"""A line of a results file: who, on what, how long, and how that compares."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from . import machine
from .case import Goal, Work
from .peers import EAGER, OURS


@dataclass
class Row:
    """One implementation of one case in one direction; times in milliseconds."""

    op: str
    case: str
    dtype: str
    layout: str
    direction: str
    timer: str
    implementation: str
    sweep: str = ""  # what grows, in a row of a sweep
    status: str = "measured"  # or skipped, wrong, failed
    note: str = ""
    median_ms: float | None = None
    p20_ms: float | None = None
    p80_ms: float | None = None
    gb_per_s: float | None = None  # least bytes over median time
    percent_of_copy: float | None = None
    tflop_per_s: float | None = None
    percent_of_matmul: float | None = None
    speedup_vs_eager: float | None = None
    speedup_vs_compile: float | None = None
    goal_vs_eager: float | None = None
    goal_vs_compile: float | None = None
    peak_mb: float | None = None
    first_ms: float | None = None  # the first call in this process, with what it compiles or loads
    error: float | None = None

    def plain(self) -> dict[str, Any]:
        """As JSON, what is not known left out, figures to five digits."""
        return {
            k: float(f"{v:.5g}") if isinstance(v, float) else v
            for k, v in asdict(self).items()
            if v is not None and v != ""
        }

    def fill(self, times: list[float], work: Work | None, device: torch.device, dtype: torch.dtype) -> None:
        """The figures that follow from ``times`` in seconds."""
        seconds = statistics.median(times)
        self.median_ms = 1e3 * seconds
        self.p20_ms, self.p80_ms = (1e3 * q for q in _fifths(times))
        if work is None or self.timer == "host":
            return
        self.gb_per_s = work.bytes / seconds / 1e9
        self.percent_of_copy = 100 * work.bytes / seconds / machine.copy_rate(device, work.bytes)
        if work.flops:
            self.tflop_per_s = work.flops / seconds / 1e12
            self.percent_of_matmul = 100 * work.flops / seconds / machine.matmul_rate(device, dtype)


def _fifths(times: list[float]) -> tuple[float, float]:
    if len(times) < 2:
        return times[0], times[0]
    cuts = statistics.quantiles(times, n=5, method="inclusive")
    return cuts[0], cuts[3]


def compare(rows: Iterable[Row], goal: Goal | None) -> None:
    """Hold rows of one case, direction and timer against each other; ``goal`` is ours."""
    rows = [row for row in rows if row.median_ms is not None]
    times = {row.implementation: row.median_ms for row in rows}
    for row in rows:
        if EAGER in times:
            row.speedup_vs_eager = times[EAGER] / row.median_ms
        if "compile" in times:
            row.speedup_vs_compile = times["compile"] / row.median_ms
        if goal is not None and row.implementation == OURS and row.timer in ("wall", "graph"):
            row.goal_vs_eager, row.goal_vs_compile = goal
