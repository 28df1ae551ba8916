"""tt-metal#45968, tensorflow#118701, caffe#3963: a variance of E[x^2] - E[x]^2, negative for large means."""

import pytest
import torch
import torch.nn.functional as T
from comparing import assert_as_torch

import fastdl.functional as F


def norm(x):
    return F.batch_norm(x, None, None, training=True)


def check(norm, device):
    x = 1e4 + 0.1 * torch.randn(4, 3, 8, 8)
    x[:, 2] = 1e4  # constant: a variance of 0
    assert_as_torch(norm, lambda x: T.batch_norm(x, None, None, training=True), [x.to(device)], grads=False)


def moments_of_squares(x):
    mean = x.mean((0, 2, 3), keepdim=True)
    return (x - mean) * (x.square().mean((0, 2, 3), keepdim=True) - mean**2 + 1e-5).rsqrt()


def test_large_mean(on, device):
    check(norm, device)


def test_seen():
    with pytest.raises(AssertionError):
        check(moments_of_squares, "cpu")
