"""Every sequence that convert fuses, in every way to write it, against the model as written."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastdl.nn
from fastdl import backends
from fastdl.convert import convert, explain, revert


class Written(nn.Module):
    """A forward given as a function of the module and its inputs."""

    def __init__(self, body, **children):
        super().__init__()
        for name, child in children.items():
            setattr(self, name, child)
        self.body = body

    def forward(self, x):
        return self.body(self, x)


def layers() -> dict[str, nn.Module]:
    return {
        "conv": nn.Conv2d(2, 2, 3, padding=1),
        "bn": nn.BatchNorm2d(2),
        "bn2": nn.BatchNorm2d(2),
        "pool": nn.MaxPool2d(2),
        "relu": nn.ReLU(inplace=True),
    }


def fused(model: nn.Module) -> list[str]:
    return [row.call for row in explain(model).rows if row.op and " + " in row.call]


def both(body, **children) -> nn.Module:
    """Convert; compare outputs, all gradients and buffers with the twin as written."""
    torch.manual_seed(0)
    written = Written(body, **(layers() | children))
    model = convert(copy.deepcopy(written))
    for training in (True, False):
        results = []
        for each in (model, written):
            torch.manual_seed(1)
            x = torch.randn(2, 2, 6, 6).requires_grad_()
            each.train(training).zero_grad()
            out = each(x * 1)
            out.square().sum().backward()
            results.append((out, x.grad, [p.grad for p in each.parameters()], list(each.buffers())))
        torch.testing.assert_close(*results)
    assert torch.equal(revert(model)(x), written(x))
    convert(model)
    return model


ACTIVATIONS = {
    "nn.ReLU": (nn.ReLU(), None),
    "nn.LeakyReLU": (nn.LeakyReLU(0.2), None),
    "nn.ELU": (nn.ELU(0.5), None),
    "nn.Sigmoid": (nn.Sigmoid(), None),
    "nn.Tanh": (nn.Tanh(), None),
    "nn.Softplus": (nn.Softplus(), None),
    "F.relu": (None, lambda x: F.relu(x, inplace=True)),
    "torch.relu": (None, lambda x: torch.relu(x)),
    "relu()": (None, lambda x: x.relu()),
    "relu_()": (None, lambda x: x.relu_()),
    "F.leaky_relu": (None, lambda x: F.leaky_relu(x, negative_slope=0.3)),
    "F.elu": (None, lambda x: F.elu(x, 2.0)),
    "torch.sigmoid": (None, lambda x: torch.sigmoid(x)),
    "F.sigmoid": (None, lambda x: F.sigmoid(x)),
    "tanh()": (None, lambda x: x.tanh()),
    "F.softplus": (None, lambda x: F.softplus(x)),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    module, function = ACTIVATIONS[name]
    children = {} if module is None else {"act": module}

    if module is None:
        model = both(lambda self, x: function(self.bn(function(self.conv(x)))))
    else:
        model = both(lambda self, x: self.act(self.bn(self.act(self.conv(x)))), **children)
    assert len(fused(model)) == 2


@pytest.mark.parametrize(
    "act",
    [nn.LeakyReLU(-0.1), nn.Softplus(2.0), nn.ELU(-1.0), nn.SiLU(), nn.ReLU6()],
    ids=lambda act: str(act),
)
def test_other_activations_stay(act):
    model = both(lambda self, x: self.act(self.bn(x)), act=act)
    assert fused(model) == []


def test_activation_parameters_are_read_in_every_call():
    model = both(lambda self, x: self.act(self.bn(x)), act=nn.LeakyReLU(0.1))
    x = torch.randn(2, 2, 6, 6)
    for slope in (0.5, -0.5, 0.0):
        model.act.negative_slope = slope
        torch.testing.assert_close(model.eval()(x), revert(copy.deepcopy(model))(x))


ADDITIONS = {
    "out += x": lambda self, x: F.relu(iadd(self.bn(self.conv(x)), x)),
    "out + x": lambda self, x: F.relu(self.bn(self.conv(x)) + x),
    "x + out": lambda self, x: F.relu(x + self.bn(self.conv(x))),
    "torch.add": lambda self, x: self.relu(torch.add(x, self.bn(x))),
    "add": lambda self, x: self.relu(self.bn(x).add(x)),
    "add_": lambda self, x: self.relu(self.bn(x).add_(x)),
    "without activation": lambda self, x: self.bn(x) + x,
    "two norms": lambda self, x: torch.relu(self.bn(x) + self.bn2(self.conv(x))),
    "shortcut between": lambda self, x: torch.relu(self.bn(self.conv(x)) + self.pool(self.up(x))),
    "leaky": lambda self, x: F.leaky_relu(self.bn(x) + x, 0.1),
}


def iadd(out, x):
    out += x
    return out


@pytest.mark.parametrize("name", ADDITIONS)
def test_additions(name):
    model = both(ADDITIONS[name], up=nn.Upsample(scale_factor=2))
    calls = fused(model)
    assert sum("add" in call for call in calls) == 1, calls


def writes_residual(self, x):
    x += self.bn(self.conv(x))  # the residual is what is written to
    return self.relu(x)


def writes_input_between(self, x):
    out = self.bn(x)
    x.mul_(2)
    return self.relu(out + x)


def writes_input_between_by_function(self, x):
    out = self.bn(x)
    F.relu(x, True)
    return self.relu(out + x)


def same_norm_between(self, x):
    out = self.bn(self.conv(x))
    other = self.bn(x)  # updates the running statistics, second
    return out + other * 2


def norm_used_twice(self, x):
    out = self.bn(x)
    return self.relu(out) + out


def norm_used_behind(self, x):
    out = self.bn(x)
    return (out + x) * out


def scaled_addition(self, x):
    return torch.add(self.bn(x), x, alpha=2)


def number(self, x):
    return self.bn(x) + 1


def itself(self, x):
    out = self.bn(x)
    return out + out


@pytest.mark.parametrize(
    "body",
    [
        writes_residual,
        writes_input_between,
        writes_input_between_by_function,
        same_norm_between,
        norm_used_twice,
        norm_used_behind,
        scaled_addition,
        number,
        itself,
    ],
)
def test_additions_that_are_not_fused(body):
    torch.manual_seed(0)
    x = torch.randn(2, 2, 6, 6)
    written = Written(body, **layers())
    model = convert(copy.deepcopy(written))
    for each in (model, written):  # without autograd, which forbids some of these
        with torch.no_grad():
            given = x.clone()
            each.result = each(given), given, *[buffer.clone() for buffer in each.buffers()]
    torch.testing.assert_close(model.result, written.result)
    assert not [call for call in fused(model) if "add" in call]


@pytest.mark.parametrize("change", [lambda x: x.mean((2, 3), keepdim=True), lambda x: x.double()])
def test_a_residual_unlike_the_input_is_added_apart(change, monkeypatch):
    class Unlike(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm2d(2)
            self.change = nn.Module()
            self.change.forward = change

        def forward(self, x):
            other = self.change(x)
            return torch.relu(self.bn(x) + other)

    written = Unlike()
    model = convert(Unlike())
    assert fused(model) == ["bn + add + relu"]
    residuals = []
    forward = fastdl.nn.batch_norm_forward
    monkeypatch.setattr(fastdl.nn, "batch_norm_forward", lambda *a: residuals.append(a[2:]) or forward(*a))
    x = torch.randn(2, 2, 6, 6)
    torch.testing.assert_close(model(x), written(x))
    assert residuals == [()]


POOLS = {
    "relu(pool(conv))": lambda self, x: F.relu(F.max_pool2d(self.conv(x), 2)),
    "keywords": lambda self, x: torch.relu(torch.max_pool2d(self.conv(x), kernel_size=3, stride=2)),
    "modules": lambda self, x: self.relu(self.pool(self.conv(x))),
    "mixed": lambda self, x: self.pool(self.conv(x)).relu(),
    "functions": lambda self, x: F.relu(F.max_pool2d(F.conv2d(x, self.conv.weight), 2)),
    "pool(relu(conv))": lambda self, x: F.max_pool2d(F.relu(self.conv(x)), 2),
    "pool last, modules": lambda self, x: self.pool(self.relu(self.conv(x))),
    "pool last, mixed": lambda self, x: F.max_pool2d(self.conv(x).relu_(), kernel_size=(2, 2), stride=2),
}


@pytest.mark.parametrize("name", POOLS)
def test_pools(name):
    assert len(fused(both(POOLS[name]))) == 1


@pytest.mark.parametrize("last", ["relu", "pool"])
def test_an_activation_put_in_later_does_not_pass_the_pool(last):
    """Two inputs whose sigmoids round to the same number: which has the gradient depends on the order."""
    conv, pool, relu = nn.Conv2d(1, 1, 1, bias=False), nn.MaxPool2d(2), nn.ReLU()
    model = nn.Sequential(conv, *((pool, relu) if last == "relu" else (relu, pool)))
    model = convert(model)
    nn.init.ones_(model[0].weight)
    model[2 if last == "relu" else 1] = nn.Sigmoid()
    x = torch.tensor([[[[10.0, 10.000001], [0.0, 0.0]]]]).requires_grad_()
    model(x).backward()
    assert x.grad.flatten().nonzero().item() == (1 if last == "relu" else 0)


def test_a_pool_that_a_relu_cannot_pass():
    model = both(lambda self, x: torch.sigmoid(F.max_pool2d(self.conv(x), 2)))
    assert fused(model) == []
    model = both(lambda self, x: F.max_pool2d(self.conv(x), 2, return_indices=True)[0].relu())
    assert fused(model) == []
    model = both(lambda self, x: F.max_pool2d(torch.sigmoid(self.conv(x)), 2))
    assert fused(model) == ["conv + sigmoid"]
    model = both(lambda self, x: F.max_pool2d(F.relu(self.conv(x)), 3, padding=1))
    assert fused(model) == ["conv + relu"]
    model = both(lambda self, x: (y := F.relu(self.conv(x))).mean() + F.max_pool2d(y, 2))
    assert fused(model) == ["conv + relu"]


@pytest.mark.parametrize("last", ["relu", "pool"])
def test_relu_before_the_pool_is_exact(last):
    """Ties, windows without a positive value, zeros of both signs and NaN."""
    conv, pool, relu = nn.Conv2d(1, 1, 1, bias=False), nn.MaxPool2d(2), nn.ReLU()
    written = nn.Sequential(conv, *((pool, relu) if last == "relu" else (relu, pool)))
    nn.init.ones_(written[0].weight)
    model = convert(copy.deepcopy(written))
    values = torch.tensor([0.0, -0.0, 1.0, -1.0, float("nan"), float("inf"), -float("inf")])
    torch.manual_seed(0)
    x = values[torch.randint(0, 7, (8, 1, 16, 16))]
    grads = []
    for each in (model, written):
        leaf = x.clone().requires_grad_()
        out = each(leaf)
        out.sum().backward()
        grads.append((out, leaf.grad))
    torch.testing.assert_close(*grads, rtol=0, atol=0, equal_nan=True)


SAMPLINGS = {
    "plain": lambda theta, x: F.grid_sample(x, F.affine_grid(theta, x.size())),
    "aligned": lambda theta, x: F.grid_sample(
        x, F.affine_grid(theta, [2, 2, 3, 5], align_corners=True), align_corners=True
    ),
    "nearest": lambda theta, x: F.grid_sample(
        x, F.affine_grid(theta, x.shape, False), "nearest", "border", align_corners=False
    ),
}


class Sampler(nn.Module):
    def __init__(self, sample):
        super().__init__()
        self.sample = sample
        self.theta = nn.Parameter(torch.tensor([[0.9, 0.1, 0.05], [-0.1, 0.8, 0.1]]).repeat(2, 1, 1))

    def forward(self, x):
        return self.sample(self.theta * 1, x)


@pytest.mark.filterwarnings("ignore:Default grid_sample", "ignore:Default affine_grid", "ignore::UserWarning")
@pytest.mark.parametrize("name", SAMPLINGS)
def test_sampling(name):
    written = Sampler(SAMPLINGS[name])
    model = convert(copy.deepcopy(written))
    assert fused(model) == ["affine_grid + grid_sample"]
    x = torch.randn(2, 2, 6, 6)
    outs = [each(x) for each in (model, written)]
    torch.testing.assert_close(*outs)
    for out in outs:
        out.sum().backward()
    torch.testing.assert_close(model.theta.grad, written.theta.grad, rtol=1e-4, atol=1e-4)


def test_a_grid_that_is_seen_elsewhere_is_made():
    def seen(theta, x):
        grid = F.affine_grid(theta, x.size(), align_corners=False)
        return F.grid_sample(x, grid, align_corners=False), grid

    def misaligned(theta, x):
        grid = F.affine_grid(theta, x.size(), align_corners=True)
        return F.grid_sample(x, grid, align_corners=False)

    for sample in (seen, misaligned):
        model = convert(Sampler(sample))
        assert fused(model) == []
        assert any("counterpart" in row.note for row in explain(model).rows)


class Loss(nn.Module):
    def __init__(self, loss):
        super().__init__()
        self.log_softmax = nn.LogSoftmax(1)
        self.nll = nn.NLLLoss(torch.tensor([1.0, 2.0, 3.0]), ignore_index=1)
        self.loss = loss

    def forward(self, x, y):
        return self.loss(self, x, y)


LOSSES = {
    "functions": lambda self, x, y: F.nll_loss(F.log_softmax(x, dim=1), y, reduction="sum"),
    "method": lambda self, x, y: F.nll_loss(x.log_softmax(-1), y, self.nll.weight, ignore_index=2),
    "modules": lambda self, x, y: self.nll(self.log_softmax(x), y),
    "mixed": lambda self, x, y: self.nll(torch.log_softmax(x, 1), y),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name):
    written = Loss(LOSSES[name])
    model = convert(copy.deepcopy(written))
    assert fused(model) == ["log_softmax + nll_loss"]
    x, y = torch.randn(5, 3), torch.tensor([0, 1, 2, 2, 0])
    with backends.record() as choices:
        out = model(x, y)
    assert [choice.op for choice in choices] == ["cross_entropy"]
    torch.testing.assert_close(out, written(x, y))
    with pytest.raises(RuntimeError):
        model(x, torch.rand(5, 3))  # probabilities are nothing for nll_loss


def test_another_dimension_is_no_cross_entropy():
    model = convert(Loss(lambda self, x, y: F.nll_loss(F.log_softmax(x, dim=0), y)))
    x, y = torch.randn(3, 3), torch.tensor([0, 1, 2])
    torch.testing.assert_close(model(x, y), F.nll_loss(F.log_softmax(x, 0), y))


def test_functional_calls():
    def body(self, x):
        x = F.conv2d(x, self.conv.weight, None, 1, 1)
        x = F.batch_norm(x, self.bn.running_mean, self.bn.running_var, training=True)
        return F.max_pool2d(F.relu(x), 2)

    model = both(body)
    assert fused(model) == ["batch_norm + relu"]
    with backends.record() as choices:
        model(torch.randn(1, 2, 6, 6))
    assert [choice.op for choice in choices] == ["conv2d", "batch_norm", "max_pool2d"]
    loss = convert(Loss(lambda self, x, y: F.cross_entropy(x, y, label_smoothing=0.1)))
    with backends.record() as choices:
        loss(torch.randn(2, 3), torch.tensor([0, 1]))
    assert [choice.op for choice in choices] == ["cross_entropy"]


def test_a_second_activation_stays():
    """It took the place of the first in the call that had it already."""
    assert fused(both(lambda self, x: F.elu(F.relu(F.conv2d(x, self.conv.weight))))) == ["conv2d + relu"]
    assert fused(both(lambda self, x: torch.tanh(F.leaky_relu(self.conv(x))))) == ["conv + leaky_relu"]


def test_a_functional_norm_and_an_activation_module():
    def body(self, x):
        return self.act(F.batch_norm(x, self.bn.running_mean, self.bn.running_var, training=self.training))

    model = both(body, act=nn.LeakyReLU(0.2))
    assert fused(model) == ["batch_norm + act"]
    model.act = nn.SiLU()  # looked at in every call
    x = torch.randn(2, 2, 4, 4)
    expected = F.silu(F.batch_norm(x, model.bn.running_mean, model.bn.running_var))
    torch.testing.assert_close(model.eval()(x), expected)


def test_identities_are_looked_through():
    """A network has nn.Identity where it might have dropout, or a norm."""

    def body(self, x):
        y = self.relu(self.no(self.bn(self.conv(x))))
        z = self.bn2(self.conv(self.no(y)))
        return self.relu(self.no(self.no(z)) + self.no(x))

    model = both(body, no=nn.Identity())
    assert fused(model) == ["bn + relu", "bn2 + add + relu"]
    x, written = torch.randn(2, 2, 6, 6), revert(copy.deepcopy(model))
    expected, seen = written(x), []

    hook = model.no.register_forward_hook(lambda *_: seen.append("hook"))
    assert torch.equal(model(x), expected)
    assert seen == ["hook"] * 5
    hook.remove()
    everywhere = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    assert torch.equal(model(x), expected)
    everywhere.remove()
    assert seen.count(model.no) == 5
    for another in (nn.Dropout(0.5), nn.Identity(), nn.Tanh(), nn.BatchNorm2d(2)):
        model.no = written.no = copy.deepcopy(another).eval()
        assert torch.equal(model(x), written(x))


def test_explain_tells_what_stays_and_why():
    def body(self, x):
        y = self.conv(x)
        return self.silu(self.relu(y) + self.relu(y.abs()))

    model = Written(body, **layers(), silu=nn.SiLU())
    rows = explain(model).rows
    assert {row.call: row.note for row in rows}["Conv2d"] == "not converted"
    model = convert(model)
    statistics = [buffer.clone() for buffer in model.buffers()]
    explanation = explain(model, torch.randn(1, 2, 6, 6))
    notes = {(row.call, row.op): row.note for row in explanation.rows}
    assert notes["relu", ""] == "not fused: it follows abs"
    assert ("conv", "conv2d") in notes
    assert ("SiLU x 1", "") in notes
    assert explanation.counts()["conv2d"] == 1
    assert sum(explanation.calls.values()) == 1
    for before, after in zip(statistics, model.buffers(), strict=True):
        assert torch.equal(before, after)
    text = str(explanation)
    assert "conv2d" in text
    assert "one run on the example inputs" in text


def test_backends_by_name():
    model = convert(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()))
    with backends.use_backend("reference"):
        assert explain(model).rows[0].backend == "reference"
    if backends.why_not("triton", torch.device("cpu")):
        with backends.use_backend("triton"):
            assert "reference serves it" in explain(model).rows[0].note
