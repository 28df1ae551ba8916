"""cross_entropy(gradient_in_forward=True): the same loss and gradient, taken piece by piece."""

import pytest
import torch
import torch.nn.functional as T
from support import DEVICE, KERNEL_BACKENDS

import fastdl
import fastdl.functional as F
from fastdl.ops import cross_entropy_in_forward
from fastdl.parity import judge

pytestmark = pytest.mark.skipif(not KERNEL_BACKENDS, reason="no kernel runs here")


@pytest.fixture(autouse=True, params=KERNEL_BACKENDS)
def on_each_backend(request):
    """Each implementation in turn."""
    with fastdl.use_backend(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def piece(monkeypatch):
    """Bytes of a piece: a row at most."""
    size = [60]
    monkeypatch.setattr(cross_entropy_in_forward, "_piece_bytes", lambda device: size[0])
    return size


def logits(*shape, dtype=torch.float32):
    torch.manual_seed(0)
    return torch.randn(*shape).to(DEVICE, dtype).requires_grad_()


def classes(x, ignored=-100):
    target = torch.randint(x.shape[1], (x.shape[0], *x.shape[2:]))
    target.view(-1)[::3] = ignored
    return target.to(x.device)


def held(x, target, factor=1.0, loss=F.cross_entropy, **options):
    """The loss and the gradient of its ``factor``-fold, against torch's and float64's."""
    got = []
    for function, dtype in ((loss, x.dtype), (T.cross_entropy, x.dtype), (T.cross_entropy, torch.float64)):
        leaf = x.detach().to(dtype).requires_grad_()
        probabilities = target.to(dtype) if target.is_floating_point() else target
        weight = options.get("weight")
        called = {**options, "weight": None if weight is None else weight.to(dtype)}
        value = function(leaf, probabilities, **called)
        got.append((value.detach(), *torch.autograd.grad(factor * value, leaf)))
    for ours, torchs, oracle in zip(*got, strict=True):
        failure = judge(ours, torchs, oracle).failure
        assert not failure, failure


def in_forward(x, target, **options):
    return F.cross_entropy(x, target, gradient_in_forward=True, **options)


def in_place(x, target, **options):
    return F.cross_entropy(x.clone(), target, gradient_in_forward=True, inplace=True, **options)


@pytest.mark.parametrize("loss", [in_forward, in_place])
@pytest.mark.parametrize("size", [60, 410])
@pytest.mark.parametrize("shape", [(9, 40), (2, 5, 3, 7), (1, 3, 130)], ids=str)
def test_pieces(shape, size, loss, piece):
    piece[0] = size
    x = logits(*shape)
    target = classes(x)
    held(x, target, loss=loss)
    held(x, target, 3.0, loss, reduction="sum")
    held(x, target, -0.5, loss, weight=torch.rand(shape[1]).to(DEVICE), label_smoothing=0.1)
    held(x, torch.softmax(logits(*shape).detach(), 1), 2.0, loss, label_smoothing=0.2)


@pytest.mark.parametrize("loss", [in_forward, in_place])
@pytest.mark.parametrize("classes_", [17, 1100, 9000])
def test_every_kernel_in_place(classes_, loss):
    """A warp or a block per row, rows longer than a block of classes, lse beyond what it is exact for."""
    x = logits(5, classes_).detach() + 40.0
    held(x, classes(x), 0.25, loss)


def test_bfloat16():
    x = logits(6, 30, dtype=torch.bfloat16)
    held(x, classes(x), 1.0, in_forward)
    held(x, classes(x), 8.0, in_place)


def test_no_row_counts():
    x = logits(4, 5)
    ignored = torch.full((4,), -100).to(DEVICE)
    loss = in_forward(x, ignored, label_smoothing=0.1)
    assert loss.isnan() and not torch.autograd.grad(loss, x)[0].any()


def test_where_the_gradient_lies():
    """Separate memory leaves the logits alone; in place there is no other memory."""
    x = logits(6, 10)
    hidden = x * 2
    before = hidden.detach().clone()
    (grad,) = torch.autograd.grad(in_forward(hidden, classes(x)), hidden)
    assert torch.equal(hidden, before) and grad.data_ptr() != hidden.data_ptr()
    loss = F.cross_entropy(hidden, classes(x), gradient_in_forward=True, inplace=True)
    assert not torch.equal(hidden, before)
    (grad,) = torch.autograd.grad(loss, hidden)
    assert grad.data_ptr() == hidden.data_ptr()


@pytest.mark.parametrize("view", [lambda x: x[:, 3:8], lambda x: x.t()[:, :9].t(), lambda x: x[:, ::2]])
def test_in_place_on_a_view(view):
    """Strides of any kind, and nothing but the view is written."""
    x = logits(12, 14)
    base = x * 1
    part = view(base)
    target = classes(part)
    outside = torch.ones_like(base, dtype=torch.bool)
    view(outside).fill_(False)
    before = base.detach().clone()
    loss = F.cross_entropy(part, target, gradient_in_forward=True, inplace=True)
    assert torch.equal(base[outside], before[outside])
    (got,) = torch.autograd.grad(2 * loss, x)
    (expected,) = torch.autograd.grad(2 * T.cross_entropy(view(x), target), x)
    torch.testing.assert_close(got, expected)


def test_through_a_network(on_each_backend):
    """Parameters get the gradients that they get from a gradient in backward."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(6, 10).to(DEVICE)
    x, target = torch.randn(8, 6).to(DEVICE), torch.arange(8).to(DEVICE)
    found = []
    for options in ({}, {"gradient_in_forward": True}, {"gradient_in_forward": True, "inplace": True}):
        layer.zero_grad()
        F.cross_entropy(layer(x), target, **options).backward()
        found.append(layer.weight.grad.clone())
    if on_each_backend == "triton":  # interpreted, divisors are added in another order
        torch.testing.assert_close(found[1], found[0])
    else:
        assert torch.equal(found[1], found[0])
    assert torch.equal(found[2], found[1])


def test_who_saved_the_logits_notices():
    x = logits(4, 5)
    hidden = x.exp()  # keeps its output for backward
    loss = F.cross_entropy(hidden, classes(x), gradient_in_forward=True, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_one_backward_only():
    x = logits(4, 5)
    loss = in_forward(x, classes(x))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="a second backward; leave gradient_in_forward out"):
        loss.backward()
    loss = in_forward(x, classes(x))
    with pytest.raises(RuntimeError, match="got create_graph=True"):
        torch.autograd.grad(loss, x, create_graph=True)


def test_errors():
    x = logits(4, 5)
    target = classes(x)
    with pytest.raises(ValueError, match="'mean' or 'sum' with gradient_in_forward, got 'none'"):
        in_forward(x, target, reduction="none")
    with pytest.raises(ValueError, match="gradient_in_forward=True with inplace=True, got False"):
        F.cross_entropy(x, target, inplace=True)
    with pytest.raises(RuntimeError, match="got a leaf that requires a gradient"):
        F.cross_entropy(x, target, gradient_in_forward=True, inplace=True)
    with pytest.raises(RuntimeError, match="memory of their own"):
        one = (x[:1] * 1).expand(4, 5)
        F.cross_entropy(one, target, gradient_in_forward=True, inplace=True)
    if DEVICE == "cpu":
        with pytest.raises(IndexError, match="got 5 in row 0"):
            in_forward(x, torch.tensor([5, 0, 0, 0]))


def test_few_logits_are_read_twice(piece):
    x = logits(5, 5)
    piece[0] = 100
    assert torch.autograd.grad(in_forward(x, classes(x)), x, create_graph=True)[0].requires_grad


def test_served_without():
    """float16, torch.compile, no gradient, the reference: the logits stay, and derivatives of any order."""
    x = logits(5, 5)
    target = classes(x)
    options = {"gradient_in_forward": True, "inplace": True}
    half = x.half() * 1
    F.cross_entropy(half, target, **options)
    assert torch.equal(half, x.half())
    with torch.no_grad():
        hidden = x * 1
        assert torch.equal(F.cross_entropy(hidden, target, **options), F.cross_entropy(x, target))
        assert torch.equal(hidden, x)
    hidden = x * 1
    compiled = torch.compile(lambda x: F.cross_entropy(x, target, **options), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(hidden), F.cross_entropy(x, target))
    assert torch.equal(hidden, x)
    with fastdl.use_backend("reference"):
        loss = F.cross_entropy(hidden, target, **options)
        assert torch.autograd.grad(loss, x, create_graph=True)[0].requires_grad
