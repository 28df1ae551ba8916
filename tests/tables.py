"""Tables of measurements for tests, and what is chosen by them."""

import pytest
import torch

import fastdl.functional as F
from fastdl import backends, tuned

CPU = torch.device("cpu")
BUILT = backends.why_not("cpu", CPU) is None
needs_kernels = pytest.mark.skipif(not BUILT, reason="no CPU kernels here")

SMALL, LARGE = torch.randn(1, 2, 8, 8), torch.randn(4, 8, 64, 64)  # 2^7 and 2^17 elements


def entry(backend, cases=1, **ratios):
    ratios = ratios or {"reference": 1.5, "cpu": 1.5, backend: 1.0}
    return {"backend": backend, "ratios": ratios, "cases": cases}


def content(kind="cpu", dtype="float32", **ops):
    ops = {op: {dtype: classes} for op, classes in ops.items()}
    return {"schema": tuned.SCHEMA, "kind": kind, "environment": {}, "ops": ops}


def chosen(*tensors, op="max_pool2d"):
    return backends.choose(op, CPU, tensors[0].dtype if tensors else torch.float32, tensors=tensors)


def served(x):
    with backends.record() as choices:
        F.max_pool2d(x, 2)
    return [choice.backend for choice in choices]
