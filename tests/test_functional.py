"""Drop-in: torch's signatures, and whatever a kernel does not cover served all the same."""

import inspect

import pytest
import torch
import torch.nn.functional as T

import fastdl.functional as F
from fastdl import backends


@pytest.mark.parametrize("name", ["batch_norm", "cross_entropy", "max_pool2d"])
def test_signature_is_torchs(name):
    """Names, order and defaults; what fastdl adds is keyword-only."""
    # max_pool2d hides its signature behind a dispatcher: the one that returns indices has it
    namesake = T.max_pool2d_with_indices if name == "max_pool2d" else getattr(T, name)
    theirs = inspect.signature(namesake).parameters
    ours = inspect.signature(getattr(F, name)).parameters
    shared = [p for p in ours.values() if p.kind is not p.KEYWORD_ONLY]
    assert [(p.name, p.default) for p in shared] == [(p.name, p.default) for p in theirs.values()]
    added = {"residual", "activation", "activation_param", "gradient_in_forward", "inplace"}
    assert {p.name for p in ours.values()} - set(theirs) <= added


def test_signature_of_conv2d():
    """torch's is written in C++: its documentation is the source."""
    assert "conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1)" in T.conv2d.__doc__
    shared = [p for p in inspect.signature(F.conv2d).parameters.values() if p.kind is not p.KEYWORD_ONLY]
    assert [p.name for p in shared] == ["input", "weight", "bias", "stride", "padding", "dilation", "groups"]
    assert [p.default for p in shared[2:]] == [None, 1, 0, 1, 1]


UNCOVERED = {
    "conv2d float64": lambda M: M.conv2d(x(1, 3, 5, 5).double(), x(2, 3, 3, 3).double()),
    "conv2d complex": lambda M: M.conv2d(
        torch.complex(x(1, 3, 5, 5), x(1, 3, 5, 5)), torch.complex(x(2, 3, 3, 3), x(2, 3, 3, 3))
    ),
    "conv2d int": lambda M: M.conv2d(integers(1, 3, 5, 5), integers(2, 3, 3, 3)),
    "max_pool2d int": lambda M: M.max_pool2d(integers(1, 3, 6, 6), 2),
    "batch_norm float64": lambda M: M.batch_norm(x(4, 3).double(), None, None, training=True),
    "batch_norm 6-D": lambda M: M.batch_norm(x(2, 3, 2, 2, 2, 2), None, None, training=True),
    "cross_entropy float64": lambda M: M.cross_entropy(x(4, 3).double(), torch.tensor([0, 1, 2, 0])),
    "cross_entropy uint8": lambda M: M.cross_entropy(x(2, 3), torch.tensor([0, 2], dtype=torch.uint8)),
    "cross_entropy sum through the legacy argument": lambda M: M.cross_entropy(
        x(4, 3), torch.tensor([0, 1, 2, 0]), size_average=False
    ),
    "max_pool2d list of one": lambda M: M.max_pool2d(x(1, 2, 6, 6), [2], [1]),
    "max_pool2d empty stride": lambda M: M.max_pool2d(x(1, 2, 6, 6), 2, []),
    "conv2d meta": lambda M: M.conv2d(x(1, 3, 5, 5).to("meta"), x(2, 3, 3, 3).to("meta")).shape,
}


def x(*size):
    return torch.linspace(-2, 2, torch.Size(size).numel()).view(size).sin()


def integers(*size):
    return torch.arange(torch.Size(size).numel()).view(size) % 7


@pytest.mark.parametrize("name", UNCOVERED)
@pytest.mark.filterwarnings("ignore:size_average and reduce")
def test_whatever_torch_accepts_is_served(name):
    ours, torchs = UNCOVERED[name](F), UNCOVERED[name](T)
    torch.testing.assert_close(ours, torchs)
    with backends.use_backend("reference"):
        torch.testing.assert_close(UNCOVERED[name](F), torchs, rtol=0, atol=0)


def test_volumes_by_the_reference():
    volume, theta = x(2, 1, 3, 4, 5), torch.eye(3, 4).expand(2, 3, 4)
    out = F.affine_grid_sample(volume, theta, volume.shape)
    torch.testing.assert_close(out, volume)


def test_gradients_for_probabilities_and_weight_by_the_reference(device):
    target = torch.softmax(torch.randn(4, 3, device=device), 1).requires_grad_()
    logits = torch.randn(4, 3, device=device, requires_grad=True)
    with backends.record() as choices:
        loss = F.cross_entropy(logits, target)
    assert choices[0].backend == "reference"
    grads = torch.autograd.grad(loss, [logits, target])
    torch.testing.assert_close(grads, torch.autograd.grad(T.cross_entropy(logits, target), [logits, target]))


def test_residual_that_broadcasts_is_added(on_auto, device):
    a, b = torch.randn(2, 3, 4, 4, device=device), torch.randn(2, 3, 1, 1, device=device)
    out = F.batch_norm(a, None, None, training=True, residual=b)
    torch.testing.assert_close(out, T.batch_norm(a, None, None, training=True) + b)


@pytest.fixture
def on_auto():
    with backends.use_backend("auto"):
        yield


def test_affine_grid_and_grid_sample_pass_through():
    assert F.affine_grid is T.affine_grid
    assert F.grid_sample is T.grid_sample


def test_torch_function_sees_our_functions(device):
    """fx records our call as one node; a tensor subclass gets to handle it."""
    traced = torch.fx.symbolic_trace(lambda x: F.max_pool2d(x, 2))
    assert [n.target for n in traced.graph.nodes if n.op == "call_function"] == [F.max_pool2d]
    image = torch.randn(1, 2, 4, 4, device=device)
    assert torch.equal(traced(image), F.max_pool2d(image, 2))

    class Logged(torch.Tensor):
        seen: list = []  # noqa: RUF012

        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            cls.seen.append(func)
            return super().__torch_function__(func, types, args, kwargs or {})

    out = F.conv2d(image.as_subclass(Logged), torch.randn(3, 2, 3, 3, device=device), activation="relu")
    assert F.conv2d in Logged.seen
    assert type(out) is Logged
