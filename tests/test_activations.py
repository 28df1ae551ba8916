"""One table of activations, twice written: in torch for the reference, in Triton for the kernels."""

import pytest
import torch
from support import DEVICE

from fastdl import parity
from fastdl.activations import ACTIVATIONS, apply, resolve

X = torch.cat([torch.linspace(-12, 12, 997), torch.randn(300), torch.tensor([0.0, -0.0, 25.0, -25.0, 100.0])])
SPECIAL = torch.tensor([float("nan"), float("inf"), float("-inf"), 0.0, -0.0])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_derivative_from_the_output(name):
    """Against autograd in float64."""
    entry = ACTIVATIONS[name]
    x = X.double().requires_grad_()
    y = entry.function(x, entry.param)
    (expected,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(entry.derivative(y.detach(), entry.param), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("values", [X, SPECIAL], ids=["finite", "special"])
def test_kernels_agree_with_the_table(name, values):
    triton = pytest.importorskip("triton")
    run = _kernel(triton)
    param = ACTIVATIONS[name].param
    x = values.to(DEVICE)
    y, grad, grad_at = torch.empty_like(x), torch.empty_like(x), torch.empty_like(x)
    run[(1,)](x, y, grad, grad_at, x.numel(), param, BLOCK=2048, ACT=name)
    assert parity.judge(y, apply(x, name, param), apply(x.double(), name, param)).failure == ""
    if values is X:
        leaf = x.clone().requires_grad_()
        (torchs,) = torch.autograd.grad(apply(leaf, name, param).sum(), leaf)
        double = x.double().requires_grad_()
        (oracle,) = torch.autograd.grad(apply(double, name, param).sum(), double)
        assert parity.judge(grad, torchs, oracle).failure == ""
        assert parity.judge(grad_at, torchs, oracle).failure == ""


def _kernel(triton):
    """act and both its derivatives, elementwise; Triton finds what a kernel uses among the globals."""
    global tl, activate, activation_grad, activation_grad_at
    import triton.language as tl
    from fastdl.kernels.activation import activate, activation_grad, activation_grad_at

    @triton.jit
    def kernel(x_ptr, y_ptr, grad_ptr, grad_at_ptr, n, param, BLOCK: tl.constexpr, ACT: tl.constexpr):
        i = tl.arange(0, BLOCK)
        x = tl.load(x_ptr + i, mask=i < n)
        y = activate(x, param, ACT)
        tl.store(y_ptr + i, y, mask=i < n)
        one = tl.full([BLOCK], 1.0, tl.float32)
        tl.store(grad_ptr + i, activation_grad(one, y, param, ACT), mask=i < n)
        tl.store(grad_at_ptr + i, activation_grad_at(one, x, param, ACT), mask=i < n)

    return kernel


def test_nan_passes_and_relu_keeps_it():
    for name, entry in ACTIVATIONS.items():
        assert apply(torch.tensor(float("nan")), name, entry.param).isnan()
    # torch's own rule: the gradient of relu at NaN is 1
    assert ACTIVATIONS["relu"].derivative(torch.tensor(float("nan")), 0.0) == 1


def test_resolve():
    assert resolve("op", None, None) == ("", 0.0)
    assert resolve("op", "leaky_relu", None) == ("leaky_relu", 0.01)
    assert resolve("op", "leaky_relu", 0) == ("leaky_relu", 0.0)
    assert resolve("op", "elu", 2) == ("elu", 2.0)
