"""attorch#8, attorch P#21: gradients of batch norm for a plain sum, which cancel, and of a last row left
out."""

import pytest
import torch
import torch.nn.functional as T
from comparing import assert_as_torch

import fastdl.functional as F


def norm(x, weight, bias):
    return F.batch_norm(x, None, None, weight, bias, True)


def torchs(x, weight, bias):
    return T.batch_norm(x, None, None, weight, bias, True)


def check(norm, device):
    for rows in (64, 67):
        tensors = [torch.randn(rows, 5, 3, 3), torch.randn(5), torch.randn(5)]
        assert_as_torch(norm, torchs, [t.to(device) for t in tensors])


class InHalf(torch.autograd.Function):
    """The two sums that cancel are rounded to half precision."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return torchs(x, weight, bias)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        axes = (0, 2, 3)
        invstd = (x.var(axes, unbiased=False, keepdim=True) + 1e-5).rsqrt()
        hat = (x - x.mean(axes, keepdim=True)) * invstd
        sums = [(g.mean(axes, keepdim=True)).half().to(x) for g in (grad, grad * hat)]
        grad_x = weight.view(1, -1, 1, 1) * invstd * (grad - sums[0] - hat * sums[1])
        return grad_x, (grad * hat).sum(axes), grad.sum(axes)


def test_sums_keep_their_digits(on, device):
    check(norm, device)


def test_seen():
    with pytest.raises(AssertionError):
        check(InHalf.apply, "cpu")
