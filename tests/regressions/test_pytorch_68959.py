"""pytorch#68959, #152171, vision#7579, cunn#84: gradients added up by atomics, in another order in every run.

On our ops: test_layouts.test_deterministic.
"""

import pytest
import test_layouts
import torch
from calls import CALLS
from regressions.broken import put_in


class AnyOrder(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sum((2, 3), keepdim=True).expand_as(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        terms = (grad * x).flatten(2)
        total = sum(terms[:, :, i] for i in torch.randperm(terms.shape[2]).tolist())
        return total[..., None, None].expand_as(grad)


def test_seen(monkeypatch):
    name = put_in(monkeypatch, AnyOrder.apply, AnyOrder.apply)
    monkeypatch.setitem(CALLS, "max_pool2d", CALLS[name])
    with pytest.raises(AssertionError):
        test_layouts.test_deterministic("cpu", torch.device("cpu"))
