"""pytorch#47906, #38487, #87979: under autocast backward met tensors of two dtypes, or used fp16 for bf16."""

import pytest
import torch
import torch.nn.functional as T

import fastdl.functional as F


def check(conv, low, device):
    x, w = (torch.randn(shape).to(device).requires_grad_() for shape in ((2, 3, 6, 6), (4, 3, 3, 3)))
    with torch.autocast(device.type, low):
        out = conv(x, w)
    assert out.dtype == low
    # large for fp16, within the range of bf16
    grad = torch.full_like(out, 3e4 if low == torch.float16 else 1e6)
    for got in torch.autograd.grad(out, (x, w), grad):
        assert got.dtype == torch.float32
        assert got.isfinite().all() or low == torch.float16


class AlwaysHalf(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return T.conv2d(x, w)

    @staticmethod
    def backward(ctx, grad):
        x, w = (t.half() for t in ctx.saved_tensors)
        grad = grad.half()
        return (
            torch.nn.grad.conv2d_input(x.shape, w, grad).float(),
            torch.nn.grad.conv2d_weight(x, w.shape, grad).float(),
        )


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16])
def test_backward_in_autocasts_dtype(low, on, device):
    check(lambda x, w: F.conv2d(x, w, activation="relu"), low, device)


def test_seen():
    with pytest.raises(AssertionError):
        check(AlwaysHalf.apply, torch.bfloat16, torch.device("cpu"))
