"""Drop-in modules: constructors, state_dict, counters and values of their torch.nn parents."""

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn

import fastdl
from fastdl import backends

MODULES = ["Conv2d", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "CrossEntropyLoss", "MaxPool2d"]


@pytest.mark.parametrize("name", MODULES)
def test_is_its_parent_with_another_forward(name):
    ours, theirs = getattr(fastdl.nn, name), getattr(nn, name)
    assert issubclass(ours, theirs)
    assert inspect.signature(ours.__init__) == inspect.signature(theirs.__init__)
    assert [key for key in vars(ours) if not key.startswith("__")] == ["forward"]


PAIRS = {
    "conv": (lambda M: M.Conv2d(4, 6, 3, padding=1, bias=False), (2, 4, 7, 7)),
    "conv reflect": (lambda M: M.Conv2d(4, 6, 3, padding=2, padding_mode="reflect"), (2, 4, 7, 7)),
    "conv circular same": (
        lambda M: M.Conv2d(4, 6, 4, padding="same", padding_mode="circular"),
        (2, 4, 7, 7),
    ),
    "conv groups": (lambda M: M.Conv2d(4, 8, (3, 1), stride=(2, 1), groups=2), (2, 4, 9, 7)),
    "bn1d": (lambda M: M.BatchNorm1d(6), (8, 6)),
    "bn1d L": (lambda M: M.BatchNorm1d(6), (4, 6, 5)),
    "bn2d": (lambda M: M.BatchNorm2d(6, eps=1e-3, momentum=0.3), (4, 6, 5, 5)),
    "bn2d cumulative": (lambda M: M.BatchNorm2d(6, momentum=None), (4, 6, 5, 5)),
    "bn2d no statistics": (lambda M: M.BatchNorm2d(6, track_running_stats=False), (4, 6, 5, 5)),
    "bn2d no affine": (lambda M: M.BatchNorm2d(6, affine=False), (4, 6, 5, 5)),
    "bn3d": (lambda M: M.BatchNorm3d(3), (2, 3, 3, 4, 4)),
    "pool": (lambda M: M.MaxPool2d(3, 2, 1, ceil_mode=True), (2, 4, 9, 8)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_trains_like_its_parent(name, on, device):
    """Three steps, then evaluation: outputs, gradients, statistics and counters."""
    make, shape = PAIRS[name]
    torch.manual_seed(1)
    theirs = make(nn).to(device)
    ours = make(fastdl.nn).to(device)
    ours.load_state_dict(theirs.state_dict())  # the keys are the same, or this raises
    for step in range(4):
        if step == 3:
            ours.eval(), theirs.eval()
        x = torch.randn(shape, device=device)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        out, expected = ours(a), theirs(b)
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
        weights = torch.randn_like(out)
        grads = torch.autograd.grad((out * weights).sum(), [a, *ours.parameters()])
        others = torch.autograd.grad((expected * weights).sum(), [b, *theirs.parameters()])
        for g, h in zip(grads, others, strict=True):
            torch.testing.assert_close(g, h, rtol=1e-3, atol=1e-4)
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value, rtol=1e-5, atol=1e-6)


def test_return_indices(on, device):
    x = torch.randn(2, 3, 8, 8, device=device)
    out, indices = fastdl.nn.MaxPool2d(2, return_indices=True)(x)
    expected, expected_indices = nn.MaxPool2d(2, return_indices=True)(x)
    assert torch.equal(out, expected)
    assert torch.equal(indices, expected_indices)
    assert torch.equal(nn.MaxUnpool2d(2)(out, indices), nn.MaxUnpool2d(2)(expected, expected_indices))


def test_cross_entropy_loss(on, device):
    logits, target = torch.randn(6, 5, device=device), torch.randint(5, (6,), device=device)
    options = {"weight": torch.rand(5, device=device), "ignore_index": 2, "label_smoothing": 0.1}
    ours, theirs = fastdl.nn.CrossEntropyLoss(**options), nn.CrossEntropyLoss(**options)
    torch.testing.assert_close(ours(logits, target), theirs(logits, target))


@pytest.mark.parametrize("module", ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d"])
def test_wrong_number_of_dimensions(module):
    wrong = torch.randn(2, 3, 4, 4) if module != "BatchNorm2d" else torch.randn(2, 3, 4)
    with pytest.raises(ValueError, match="expected"):
        getattr(fastdl.nn, module)(3)(wrong)


def transformer():
    localisation = nn.Sequential(nn.Flatten(), nn.Linear(64, 6))
    nn.init.zeros_(localisation[1].weight)
    localisation[1].bias.data.copy_(torch.tensor([1.0, 0, 0, 0, 1, 0]))
    return fastdl.nn.SpatialTransformer(localisation)


def test_spatial_transformer_starts_at_the_identity(on, device):
    x = torch.randn(3, 1, 8, 8, device=device)
    torch.testing.assert_close(transformer().to(device)(x), x)


def test_spatial_transformer_learns_a_shift(on, device):
    """Gradient descent on theta through the sampler moves a blob where it should be."""
    torch.manual_seed(0)
    grid = torch.linspace(-1, 1, 8, device=device)

    def blob(x, y):
        return torch.exp(-4 * ((grid - x) ** 2 + (grid[:, None] - y) ** 2)).view(1, 1, 8, 8)

    source, goal = blob(0.3, -0.2), blob(0.0, 0.0)
    model = transformer().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(40):
        loss = (model(source) - goal).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.05 * losses[0]


@pytest.mark.parametrize("name", PAIRS)
def test_copy_and_pickle(name):
    make, shape = PAIRS[name]
    module = make(fastdl.nn).eval()
    if "no statistics" in name:
        module.train()
    x = torch.randn(shape)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(other) is type(module)
        assert torch.equal(other(x), module(x))


def test_double_use_of_one_module(on, device):
    """A shared module (Siamese networks): gradients of both uses add up."""
    conv = fastdl.nn.Conv2d(2, 3, 3).to(device)
    x = torch.randn(1, 2, 6, 6, device=device)
    (conv(x) + conv(2 * x)).sum().backward()
    both = conv.weight.grad.clone()
    with backends.use_backend("reference"):
        expected = torch.autograd.grad((conv(x) + conv(2 * x)).sum(), conv.weight)[0]
    torch.testing.assert_close(both, expected)
