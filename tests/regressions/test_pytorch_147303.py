"""pytorch#147303, apex and FlagGems [statistics in the dtype of the input]: batch norm of half precision in
channels_last: sums that overflow."""

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
    x = (200 + 100 * torch.rand(8, 4, 12, 12)).half().to(memory_format=torch.channels_last)
    assert_as_torch(norm, torchs, [t.to(device) for t in (x, torch.randn(4), torch.randn(4))])


def sums_in_half(x, weight, bias):
    mean = (x.sum((0, 2, 3), keepdim=True, dtype=x.dtype) / (x.numel() // 4)).to(x.dtype)
    return torchs(x - mean, weight, bias)


def test_sums_in_float32(on, device):
    check(norm, device)


def test_seen():
    with pytest.raises(AssertionError):
        check(sums_in_half, "cpu")
