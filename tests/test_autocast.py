"""Autocast: torch's casting policy per op, forward and backward, on every backend."""

import pytest
import torch
import torch.nn.functional as T
from namesakes import tps_grid_sample

import fastdl.functional as F

LOW = [torch.bfloat16, torch.float16]


def inputs(device, dtype=torch.float32):
    x = torch.randn(2, 3, 6, 6, device=device, dtype=dtype, requires_grad=True)
    w = torch.randn(4, 3, 3, 3, device=device, requires_grad=True)
    b = torch.randn(4, device=device, requires_grad=True)
    return x, w, b


@pytest.mark.parametrize("low", LOW)
def test_conv2d_runs_in_the_lower_precision(low, on, device):
    x, w, b = inputs(device)
    with torch.autocast(device.type, low):
        ours, torchs = F.conv2d(x, w, b, activation="relu"), T.relu(T.conv2d(x, w, b))
    assert ours.dtype == torchs.dtype == low
    ours.float().square().sum().backward()
    assert x.grad.dtype == w.grad.dtype == b.grad.dtype == torch.float32
    torch.testing.assert_close(
        ours, torchs, rtol=0.02, atol=0.02
    )  # two roundings: values are checked by parity


@pytest.mark.parametrize("low", LOW)
def test_cross_entropy_gives_float32(low, on, device):
    logits = torch.randn(6, 5, device=device, dtype=low, requires_grad=True)
    target = torch.randint(5, (6,), device=device)
    with torch.autocast(device.type, low):
        ours, torchs = F.cross_entropy(logits, target), T.cross_entropy(logits, target)
    assert ours.dtype == torchs.dtype == torch.float32
    torch.testing.assert_close(ours, torchs)
    (grad,) = torch.autograd.grad(ours, logits)
    (expected,) = torch.autograd.grad(torchs, logits)
    assert grad.dtype == low
    torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("low", LOW)
def test_affine_grid_sample_gives_float32(low, on, device):
    x = torch.randn(2, 3, 6, 6, device=device, dtype=low, requires_grad=True)
    theta = torch.tensor([[0.8, -0.45, 0.1], [0.5, 0.85, -0.15]], device=device).repeat(2, 1, 1)
    theta.requires_grad_()
    with torch.autocast(device.type, low):
        ours = F.affine_grid_sample(x, theta, (2, 3, 5, 5))
    assert ours.dtype == torch.float32
    # the grid in float32, which torch's autocast would round: so against plain float32
    grid = T.affine_grid(theta, [2, 3, 5, 5], align_corners=False)
    torch.testing.assert_close(ours, T.grid_sample(x.float(), grid, align_corners=False))
    grads = torch.autograd.grad(ours.square().sum(), [x, theta])
    assert [g.dtype for g in grads] == [low, torch.float32]


@pytest.mark.parametrize("low", LOW)
def test_tps_grid_sample_gives_float32(low, on, device):
    x = torch.randn(2, 3, 6, 6, device=device, dtype=low, requires_grad=True)
    points = torch.rand(2, 9, 2, device=device).mul(1.6).sub(0.8).requires_grad_()
    with torch.autocast(device.type, low):
        ours = F.tps_grid_sample(x, points, (2, 3, 5, 5))
    assert ours.dtype == torch.float32
    expected = tps_grid_sample(x.float(), points, (2, 3, 5, 5))
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
    grads = torch.autograd.grad(ours.square().sum(), [x, points])
    assert [g.dtype for g in grads] == [low, torch.float32]


@pytest.mark.parametrize("low", LOW)
def test_batch_norm_and_max_pool2d_keep_their_dtype(low, on, device):
    x = torch.randn(4, 3, 6, 6, device=device, dtype=low, requires_grad=True)
    w, b = torch.rand(3, device=device), torch.rand(3, device=device)
    with torch.autocast(device.type, low):
        normed = F.batch_norm(x, None, None, w, b, training=True, activation="relu")
        pooled = F.max_pool2d(x, 2)
        expected = T.max_pool2d(x, 2)
    assert normed.dtype == pooled.dtype == expected.dtype == low
    torch.testing.assert_close(pooled, expected, rtol=0, atol=0)
    assert torch.autograd.grad(normed.float().square().sum(), x)[0].dtype == low


def test_float64_is_left_alone(device):
    with torch.autocast(device.type, torch.bfloat16):
        x = torch.randn(1, 3, 5, 5, dtype=torch.float64, device=device)
        w = torch.randn(2, 3, 3, 3, dtype=torch.float64, device=device)
        assert F.conv2d(x, w).dtype == T.conv2d(x, w).dtype
