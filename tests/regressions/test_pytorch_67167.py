"""pytorch#67167, #71550, #64039: silently wrong on tensors that are not contiguous, or are expanded.

On our ops: test_layouts.test_every_input_of_any_strides.
"""

import pytest
import test_layouts
import torch
from regressions.broken import put_in


def as_if_contiguous(x):
    return x.as_strided(x.shape, torch.empty(x.shape, device="meta").stride()).relu()


@pytest.mark.parametrize("how", ["strided", "expanded"])
def test_seen(how, monkeypatch, device):
    name = put_in(monkeypatch, torch.relu, as_if_contiguous)
    with pytest.raises((AssertionError, RuntimeError)):  # RuntimeError: past the end of the storage
        test_layouts.test_every_input_of_any_strides(name, "cpu", how, device)
