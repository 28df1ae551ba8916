"""Mean cross-entropy from ten classes to a vocabulary."""

import pytest
import torch
from measure import DEVICE, DTYPE, directions, implementations, measure

SHAPES = {"256x10": (256, 10), "8192x1000": (8192, 1000), "8192x32000": (8192, 32000)}


@implementations
@directions
@pytest.mark.parametrize("shape", SHAPES)
def test_cross_entropy(benchmark, shape, direction, implementation):
    rows, classes = SHAPES[shape]
    if DEVICE == "cpu" and rows > 1000:
        rows //= 8
    inputs = {"input": torch.randn(rows, classes, dtype=DTYPE), "target": torch.randint(classes, (rows,))}
    measure(benchmark, "cross_entropy", inputs, ("input",), implementation, direction)
