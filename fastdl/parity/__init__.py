"""Numerical parity with PyTorch on the machine at hand: the case table, the tolerance rule, the runner."""

from .cases import CASES, Case
from .runner import DIRECTIONS, DTYPES, LAYOUTS, Result, Run, execute, lay_out, plan, report
from .tolerance import Verdict, judge

__all__ = [
    "CASES",
    "DIRECTIONS",
    "DTYPES",
    "LAYOUTS",
    "Case",
    "Result",
    "Run",
    "Verdict",
    "execute",
    "judge",
    "lay_out",
    "plan",
    "report",
]
