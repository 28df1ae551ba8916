"""pytorch#194719, #64529, TransformerEngine P#623, flash-attention#355, verl P#6960: backward took the
gradient that comes in for contiguous; torch.cat hands on a slice, sum one element with strides of 0.

On our ops: test_autograd.test_incoming_gradient_of_any_layout.
"""

import pytest
import test_autograd
import torch
from regressions.broken import put_in


class Contiguous(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        held = grad.as_strided((grad.untyped_storage().nbytes() // 4,), (1,), 0)
        room = torch.full((4 * grad.numel(),), float("nan"))  # what lies behind a smaller one
        room[: held.numel()] = held
        dense = torch.empty(grad.shape, device="meta").stride()
        return 2 * room.as_strided(grad.shape, dense)  # nor does it look at the offset


@pytest.mark.parametrize("incoming", ["sum", "cat", "transpose"])
def test_seen(incoming, monkeypatch):
    name = put_in(monkeypatch, lambda x: x * 2, Contiguous.apply)
    with pytest.raises(AssertionError):
        test_autograd.test_incoming_gradient_of_any_layout(name, "cpu", incoming, torch.device("cpu"))
