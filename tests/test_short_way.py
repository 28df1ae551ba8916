"""Plain calls served whole in C++ (csrc/calls.cpp) give what the long way in Python gives, bit for bit."""

import pytest
import torch
from support import DEVICE, NATIVE_BACKENDS
from torch.autograd.graph import saved_tensors_hooks

import fastdl
import fastdl.functional as F
from fastdl import backends
from fastdl.ops import _common

pytestmark = pytest.mark.skipif(not NATIVE_BACKENDS, reason="no C++ kernels here")


def normal(*shape, **options):
    return torch.randn(*shape, device=DEVICE, **options)


def pool(x):
    return F.max_pool2d(x, 3, 2, 1, ceil_mode=True)


def norm(x, weight, bias, residual=None, activation="relu"):
    statistics = torch.zeros_like(weight.detach()), torch.ones_like(weight.detach())
    out = F.batch_norm(x, *statistics, weight, bias, True, residual=residual, activation=activation)
    return out, *statistics


def norm_eval(x, weight, bias):
    return F.batch_norm(x, torch.zeros_like(bias), torch.ones_like(bias), weight, bias, activation="elu")


def loss(x, weight=None, **options):
    shape = (x.shape[0], *x.shape[2:])
    target = torch.arange(shape.numel() if isinstance(shape, torch.Size) else torch.Size(shape).numel())
    target = (target % x.shape[1]).reshape(shape).to(x.device)
    return F.cross_entropy(x, target, weight, label_smoothing=0.1, **options)


def sample(x, theta, **options):
    return F.affine_grid_sample(x, theta, (theta.shape[0], x.shape[1], 5, 7), align_corners=False, **options)


def warp(x, points, **options):
    return F.tps_grid_sample(x, points, (points.shape[0], x.shape[1], 5, 7), align_corners=True, **options)


def conv(x, weight, bias=None, activation="relu", **options):
    return F.conv2d(x, weight, bias, padding=1, activation=activation, **options)


def conv_pool(x, weight, bias=None, activation="relu"):
    return F.conv2d_max_pool2d(x, weight, bias, padding=(2, 1), activation=activation, pool_kernel_size=2)


def last(*shapes):
    return lambda: [normal(*shapes[0]).to(memory_format=torch.channels_last), *sized(*shapes[1:])()]


def sized(*shapes):
    return lambda: [normal(*shape) for shape in shapes]


CASES = {
    "conv2d": (conv, sized((2, 3, 9, 40), (5, 3, 3, 3), (5,))),
    "conv2d, no bias": (lambda x, w: conv(x, w, None, "elu"), sized((2, 1, 28, 28), (6, 1, 5, 5))),
    "conv2d, no activation": (lambda *t: conv(*t, None, stride=2), sized((2, 3, 9, 60), (5, 3, 3, 3), (5,))),
    "conv2d, channels_last": (conv, last((2, 3, 9, 24), (16, 3, 3, 3), (16,))),
    "conv2d, depthwise": (lambda *t: conv(*t, groups=8), sized((2, 8, 9, 32), (8, 1, 3, 3), (8,))),
    "conv2d_max_pool2d": (conv_pool, sized((2, 3, 9, 60), (6, 3, 3, 3), (6,))),
    "conv2d_max_pool2d, tanh": (
        lambda x, w: conv_pool(x, w, None, "tanh"),
        sized((2, 1, 29, 28), (6, 1, 5, 5)),
    ),
    "max_pool2d": (pool, sized((2, 3, 9, 8))),
    "max_pool2d, channels_last": (pool, lambda: [normal(2, 3, 9, 8).to(memory_format=torch.channels_last)]),
    "batch_norm": (norm, sized((4, 3, 5, 5), (3,), (3,))),
    "batch_norm, mask": (norm, sized((4, 3, 5, 5), (3,), (3,), (4, 3, 5, 5))),
    "batch_norm, out": (
        lambda x, w, b, r: norm(x, w, b, r, "tanh"),
        sized((4, 3, 5, 5), (3,), (3,), (4, 3, 5, 5)),
    ),
    "batch_norm, passed on": (
        lambda x, w, b, r: norm(x, w, b, r, None),
        sized((4, 3, 5, 5), (3,), (3,), (4, 3, 5, 5)),
    ),
    "batch_norm, evaluation": (norm_eval, sized((4, 3, 5, 5), (3,), (3,))),
    "cross_entropy": (loss, sized((6, 10))),
    "cross_entropy, planes": (loss, sized((2, 5, 3, 4))),
    "cross_entropy, weight": (
        lambda x: loss(x, torch.linspace(0.5, 2, 10, device=x.device), reduction="sum"),
        sized((6, 10)),
    ),
    "cross_entropy, rows": (lambda x: loss(x, reduction="none"), sized((2, 5, 3, 4))),
    "affine_grid_sample": (sample, sized((2, 3, 6, 6), (2, 2, 3))),
    "affine_grid_sample, broadcast": (
        lambda x, theta: sample(x, theta, padding_mode="border"),
        sized((1, 3, 6, 6), (2, 2, 3)),
    ),
    "tps_grid_sample": (warp, sized((2, 3, 6, 6), (2, 9, 2))),
    "tps_grid_sample, broadcast": (
        lambda x, points: warp(x, points, padding_mode="reflection"),
        sized((1, 3, 6, 6), (3, 16, 2)),
    ),
}


def values_and_gradients(function, make, only=None, create_graph=False):
    torch.manual_seed(0)
    inputs = [t.requires_grad_(only is None or i in only) for i, t in enumerate(make())]
    outputs = function(*inputs)
    out = outputs[0] if isinstance(outputs, tuple) else outputs
    rest = outputs[1:] if isinstance(outputs, tuple) else ()
    asked = [t for t in inputs if t.requires_grad]
    weights = torch.linspace(-1, 1, out.numel(), device=out.device).reshape(out.shape)
    grads = torch.autograd.grad((out * weights).sum(), asked, create_graph=create_graph)
    if create_graph:
        grads = torch.autograd.grad(sum(g.square().sum() for g in grads), asked, allow_unused=True)
    return [out, *rest, *(g for g in grads if g is not None)]


@pytest.fixture(params=NATIVE_BACKENDS)
def native(request):
    with fastdl.use_backend(request.param):
        yield request.param


@pytest.fixture
def long_way(monkeypatch):
    """A function that runs another without the short way."""

    def run(function, *args, **options):
        with monkeypatch.context() as patch:
            patch.setattr(backends, "short_way", lambda *_: (None, None))
            return function(*args, **options)

    return run


def taken(monkeypatch) -> list:
    """What the short way answers from here on."""
    answers = []
    whole = _common.backends.short_way

    def spy(op, device, dtype):
        call, library = whole(op, device, dtype)
        return (lambda *args: answers.append(call(*args)) or answers[-1]), library

    monkeypatch.setattr(backends, "short_way", spy)
    return answers


@pytest.mark.parametrize("name", CASES)
def test_same_bits(name, native, long_way, monkeypatch):
    function, make = CASES[name]
    expected = long_way(values_and_gradients, function, make)
    answers = taken(monkeypatch)
    got = values_and_gradients(function, make)
    assert answers and all(answer is not None for answer in answers), "the short way was not taken"
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b) and a.dtype == b.dtype and a.stride() == b.stride()


@pytest.mark.parametrize("name", CASES)
def test_one_gradient(name, native, long_way):
    """Only the last input asks for one."""
    function, make = CASES[name]
    only = {len(make()) - 1}
    for a, b in zip(
        values_and_gradients(function, make, only),
        long_way(values_and_gradients, function, make, only),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", [name for name in CASES if "max_pool2d" not in name])
def test_second_derivatives(name, native, long_way):
    """Plain torch computes them both ways, but on logits of another number of dimensions."""
    function, make = CASES[name]
    got = values_and_gradients(function, make, create_graph=True)
    expected = long_way(values_and_gradients, function, make, create_graph=True)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_no_gradient_saves_nothing(native):
    packed = []
    with saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t), torch.no_grad():
        for function, make in CASES.values():
            result = function(*(t.requires_grad_() for t in make()))
            out = result[0] if isinstance(result, tuple) else result
            assert out.grad_fn is None
    assert not packed


@pytest.mark.skipif("cpu" not in NATIVE_BACKENDS, reason="no CPU kernels here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_torchs_own_convolution(activation, dtype, long_way, monkeypatch):
    """Where no kernel of ours is faster and none was named."""

    def make():
        return [t.to(dtype) for t in (torch.randn(2, 24, 9, 9), torch.randn(8, 24, 3, 3), torch.randn(8))]

    function = lambda x, w, b: conv(x, w, b, activation)  # noqa: E731
    expected = long_way(values_and_gradients, function, make)
    answers = taken(monkeypatch)
    got = values_and_gradients(function, make)
    assert len(answers) == 1 and answers[0] is not None
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b) and a.stride() == b.stride()
    with fastdl.use_backend("cpu"):  # not the kernels that were asked for
        function(*make())
    assert answers[1] is None


def test_changed_in_place_is_noticed(native):
    x, theta = normal(2, 3, 6, 6), normal(2, 2, 3).requires_grad_()
    out = sample(x, theta)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_running_statistics_are_marked_as_changed(native):
    x, mean, var = normal(4, 3, 5), torch.zeros(3, device=DEVICE), torch.ones(3, device=DEVICE)
    before = mean._version, var._version
    F.batch_norm(x, mean, var, training=True)
    assert (mean._version, var._version) > before and not torch.equal(mean, torch.zeros_like(mean))


def test_a_huge_window_is_not_for_it(native):
    """What it does not take, the long way serves or words a complaint for."""
    with pytest.raises(RuntimeError, match="expected padding between 0 and half"):
        F.max_pool2d(normal(1, 1, 4, 4), 2, padding=2)
    with pytest.raises(TypeError, match="to be an int or a tuple of two ints"):
        F.max_pool2d(normal(1, 1, 4, 4), 2.5)
    with pytest.raises(TypeError, match="target to be a Tensor"):
        F.cross_entropy(normal(2, 3), [0, 1])
