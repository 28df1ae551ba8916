"""Liger#272, #343, unsloth#5002, and apex's xentropy: a gradient written over the logits, or over the
gradient that came in, wrong for whoever reads them after."""

import pytest
import torch
import torch.nn.functional as T

import fastdl.functional as F


def check(cross_entropy, device):
    logits = torch.randn(4, 5).to(device).requires_grad_()
    before, target = logits.detach().clone(), torch.tensor([0, 1, 2, 3]).to(device)
    incoming = torch.full((4,), 2.0, device=device)
    one, two = (cross_entropy(logits, target, reduction="none") for _ in range(2))
    grads = [torch.autograd.grad(loss, logits, incoming, retain_graph=True)[0] for loss in (one, one, two)]
    assert torch.equal(logits, before) and incoming.eq(2).all()
    assert torch.equal(grads[0], grads[1]) and torch.equal(grads[0], grads[2])


class Overwriting(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, target, reduction):
        loss = T.cross_entropy(logits, target, reduction=reduction)
        raw = logits.detach().numpy()  # as a kernel: autograd sees nothing
        raw[:] = logits.softmax(1) - T.one_hot(target, 5)
        ctx.grad = torch.from_numpy(raw)
        return loss

    @staticmethod
    def backward(ctx, grad):
        return ctx.grad * grad[:, None], None, None


def test_nothing_is_overwritten(on, device):
    check(F.cross_entropy, device)


def test_seen():
    with pytest.raises(AssertionError):
        check(lambda x, target, reduction: Overwriting.apply(x, target, reduction), "cpu")
