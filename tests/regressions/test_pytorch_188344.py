"""pytorch#188344, #67239: backward of a pool with padding, wrong in channels_last."""

import pytest
import torch
import torch.nn.functional as T
from comparing import assert_as_torch

import fastdl.functional as F


def check(pool, device):
    x = torch.randn(2, 5, 7, 6).to(device, memory_format=torch.channels_last)
    assert_as_torch(lambda x: pool(x, 3, 2, 1), lambda x: T.max_pool2d(x, 3, 2, 1), [x])


class PlanarBackward(torch.autograd.Function):
    """Reads a channels_last gradient in the order of its memory."""

    @staticmethod
    def forward(ctx, x, *window):
        out, ctx.indices = T.max_pool2d(x, *window, return_indices=True)
        ctx.shape = x.shape
        return out

    @staticmethod
    def backward(ctx, grad):
        n, c, h, w = ctx.shape
        grad = grad.permute(0, 2, 3, 1).reshape(grad.shape)
        grad_x = grad.new_zeros(n, c, h * w).scatter_add(2, ctx.indices.flatten(2), grad.flatten(2))
        return grad_x.view(n, c, h, w), None, None, None


def test_channels_last_with_padding(on, device):
    check(F.max_pool2d, device)


def test_seen():
    with pytest.raises(AssertionError):
        check(PlanarBackward.apply, "cpu")
