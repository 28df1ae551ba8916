"""Ops broken on purpose, in the place of a row of tests/calls.py: the generic checks must see them.

The checks hold a backend against the reference; a broken op is right under the reference, and wrong
elsewhere.
"""

from collections.abc import Callable

import torch
from calls import CALLS, Call

from fastdl import backends


def put_in(monkeypatch, good: Callable, bad: Callable) -> str:
    """A row of its own for the table: an op on one image [2, 4, 6, 6]; the name of the row."""

    def function(x):
        return (good if backends._forced == "reference" else bad)(x)

    row = Call(function, lambda: [torch.randn(2, 4, 6, 6)], (0,), (2, 4, 6, 6))
    monkeypatch.setitem(CALLS, "max_pool2d broken", row)
    return "max_pool2d broken"
