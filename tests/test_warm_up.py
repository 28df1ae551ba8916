"""``fastdl.warm_up``: what a model needs is run, and nothing of the model, or of the caller, changes."""

import copy

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import fastdl
from fastdl import backends, cli
from fastdl.models import STN


class Noisy(nn.Module):
    """Has all that a run could change: statistics, random numbers, an attribute, inputs in place."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.pool, self.drop = nn.MaxPool2d(2), nn.Dropout(0.5)
        self.frozen = nn.Linear(4, 4).requires_grad_(False).eval()
        self.calls = []

    def forward(self, x, options):
        self.calls.append((self.training, torch.is_grad_enabled()))
        options["mask"].zero_()
        y = self.pool(torch.relu(self.norm(self.conv(x.add_(1)))))
        return {"out": [self.drop(y), self.frozen(y.mean((2, 3)))], "size": y.shape[2], "no": None}


@pytest.fixture
def model():
    model = Noisy()
    out = model(torch.randn(2, 3, 8, 8), {"mask": torch.ones(1)})["out"]
    sum(o.sum() for o in out).backward()
    model.calls.clear()
    return model


def state(model):
    """Parameters, buffers and gradients, each with what it is and what it holds; modules and their modes."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    tensors |= {f"{name}.grad": p.grad for name, p in model.named_parameters() if p.grad is not None}
    found = {name: (t, t._version, t.detach().clone()) for name, t in tensors.items()}
    return found, [(m, m.training, type(m)) for m in model.modules()]


def assert_same(before, after):
    assert before[1] == after[1] and before[0].keys() == after[0].keys()
    for a, b in zip(before[0].values(), after[0].values(), strict=True):
        assert a[0] is b[0] and a[1] == b[1] and torch.equal(a[2], b[2])


@pytest.mark.parametrize("converted", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("mode", [False, True])
def test_nothing_changes(model, converted, training, mode):
    if converted:
        fastdl.convert(model)
    model.train(mode)
    hooked = []
    model.register_forward_hook(lambda module, *_: hooked.append(module))
    model.norm.register_full_backward_hook(lambda module, *_: hooked.append(module))
    x, mask = torch.randn(2, 3, 8, 8), torch.ones(1)
    values, before, random = x.clone(), state(model), torch.get_rng_state()
    fastdl.warm_up(model, x, {"mask": mask}, training=training)
    assert_same(before, state(model))
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(x, values) and mask.item() == 1 and x._version == mask._version == 0
    assert not model.calls and hooked and not {model, model.norm} & set(hooked)


def test_what_is_run(model, monkeypatch):
    """Forward and backward in both modes, then inference; even where the caller has gradients off."""
    kept, deepcopy = [], copy.deepcopy

    def copied(value, *memo):
        found = deepcopy(value, *memo)
        if isinstance(value, Noisy):
            kept.append(found)
        return found

    monkeypatch.setattr(copy, "deepcopy", copied)
    x = torch.randn(2, 3, 8, 8)
    with torch.inference_mode():
        fastdl.warm_up(model, x, {"mask": torch.ones(1)})
    assert kept[0].calls == [(True, True), (False, True), (False, False)]
    assert kept[0].conv.weight.grad is not None and kept[0].frozen.weight.grad is None
    kept.clear()
    fastdl.warm_up(model, x, {"mask": torch.ones(1)}, training=False)
    assert kept[0].calls == [(False, False)] and kept[0].conv.weight.grad is None


def test_the_loss_is_run_too(model):
    losses = []

    def loss(out):
        losses.append(fastdl.functional.cross_entropy(out["out"][0].flatten(1), torch.tensor([0, 1])))
        return losses[-1]

    with backends.record() as choices:
        fastdl.warm_up(fastdl.convert(model), torch.randn(2, 3, 8, 8), {"mask": torch.ones(1)}, loss=loss)
    assert [value.requires_grad for value in losses] == [True, True, False]
    assert {"conv2d", "batch_norm", "max_pool2d", "cross_entropy"} <= {choice.op for choice in choices}


def test_what_asks_for_no_gradient_is_run_forward():
    fastdl.warm_up(STN().requires_grad_(False), torch.randn(2, 1, 42, 42))


def test_an_error_leaves_all_as_it_was(model):
    x, before, random = torch.ones(2, 5, 8, 8), state(model), torch.get_rng_state()
    with pytest.raises(RuntimeError):
        fastdl.warm_up(model, x, {"mask": torch.ones(1)})
    assert_same(before, state(model))
    assert torch.equal(torch.get_rng_state(), random) and torch.is_grad_enabled()


def test_a_model_is_expected():
    with pytest.raises(TypeError, match=r"expected model to be a torch\.nn\.Module, got function"):
        fastdl.warm_up(lambda x: x, torch.ones(1))


@pytest.mark.gpu
def test_triton_compiles_nothing_afterwards(monkeypatch):
    from triton import knobs

    model = fastdl.convert(STN()).cuda()
    x, target = torch.randn(4, 1, 42, 42, device="cuda"), torch.randint(10, (4,), device="cuda")
    compiled = []
    monkeypatch.setattr(knobs.runtime, "jit_post_compile_hook", lambda **_: compiled.append(1))
    fastdl.warm_up(model, x, loss=lambda out: fastdl.functional.cross_entropy(out, target))
    compiled.clear()
    fastdl.functional.cross_entropy(model(x), target).backward()
    assert not compiled


@pytest.mark.parametrize("name", ["net", "clip", "siamese"])
def test_command(name):
    """clip's targets are of pairs of samples, siamese takes two inputs."""
    result = CliRunner().invoke(cli.app, ["warm-up", name, "--batch", "6", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "first run" in result.output and "second run" in result.output


def test_a_network_that_there_is_not():
    result = CliRunner().invoke(cli.app, ["warm-up", "resnet19", "--device", "cpu"])
    assert result.exit_code == 2 and "resnet19" in result.output
