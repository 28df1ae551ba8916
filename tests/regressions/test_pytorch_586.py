"""pytorch#586, xla#913, FlagGems#5222, and attorch's unwritten buffers: backward of batch norm with the wrong
statistics, those of the batch in evaluation, or the root taken twice."""

import pytest
import torch
import torch.nn.functional as T
from comparing import assert_as_torch

import fastdl.functional as F


def inputs(device):
    return [t.to(device) for t in (3 * torch.randn(4, 3, 5, 5) + 1, torch.randn(3), torch.randn(3))]


def calling(norm, training, device):
    def call(x, weight, bias):
        mean, var = torch.full((3,), 0.5), torch.full((3,), 2.0)
        return norm(x, mean.to(x), var.to(x), weight, bias, training)

    return call


def check(norm, training, device):
    assert_as_torch(calling(norm, training, device), calling(T.batch_norm, training, device), inputs(device))


class Broken(torch.autograd.Function):
    """Right forward; backward in evaluation by the batch's statistics, in training by a second root."""

    @staticmethod
    def forward(ctx, x, mean, var, weight, bias, training):
        ctx.save_for_backward(x, weight)
        ctx.training = training
        return T.batch_norm(x, mean, var, weight, bias, training)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        with torch.enable_grad():
            x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
            out = T.batch_norm(x, None, None, weight, torch.zeros_like(weight), True)
            grad_x, grad_weight = torch.autograd.grad(out, (x, weight), grad)
        twice = x.detach().var((0, 2, 3), keepdim=True).pow(0.25) if ctx.training else 1.0
        return grad_x * twice, None, None, grad_weight, grad.sum((0, 2, 3)), None


@pytest.mark.parametrize("training", [False, True])
def test_the_right_statistics(training, on, device):
    check(F.batch_norm, training, device)


@pytest.mark.parametrize("training", [False, True])
def test_seen(training):
    with pytest.raises(AssertionError):
        check(Broken.apply, training, "cpu")
