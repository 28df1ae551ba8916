"""torch.compile(model, backend="fastdl"): the same fusions in the graphs of Dynamo, nothing else changed."""

import copy
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from support import DEVICE
from torch import nn
from whole import assert_judged, assert_same, step, written

from fastdl import backends, dynamo, functional
from fastdl.convert import fused
from fastdl.models import STN, Net, resnet8
from fastdl.models.resnet import Bottleneck

MODELS = {
    "net": (Net, (2, 1, 28, 28)),
    "stn": (STN, (2, 1, 42, 42)),
    "resnet": (resnet8, (2, 1, 14, 14)),
    "bottleneck": (lambda: Bottleneck(8, 4, stride=2), (2, 8, 6, 6)),
}
CALLS = {
    functional.conv2d: "conv",
    functional.batch_norm: "norm",
    functional.max_pool2d: "pool",
    functional.conv2d_max_pool2d: "conv+pool",
    functional.cross_entropy: "cross_entropy",
    dynamo.norm_add_act: "norm+add",
    fused.affine_grid_sample: "affine_grid_sample",
    fused.log_softmax_nll: "cross_entropy",
}


@pytest.fixture(autouse=True)
def _afresh():
    torch._dynamo.reset()


@pytest.fixture
def reference():
    """To the bit: what is fused, not how kernels round."""
    with backends.use_backend("reference" if DEVICE == "cpu" else "auto"):
        yield


def made(name: str) -> tuple[nn.Module, torch.Tensor]:
    build, shape = MODELS[name]
    model = build().to(DEVICE)
    if name == "stn":  # off the identity, where every sample lies on a pixel and its gradient is arbitrary
        nn.init.normal_(model.localisation[-1].weight, std=0.03)
    return model, torch.randn(shape, device=DEVICE)


def compiled(function, **options):
    """``function`` compiled, and a list of what its graphs call of ours: ``conv relu``, ``norm+add`` ..."""
    seen = []

    def inner(graph_module, inputs):
        for module in graph_module.modules():
            for node in module.graph.nodes if hasattr(module, "graph") else ():
                if node.target in CALLS:
                    act = node.kwargs.get("activation")
                    if node.target is dynamo.norm_add_act:
                        act = node.args[2] and node.args[2][0]
                    seen.append(CALLS[node.target] + (f" {act}" if act else ""))
        return graph_module.forward

    return torch.compile(function, backend="fastdl", options={"inner": inner}, **options), seen


def test_torch_finds_it_without_an_import():
    """The entry point; and fastdl imports no Dynamo for it."""
    code = """
import sys, torch
assert "fastdl" in torch.compiler.list_backends()
assert "fastdl" not in sys.modules
f = torch.compile(lambda x: torch.relu(torch.conv2d(x, x)), backend="fastdl")
f(torch.ones(1, 1, 3, 3))
assert "fastdl.dynamo" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    code = "import sys, fastdl, fastdl.dynamo; assert 'torch._dynamo' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_same_step(name, training, reference):
    """Outputs, gradients and running statistics, to the bit."""
    model, x = made(name)
    model.train(training)
    ours = copy.deepcopy(model)
    call = torch.compile(ours, backend="fastdl", fullgraph=True)
    for _ in range(2):
        assert_same(step(ours, x, call), step(model, x))


@pytest.mark.parametrize("name", MODELS)
def test_same_step_on_kernels(name):
    model, x = made(name)
    torchs, oracle = written(model, x)
    with backends.record() as choices:
        ours = step(model, x, torch.compile(model, backend="fastdl", fullgraph=True))
    assert_judged(ours, torchs, oracle)
    wanted = {"bottleneck": {"conv2d", "batch_norm"}, "resnet": {"conv2d", "batch_norm"}}
    wanted = wanted.get(name, {"conv2d", "max_pool2d"}) | ({"affine_grid_sample"} if name == "stn" else set())
    assert wanted == {choice.op for choice in choices}


def test_what_is_fused():
    blocks = ["norm relu", "norm+add relu"]
    expected = {
        "net": ["conv+pool relu"] * 2,
        "stn": ["pool", "conv+pool relu", "conv relu", "affine_grid_sample", *["conv+pool relu"] * 3],
        "bottleneck": ["conv", "norm relu", "conv", "norm relu", "conv", "norm", "conv", "norm+add relu"],
    }
    for name, calls in expected.items():
        torch._dynamo.reset()
        model, x = made(name)
        call, seen = compiled(model)
        call(x)
        assert seen == calls, name
    model, x = made("resnet")
    call, seen = compiled(model)
    call(x)
    assert [c for c in seen if "relu" in c] == ["norm relu"] + blocks * 3


def test_across_modules(reference):
    """What lies in several modules: Dynamo's graph is flat."""

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Sequential(nn.BatchNorm2d(4)))

        def forward(self, x):
            return x + self.body(x)

    model = nn.Sequential(Residual(), nn.Identity(), nn.LeakyReLU(0.2)).to(DEVICE)
    x = torch.randn(2, 4, 6, 6, device=DEVICE)
    expected = step(copy.deepcopy(model), x)
    call, seen = compiled(model)
    assert_same(step(model, x, call), expected)
    assert seen == ["conv", "norm+add leaky_relu"]


def test_losses(reference):
    logits, target = torch.randn(4, 5, device=DEVICE), torch.tensor([0, 4, 1, 2], device=DEVICE)
    weight = torch.rand(5, device=DEVICE)

    def nll(x):
        return F.nll_loss(F.log_softmax(x, dim=-1), target, weight, ignore_index=1)

    for loss in (nll, lambda x: F.cross_entropy(x, target, label_smoothing=0.1)):
        torch._dynamo.reset()
        call, seen = compiled(loss)
        a, b = (logits.clone().requires_grad_() for _ in range(2))
        ours, theirs = call(a), loss(b)
        ours.backward()
        theirs.backward()
        assert torch.equal(ours, theirs)
        assert torch.equal(a.grad, b.grad)
        assert seen == ["cross_entropy"]


W, C = torch.randn(4, 4, 3, 3, device=DEVICE), torch.rand(4, device=DEVICE) + 0.5


def conv(x):
    return F.conv2d(x, W, padding=1)


def norm(x):
    return F.batch_norm(x, None, None, C, C, training=True)


def used_twice(x):
    y = conv(x)
    return F.relu(y) + y


def seen_through_a_view(x):
    y = F.elu(conv(x))
    y.view(-1).mul_(2)
    return y


def added_in_place_to_an_argument(x):
    y = x * 1
    z = y[:]
    z += norm(x)
    return F.relu(y) + z


def residual_that_changes(x):
    y = x * 1
    z = norm(x)
    y.mul_(3)
    return F.relu(z + y)


def residual_made_later(x):
    z = norm(x)
    return F.relu(z + x.tanh())


def broadcast(x):
    y = x.mean((2, 3), keepdim=True)
    return F.relu(norm(x) + y)


def without_gradient(x):
    y = conv(x)
    with torch.no_grad():
        z = F.relu(y)
    return x * z


def norm_without_gradient(x):
    with torch.no_grad():
        y = norm(x)
    return F.relu(y + x)


def autocast_between(x):
    y = conv(x)
    with torch.autocast(x.device.type, torch.bfloat16):
        z = F.relu(y)
    return z


def in_place_all_along(x):
    y = F.relu_(conv(x))
    y = F.leaky_relu_(conv(y), 0.1)
    z = norm(y)
    z += x
    return F.relu_(z)


def views(x):
    y = F.relu(conv(x.transpose(2, 3)))[:, 1:].flatten(1)
    return F.max_pool2d(conv(x)[:, ::2], 2).flatten(1).sum() + y


def pool_with_indices(x):
    values, indices = F.max_pool2d(conv(x), 2, return_indices=True)
    return F.max_unpool2d(F.relu(values), indices, 2)


def grid_seen_elsewhere(x):
    grid = F.affine_grid(x[:, 0, :2, :3], x.shape, align_corners=False)
    return F.grid_sample(x, grid, align_corners=False) + grid.sum()


def break_inside(x):
    y = conv(x)
    torch._dynamo.graph_break()
    return F.relu(conv(F.relu(y)))


def checkpointed(x):
    block = torch.utils.checkpoint.checkpoint
    return block(lambda t: F.relu(norm(conv(t)) + t), x, use_reentrant=False)


CASES = {
    used_twice: ["conv"],
    seen_through_a_view: ["conv"],
    added_in_place_to_an_argument: ["norm"],
    residual_that_changes: ["norm"],
    residual_made_later: ["norm"],
    broadcast: ["norm+add relu"],  # looked at in every call: shapes may vary
    without_gradient: ["conv"],
    norm_without_gradient: ["norm"],
    autocast_between: ["conv"],
    in_place_all_along: ["conv relu", "conv leaky_relu", "norm+add relu"],
    views: ["conv relu", "conv", "pool"],
    pool_with_indices: ["conv", "pool"],
    grid_seen_elsewhere: [],
    break_inside: ["conv", "conv relu"],
    checkpointed: ["conv", "norm+add relu"],
}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("function", CASES, ids=lambda f: f.__name__)
def test_what_must_stay_as_written(function, dynamic, reference):
    """Whatever a sequence meets in between: values and gradients are those of eager."""
    call, seen = compiled(function, dynamic=dynamic)
    for size in (6, 8) if dynamic else (6,):
        a = torch.randn(2, 4, size, size, device=DEVICE).requires_grad_()
        b = a.detach().clone().requires_grad_()
        ours, theirs = call(a), function(b)
        assert torch.equal(ours, theirs)
        ours.square().mean().backward()
        theirs.square().mean().backward()
        torch.testing.assert_close(a.grad, b.grad)  # the order in which gradients add up may differ
    assert seen[: len(CASES[function])] == CASES[function]


def test_follows_use_backend():
    call = torch.compile(lambda x: F.relu(conv(x)), backend="fastdl")
    x = torch.randn(1, 4, 6, 6, device=DEVICE)
    for name in ("reference", "auto"):
        with backends.use_backend(name), backends.record() as choices:
            call(x)
        assert [choice.op for choice in choices] == ["conv2d"]
        assert (choices[0].reason == "chosen by name") == (name == "reference")


@pytest.mark.parametrize(
    ("change", "message"),
    [(lambda x: x[:, :3], "channels"), (lambda x: x[:, :, 0, 0], "3D"), (lambda x: x.int(), "type")],
)
def test_bad_input(change, message):
    """A clear error, and nothing has changed."""
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU()).to(DEVICE)
    before = copy.deepcopy(model.state_dict())
    call = torch.compile(model, backend="fastdl")
    with pytest.raises(Exception, match=message):
        call(change(torch.randn(2, 4, 6, 6, device=DEVICE)))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    call(torch.randn(2, 4, 6, 6, device=DEVICE))  # and it still works


def test_an_inner_backend_that_is_not_there():
    with pytest.raises(Exception, match="nowhere"):
        torch.compile(conv, backend="fastdl", options={"inner": "nowhere"})(torch.randn(1, 4, 6, 6))


@pytest.mark.slow
@pytest.mark.parametrize("inner", ["aot_eager", "inductor"])
@pytest.mark.parametrize("name", MODELS)
def test_inner_backends(name, inner):
    model, x = made(name)
    model.train(name != "net")  # which drops out, and Inductor has a random generator of its own
    torchs, oracle = written(model, x)
    call = torch.compile(model, backend="fastdl", options={"inner": inner}, fullgraph=True)
    assert_judged(step(model, x, call), torchs, oracle)
