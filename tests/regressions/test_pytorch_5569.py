"""pytorch#5569, #161186: an output kept on ctx is a cycle: memory is not returned when the last user lets
go."""

import gc
import weakref

import pytest
import torch
from calls import CALLS, leaves
from support import KERNEL_BACKENDS

from fastdl import backends


def check(call, device):
    inputs = leaves(call, torch.device(device))
    gc.collect()
    gc.disable()
    try:
        out = call.function(*inputs)
        seen = weakref.ref(out)
        node = out.grad_fn
        del out
        assert seen() is None
        node = weakref.ref(node) if hasattr(node, "__weakref__") else None
        assert node is None or node() is None
    finally:
        gc.enable()


class OnCtx(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        out = x * 2
        ctx.out = out
        return out

    @staticmethod
    def backward(ctx, grad):
        return grad * 2


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("kernel", KERNEL_BACKENDS)
def test_given_back_at_once(name, kernel, device):
    with backends.use_backend(kernel):
        check(CALLS[name], device)


def test_seen():
    with pytest.raises(AssertionError):
        check(CALLS["max_pool2d"]._replace(function=OnCtx.apply), "cpu")
