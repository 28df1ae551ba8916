"""Every case of the shared table on every backend: values, dtypes, shapes and gradients against torch."""

from itertools import groupby

import pytest
import torch
from support import DEVICE, KERNEL_BACKENDS

from fastdl import parity
from fastdl.backends import OPS

# the reference is torch: one dtype and layout shows that its arguments arrive
RUNS = [
    *(parity.plan(names=KERNEL_BACKENDS, device=DEVICE) if KERNEL_BACKENDS else []),
    *parity.plan(names=["reference"], device=DEVICE, dtypes=[torch.float32], layouts=["contiguous"]),
]


def name(run: parity.Run) -> str:
    return f"{run.op}-{run.name}-{run.backend}-{str(run.dtype).removeprefix('torch.')}-{run.layout}"


def cases(runs: list[parity.Run]) -> list[list[parity.Run]]:
    return [list(group) for _, group in groupby(runs, key=lambda run: (run.op, run.name))]


def few(runs: list[parity.Run]) -> list[parity.Run]:
    """Of every case each dtype once and each layout, paired otherwise from case to case."""
    kept = []
    for turn, group in enumerate(cases(runs)):
        layouts = list(dict.fromkeys(run.layout for run in group))
        for run in group:
            if layouts.index(run.layout) == (parity.DTYPES.index(run.dtype) + turn) % len(layouts):
                kept.append(run)
    return kept


# the interpreter takes ten times as long as the other backends together
INTERPRETED = [run for run in RUNS if run.backend == "triton" and DEVICE == "cpu"]
SLOW = set(INTERPRETED) - set(few(INTERPRETED))
MARKED = [pytest.param(run, marks=pytest.mark.slow if run in SLOW else ()) for run in RUNS]


@pytest.mark.parametrize("run", MARKED, ids=name)
def test_case(run):
    for result in parity.execute(run):
        assert result.verdict == "pass", f"{result.direction}: {result.note}"


def test_what_is_not_slow_has_every_dtype_and_layout_of_every_case():
    for whole, part in zip(cases(INTERPRETED), cases(few(INTERPRETED)), strict=True):
        for column in ("op", "name", "dtype", "layout"):
            assert {getattr(run, column) for run in part} == {getattr(run, column) for run in whole}


def test_every_op_has_cases_with_gradients():
    for op in OPS:
        assert any(case.op == op and case.grads for case in parity.CASES)


def test_no_case_is_arbitrary():
    """At a tie or a kink torch itself is far from the oracle, and the rule would let anything pass."""
    for run in parity.plan(names=["reference"], dtypes=[torch.float32], layouts=["contiguous"]):
        for result in parity.execute(run):
            assert result.torch_error < 1e-3, f"{run.op} {run.name} {result.direction}: {result.torch_error}"


def test_names_are_unique():
    keys = [(case.op, case.name) for case in parity.CASES]
    assert len(keys) == len(set(keys))


def test_kernel_backends_are_run():
    """On a machine with Triton (interpreted or not) the table must not silently shrink to the reference."""
    pytest.importorskip("triton")
    assert "triton" in KERNEL_BACKENDS
