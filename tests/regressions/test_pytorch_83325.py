"""pytorch#83325, #29578: a batch of nothing ended in a launch of no blocks, or a division by zero."""

import pytest
import torch
import torch.nn.functional as T
from comparing import assert_as_torch

import fastdl.functional as F


def weight(x):
    return torch.ones(2, x.shape[1], 3, 3, dtype=x.dtype, device=x.device)


OPS = {
    "conv2d": lambda M: lambda x: M.conv2d(x, weight(x)),
    "max_pool2d": lambda M: lambda x: M.max_pool2d(x, 3, 2, 1),
    "batch_norm": lambda M: lambda x: M.batch_norm(x, None, None, training=True),
    "cross_entropy": lambda M: lambda x: M.cross_entropy(x, x.new_zeros(0, 4, 4).long(), reduction="sum"),
}


def check(M, op, device):
    assert_as_torch(OPS[op](M), OPS[op](T), [torch.empty(0, 3, 4, 4, device=device)])


class Dividing:
    @staticmethod
    def max_pool2d(x, *window):
        per_image = x.numel() // x.shape[0]  # blocks
        return T.max_pool2d(x.view(-1, per_image).view_as(x), *window)


@pytest.mark.parametrize("op", OPS)
def test_batch_of_nothing(op, on, device):
    check(F, op, device)


def test_seen():
    with pytest.raises(ZeroDivisionError):
        check(Dividing, "max_pool2d", "cpu")
