"""pytorch#40131, P#1465, burn P#5662, TileOPs P#832: windows of nothing but -Inf or NaN had no winner, index
-1."""

import pytest
import torch
import torch.nn.functional as T

import fastdl.functional as F


def check(pool, device):
    for value in (-float("inf"), float("nan")):
        x = torch.full((1, 2, 4, 4), value).to(device).requires_grad_()
        out, indices = pool(x, 2, padding=1, return_indices=True)
        assert torch.equal(indices, T.max_pool2d(x, 2, padding=1, return_indices=True)[1])
        (grad,) = torch.autograd.grad(out.sum(), x)
        assert grad.sum() == out.numel()


def starting_below_everything(x, window, padding, return_indices):
    out, indices = T.max_pool2d(x, window, padding=padding, return_indices=True)
    return out, indices.where(out > -float("inf"), -1)


def test_every_window_has_a_winner(on, device):
    check(F.max_pool2d, device)


def test_seen():
    with pytest.raises(AssertionError):
        check(starting_below_everything, "cpu")
