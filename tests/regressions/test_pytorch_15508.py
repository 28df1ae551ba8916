"""pytorch#15508, #69339, #72056, FlagGems P#73: an ignore_index beyond the classes, with weights and
smoothing: read out of bounds, or ignored only if it is -100."""

import pytest
import torch
import torch.nn.functional as T
from comparing import assert_as_torch

import fastdl.functional as F


def check(cross_entropy, reduction, smoothing, device):
    logits, weight = torch.randn(6, 5).to(device), (torch.rand(5) + 0.5).to(device)
    target = torch.tensor([0, 255, 4, 255, 2, 1]).to(device)
    options = {"ignore_index": 255, "reduction": reduction, "label_smoothing": smoothing}
    assert_as_torch(
        lambda x: cross_entropy(x, target, weight.to(x), **options),
        lambda x: T.cross_entropy(x, target, weight.to(x), **options),
        [logits],
    )


def unmasked(logits, target, weight, ignore_index, **options):
    return T.cross_entropy(logits, target.clamp(max=4), weight, **options)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_ignored_beyond_the_classes(reduction, smoothing, on, device):
    check(F.cross_entropy, reduction, smoothing, device)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_seen(reduction):
    with pytest.raises(AssertionError):
        check(unmasked, reduction, 0.0, "cpu")
