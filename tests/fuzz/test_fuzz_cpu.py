"""Any call on the CPU's kernels: see drawing.py."""

import pytest
from fuzz.drawing import any_call, needs
from fuzz.examples import EXAMPLES

pytestmark = [pytest.mark.slow, needs("cpu")]


@pytest.mark.parametrize("op", EXAMPLES)
def test_any_call(op, monkeypatch):
    any_call(op, "cpu", monkeypatch)
