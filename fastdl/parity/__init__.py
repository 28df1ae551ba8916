"""Numerical parity with PyTorch on the machine at hand: the case table, the tolerance rule, the runner."""

from .cases import CASES, Case
from .runner import DIRECTIONS, DTYPES, LAYOUTS, Result, lay_out, plan, report, run
from .tolerance import Verdict, judge

__all__ = [
    "CASES",
    "DIRECTIONS",
    "DTYPES",
    "LAYOUTS",
    "Case",
    "Result",
    "Verdict",
    "judge",
    "lay_out",
    "plan",
    "report",
    "run",
]
