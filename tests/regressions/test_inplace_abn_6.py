"""inplace_abn#6, #14, #149: an output changed in place by what follows: an error or the right gradient."""

import pytest
import torch
from calls import CALLS, leaves
from support import KERNEL_BACKENDS

from fastdl import backends

ON_IMAGES = [name for name in CALLS if len(CALLS[name].out) == 4]


def check(call, device):
    inputs = leaves(call, torch.device(device))
    asked = [inputs[i] for i in call.grads]
    expected = torch.autograd.grad((call.function(*inputs) * 2).sum(), asked)
    out = call.function(*inputs)
    out.mul_(2)
    try:
        got = torch.autograd.grad(out.sum(), asked)
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)
    else:
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


class Unversioned(torch.autograd.Function):
    """Keeps its output where autograd does not look for changes."""

    @staticmethod
    def forward(ctx, x):
        ctx.out = torch.tanh(x)
        return ctx.out

    @staticmethod
    def backward(ctx, grad):
        return grad * (1 - ctx.out**2)


@pytest.mark.parametrize("name", ON_IMAGES)
@pytest.mark.parametrize("kernel", KERNEL_BACKENDS)
def test_change_is_noticed_or_harmless(name, kernel, device):
    with backends.use_backend(kernel):
        check(CALLS[name], device)


def test_seen():
    with pytest.raises(AssertionError):
        check(CALLS["max_pool2d"]._replace(function=Unversioned.apply), "cpu")
