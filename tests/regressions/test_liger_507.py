"""Liger#507: the loss was 0 for logits that require no gradient, as in evaluation."""

import pytest
import torch
import torch.nn.functional as T

import fastdl.functional as F


def check(cross_entropy, device):
    logits, target = torch.randn(4, 5).to(device), torch.tensor([0, 1, 2, 3]).to(device)
    with_graph = cross_entropy(logits.clone().requires_grad_(), target)
    with torch.no_grad():
        assert torch.equal(cross_entropy(logits, target), with_graph.detach())


def only_for_training(logits, target):
    return T.cross_entropy(logits, target) * float(logits.requires_grad)


def test_loss_without_gradient(on, device):
    check(F.cross_entropy, device)


def test_seen():
    with pytest.raises(AssertionError):
        check(only_for_training, "cpu")
