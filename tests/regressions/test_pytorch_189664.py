"""pytorch#189664: a dilation of INT_MAX under a window of one cell overflowed the loop's counter."""

import ctypes

import pytest
import torch

import fastdl.functional as F

INT_MAX = 2**31 - 1


def check(pool, device):
    x = torch.randn(1, 2, 5, 5).to(device)
    assert torch.equal(pool(x, 1, 1, 0, INT_MAX), x)


def counting_in_32_bits(x, kernel_size, stride, padding, dilation):
    out = x.clone()
    for h in range(x.shape[2]):
        at, steps = h, 0
        while at < min(h + dilation * (kernel_size - 1) + 1, x.shape[2]) and steps < 3:
            at, steps = ctypes.c_int32(at + dilation).value, steps + 1
            out[:, :, h] = out[:, :, h].maximum(x[:, :, at % x.shape[2]])
    return out


def test_one_cell(on, device):
    check(F.max_pool2d, device)


def test_seen():
    with pytest.raises(AssertionError):
        check(counting_in_32_bits, "cpu")
