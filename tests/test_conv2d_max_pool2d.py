"""conv2d_max_pool2d is max_pool2d of conv2d, in one kernel or in two, on every backend."""

import pytest
import torch
import torch.nn.functional as T
from support import DEVICE, NATIVE_BACKENDS
from torch import nn

import fastdl
import fastdl.functional as F
from fastdl import backends
from fastdl.activations import ACTIVATIONS
from fastdl.parity.tolerance import judge

# x, weight, options of the convolution, of the pool
CASES = {
    "one kernel": ((3, 1, 28, 28), (6, 1, 5, 5), {}, {}),
    "one kernel, odd sizes": ((2, 3, 30, 31), (7, 3, 3, 3), {"padding": 1}, {}),
    "many channels": ((2, 10, 12, 12), (20, 10, 5, 5), {}, {}),
    "overlapping windows": ((2, 2, 30, 30), (16, 2, 3, 3), {}, {"pool_kernel_size": 3, "pool_stride": 2}),
    "same": ((1, 2, 26, 27), (4, 2, 4, 4), {"padding": "same"}, {}),
    "unbatched": ((1, 28, 28), (5, 1, 5, 5), {}, {}),
    "no image": ((0, 1, 28, 28), (5, 1, 5, 5), {}, {}),
}


def plain(x, weight, bias, options, pool, activation):
    size = pool.get("pool_kernel_size", 2)
    out = T.max_pool2d(T.conv2d(x, weight, bias, **options), size, pool.get("pool_stride", size))
    return ACTIVATIONS[activation].function(out, ACTIVATIONS[activation].param) if activation else out


def tensors(name, dtype=torch.float32):
    x_shape, weight_shape, options, pool = CASES[name]
    g = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(s, generator=g) for s in (x_shape, weight_shape, weight_shape[:1]))
    inputs = [t.to(dtype).to(DEVICE).requires_grad_() for t in (x, weight / 4, bias)]
    return inputs, options, pool


@pytest.mark.parametrize(
    "activation",
    ["relu", *(pytest.param(a, marks=pytest.mark.slow_interpreted) for a in (None, "tanh", "leaky_relu"))],
)
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(on, name, activation):
    if on == "triton" and activation == "leaky_relu":
        pytest.skip("as tanh: torch's own, after two kernels; and the interpreter is slow")
    inputs, options, pool = tensors(name)
    out = F.conv2d_max_pool2d(*inputs, **options, activation=activation, **pool)
    torchs = plain(*inputs, options, pool, activation)
    wide = [t.detach().double().requires_grad_() for t in inputs]
    oracle = plain(*wide, options, pool, activation)
    assert out.shape == torchs.shape and out.stride() == torchs.stride()
    grad_out = torch.randn_like(torchs)
    found = (
        (out, *torch.autograd.grad(out, inputs, grad_out)),
        (torchs, *torch.autograd.grad(torchs, inputs, grad_out)),
        (oracle, *torch.autograd.grad(oracle, wide, grad_out.double())),
    )
    for what, *values in zip(("out", "x", "weight", "bias"), *found, strict=True):
        failure = judge(*(v.detach() for v in values)).failure
        assert not failure, f"{what}: {failure}"
    with torch.no_grad():
        torch.testing.assert_close(
            F.conv2d_max_pool2d(*inputs, **options, activation=activation, **pool), out
        )


def test_one_kernel_serves_it(on):
    if on not in NATIVE_BACKENDS:
        pytest.skip("two kernels")
    inputs, options, pool = tensors("one kernel")
    with backends.record() as choices:
        out = F.conv2d_max_pool2d(*inputs, **options, **pool)
    assert type(out.grad_fn).__name__ == "_Conv2dMaxPool2dBackward"
    assert [(c.op, c.backend) for c in choices] == [("conv2d", on), ("max_pool2d", on)]


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_only_what_is_wanted(on, wanted):
    inputs, _, _ = tensors("one kernel")
    together = torch.autograd.grad(F.conv2d_max_pool2d(*inputs, activation="relu").sum(), inputs)
    for i, t in enumerate(inputs):
        t.requires_grad_(i == wanted)
    (alone,) = torch.autograd.grad(F.conv2d_max_pool2d(*inputs, activation="relu").sum(), inputs[wanted])
    torch.testing.assert_close(alone, together[wanted])


def test_second_derivatives(on):
    inputs, _, _ = tensors("one kernel")
    found = []
    for out in (F.conv2d_max_pool2d(*inputs, activation="tanh"), plain(*inputs, {}, {}, "tanh")):
        (first,) = torch.autograd.grad(out.sum(), inputs[1], create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), inputs[0])[0])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("change", ["autocast", "double", "compile"])
def test_what_goes_by_the_two_ops(change):
    inputs, _, _ = tensors("one kernel", torch.float64 if change == "double" else torch.float32)
    function = F.conv2d_max_pool2d
    if change == "compile":
        function = torch.compile(function, backend="eager", fullgraph=True)
    with torch.autocast(DEVICE, torch.bfloat16, enabled=change == "autocast"):
        out, torchs = function(*inputs, activation="relu"), plain(*inputs, {}, {}, "relu")
    assert out.dtype == torchs.dtype
    torch.testing.assert_close(out, torchs, rtol=1e-2 if change == "autocast" else 1e-4, atol=1e-2)


@pytest.mark.parametrize("arguments", [{"stride": 0}, {"padding": -1}, {"groups": 2}, {"dilation": 9}])
def test_errors_are_those_of_conv2d(arguments):
    inputs, _, _ = tensors("one kernel")
    with pytest.raises(RuntimeError, match=r"fastdl\.conv2d: expected"):
        F.conv2d_max_pool2d(*inputs, **arguments)


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.MaxPool2d(2, ceil_mode=True), nn.MaxPool2d(3, 2, 1)])
def test_converted(pool):
    model = nn.Sequential(nn.Conv2d(1, 6, 5), pool, nn.ReLU()).to(DEVICE)
    x = torch.randn(4, 1, 29, 29, device=DEVICE)
    expected = model(x)
    torch.testing.assert_close(fastdl.convert(model)(x), expected, rtol=1e-4, atol=1e-5)
