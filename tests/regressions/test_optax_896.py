"""optax#896: 0 * -inf: a class ruled out by a logit of -inf made the loss NaN; FlagGems' maximum that began
at 0 made it infinite for logits far below."""

import pytest
import torch
import torch.nn.functional as T

import fastdl.functional as F


def check(cross_entropy, device):
    logits = (
        torch.tensor([[1.0, -float("inf"), 2.0], [-1000.0, -1001.0, -1002.0]]).to(device).requires_grad_()
    )
    loss = cross_entropy(logits, torch.tensor([0, 1]).to(device))
    (grad,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite() and grad.isfinite().all() and grad[0, 1] == 0


def sum_of_products(logits, target):
    return -(T.one_hot(target, 3) * logits.log_softmax(1)).sum(1).mean()


def without_a_maximum(logits, target):
    return (logits.exp().sum(1).log() - logits.gather(1, target[:, None])[:, 0]).mean()


def test_finite(on, device):
    check(F.cross_entropy, device)


@pytest.mark.parametrize("broken", [sum_of_products, without_a_maximum])
def test_seen(broken):
    with pytest.raises(AssertionError):
        check(broken, "cpu")
