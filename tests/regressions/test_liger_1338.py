"""Liger P#1338: rows that are ignored stayed unwritten, whatever was in the memory before."""

import pytest
import torch
import torch.nn.functional as T

import fastdl.functional as F


@pytest.fixture
def memory_of_nan():
    """Under deterministic algorithms torch.empty is filled with NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def check(cross_entropy, device):
    logits = torch.randn(5, 7).to(device).requires_grad_()
    target = torch.tensor([1, -100, 2, -100, 3]).to(device)
    loss = cross_entropy(logits, target, reduction="none")
    assert loss[[1, 3]].eq(0).all()
    assert torch.autograd.grad(loss.sum(), logits)[0][[1, 3]].eq(0).all()


def only_what_counts(logits, target, reduction):
    loss, kept = torch.empty(len(target)), target != -100
    loss[kept] = T.cross_entropy(logits[kept], target[kept], reduction=reduction)
    return loss


def test_ignored_rows_are_written(on, device, memory_of_nan):
    check(F.cross_entropy, device)


def test_seen(memory_of_nan):
    with pytest.raises(AssertionError):
        check(only_what_counts, "cpu")
