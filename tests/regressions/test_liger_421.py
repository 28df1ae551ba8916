"""Liger#421, #678, #968, P#1298: reduction="none" gave a scalar, or its gradient one factor for all rows."""

import pytest
import torch
import torch.nn.functional as T
from comparing import assert_as_torch

import fastdl.functional as F


def check(cross_entropy, device):
    target = torch.tensor([[0, 1], [2, 3], [4, -100]]).to(device)
    assert_as_torch(
        lambda x: cross_entropy(x, target, reduction="none"),
        lambda x: T.cross_entropy(x, target, reduction="none"),
        [torch.randn(3, 5, 2).to(device)],
    )


class OneFactor(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, target, reduction):
        ctx.save_for_backward(logits, target)
        return T.cross_entropy(logits, target, reduction=reduction)

    @staticmethod
    def backward(ctx, grad):
        logits, target = ctx.saved_tensors
        one_hot = T.one_hot(target.clamp(min=0), 5).movedim(-1, 1) * (target != -100).unsqueeze(1)
        kept = (target != -100).unsqueeze(1)
        return (logits.softmax(1) * kept - one_hot) * grad.flatten()[0], None, None


def test_a_factor_per_row(on, device):
    check(F.cross_entropy, device)


def test_seen():
    with pytest.raises(AssertionError):
        check(lambda x, target, reduction: OneFactor.apply(x, target, reduction), "cpu")
