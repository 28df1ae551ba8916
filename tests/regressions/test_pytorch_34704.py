"""pytorch#34704, PyHessian#7, jacobian_regularizer#6: a second derivative that is not there, or silently 0.

On our ops: test_autograd.test_second_derivative.
"""

import pytest
import test_autograd
import torch
from regressions.broken import put_in


class FirstOrderOnly(torch.autograd.Function):
    """Its gradient is computed where autograd does not look, as kernels do."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 3 * x.detach() ** 2 * grad


def test_seen(monkeypatch):
    name = put_in(monkeypatch, lambda x: x**3, FirstOrderOnly.apply)
    with pytest.raises(AssertionError):
        test_autograd.test_second_derivative(name, "cpu", torch.device("cpu"))
