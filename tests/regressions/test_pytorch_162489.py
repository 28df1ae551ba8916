"""pytorch#162489: values of 1e30 overflowed the combination of partial means: NaN for a finite mean."""

import pytest
import torch

import fastdl.functional as F


def check(norm, device):
    x = (1e30 * (1 + torch.rand(64, 2, 8, 8))).to(device)
    mean, var = torch.zeros(2, device=device), torch.ones(2, device=device)
    out = norm(x, mean, var, training=True, momentum=1.0)
    expected = x.double().mean((0, 2, 3))
    assert not out.isnan().any()
    assert torch.allclose(mean.double(), expected, rtol=torch.finfo(torch.float32).eps * 64)


def combining(x, mean, var, training, momentum):
    count = x.numel() / x.shape[1] / 2
    halves = [half.mean((0, 2, 3)) for half in x.chunk(2)]
    delta = halves[1] - halves[0]
    squares = sum(half.var((0, 2, 3)) * count for half in x.chunk(2)) + delta**2 * count / 2
    mean.copy_(halves[0] + delta * squares / squares / 2)
    return x - mean.view(1, -1, 1, 1)


def test_huge_values(on, device):
    check(F.batch_norm, device)


def test_seen():
    with pytest.raises(AssertionError):
        check(combining, "cpu")
