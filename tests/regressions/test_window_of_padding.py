"""Found by fuzzing, in torch 2.13: where dilation leaves a window nothing but padding, torch indexes outside
the plane, and its backward writes there, in memory of others. Ours has no winner there, and no gradient."""

import pytest
import torch
from support import KERNEL_BACKENDS

import fastdl.functional as F
from fastdl import backends


def check(pool, device):
    frame = torch.full((5, 1, 15), 7.0).to(device)
    x = frame[1:4].requires_grad_()
    out = pool(x, 2, 2, (1, 0), 2)
    assert out.eq(-float("inf")).all()
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert grad.eq(0).all()


@pytest.mark.parametrize("kernel", KERNEL_BACKENDS)
def test_no_winner(kernel, device):
    with backends.use_backend(kernel):
        check(F.max_pool2d, device)


def test_seen():
    def first_cell_wins(x, *window):
        return torch.nn.functional.pad(x.amax(-2, keepdim=True), (0, -8))

    with pytest.raises(AssertionError):
        check(first_cell_wins, "cpu")
