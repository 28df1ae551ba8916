"""pytorch#151589, triton#1330: a view at an odd offset was loaded as if its address were aligned.

On our ops: test_layouts.test_surroundings_of_views_are_untouched, and test_every_end_of_a_row and the like in
tests/kernels.
"""

import pytest
import test_layouts
import torch
from regressions.broken import put_in


def from_an_aligned_address(x):
    return x.as_strided(x.shape, x.stride(), x.storage_offset() // 4 * 4).relu()


def test_seen(monkeypatch):
    name = put_in(monkeypatch, torch.relu, from_an_aligned_address)
    with pytest.raises(AssertionError):
        test_layouts.test_surroundings_of_views_are_untouched(name, "cpu", torch.device("cpu"))
