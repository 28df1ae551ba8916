"""pytorch#116349, #70348, #75181, efficient_cross_entropy#6: everything ignored is a mean over nothing: NaN,
a sum of 0, and a gradient of 0."""

import pytest
import torch
import torch.nn.functional as T

import fastdl.functional as F


def check(cross_entropy, device):
    logits = torch.randn(4, 5).to(device).requires_grad_()
    target = torch.full((4,), -100, device=device)
    mean = cross_entropy(logits, target)
    assert mean.isnan()
    assert torch.autograd.grad(mean, logits)[0].eq(0).all()
    assert cross_entropy(logits, target, reduction="sum") == 0


def over_at_least_one(logits, target, **options):
    rows = T.cross_entropy(logits, target, reduction="none").sum()
    return rows if options else rows / (target != -100).sum().clamp(min=1)


def test_mean_over_nothing(on, device):
    check(F.cross_entropy, device)


def test_seen():
    with pytest.raises(AssertionError):
        check(over_at_least_one, "cpu")
