"""torch.compile and torch.library: the ops are well-formed and trace whole, forward and backward."""

import copy

import pytest
import torch
from calls import CALLS, leaves
from support import KERNEL_BACKENDS
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck

import fastdl
from fastdl import backends
from fastdl.models import STN, Net, resnet8
from fastdl.ops import affine_grid_sample, batch_norm, conv2d, cross_entropy, max_pool2d, tps_grid_sample

every_call = pytest.mark.parametrize("name", CALLS)
every_kernel = pytest.mark.parametrize("kernel", KERNEL_BACKENDS)

X = torch.randn(2, 4, 6, 6)
LAST = X.contiguous(memory_format=torch.channels_last)
W, B = torch.randn(8, 4, 3, 3), torch.randn(8)
C = torch.rand(4) + 0.5
LOGITS, TARGET = torch.randn(3, 5, 4), torch.randint(5, (3, 4))
ROWS = torch.zeros(3, 4)
THETA = torch.tensor([[0.8, -0.45, 0.1], [0.5, 0.85, -0.15]]).repeat(2, 1, 1)
CONTROLS = tps_grid_sample.regular_points(4).float()
SPLINE = torch.cat([THETA, 0.1 * torch.randn(2, 2, 4)], 2)
WINDOW = ((3, 3), (2, 2), (1, 1), (1, 1))
OFFSETS = torch.zeros(2, 4, 3, 3, dtype=torch.uint8)  # at the edge cells that are padding: nothing is added
OUT = torch.randn(2, 8, 4, 4)
FLAGS = [True, False, True]

# the raw ops, without the backend they run on; inputs that need no gradient (that lives in the Function)
OP_ARGS = {
    "conv2d": (conv2d.forward_op, (X, W, B, (1, 1), (0, 0), (1, 1), 1, "relu", 0.0)),
    "conv2d channels_last": (conv2d.forward_op, (LAST, W, None, (1, 1), (1, 1), (1, 1), 1, "", 0.0)),
    "conv2d backward": (
        conv2d.backward_op, (OUT, X, W, OUT, (1, 1), (0, 0), (1, 1), 1, "relu", 0.0, FLAGS),
    ),
    "batch_norm": (batch_norm.forward_op, (X, C, C, X, C.clone(), C.clone(), True, 0.1, 1e-5, "relu", 0.0, True)),
    "batch_norm eval": (
        batch_norm.forward_op, (LAST, C, C, None, C.clone(), C.clone(), False, 0.1, 1e-5, "", 0.0, False),
    ),
    "batch_norm backward": (
        batch_norm.backward_op, (X, X, C, C, None, C, C, None, True, "relu", 0.0, [True, True, False, False]),
    ),
    "cross_entropy": (cross_entropy.forward_op, (LOGITS, TARGET, None, -100, "mean", 0.1, torch.float32)),
    "cross_entropy none": (cross_entropy.forward_op, (LOGITS, TARGET, torch.rand(5), 1, "none", 0.0, torch.float32)),
    "cross_entropy backward": (
        cross_entropy.backward_op,
        (torch.tensor(1.0), LOGITS, TARGET, None, ROWS, torch.tensor(12.0), -100, "mean", 0.1),
    ),
    "max_pool2d": (max_pool2d.forward_op, (X, *WINDOW, False, True)),
    "max_pool2d unsaved": (max_pool2d.forward_op, (LAST, *WINDOW, True, False)),
    "max_pool2d backward": (
        max_pool2d.backward_op, (torch.randn(2, 4, 3, 3), OFFSETS, (2, 4, 6, 6), True, *WINDOW),
    ),
    "affine_grid_sample": (
        affine_grid_sample.forward_op, (X, THETA, [5, 4], "bilinear", "zeros", False, torch.float32),
    ),
    "affine_grid_sample backward": (
        affine_grid_sample.backward_op, (X, X, THETA, "bilinear", "zeros", False, [True, True]),
    ),
    "tps_grid_sample": (
        tps_grid_sample.forward_op, (X, SPLINE, CONTROLS, [5, 4], "bilinear", "zeros", False, torch.float32),
    ),
    "tps_grid_sample backward": (
        tps_grid_sample.backward_op, (X, X, SPLINE, CONTROLS, "bilinear", "zeros", False, [True, True]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OP_ARGS)
@every_kernel
def test_opcheck(name, kernel, device):
    """Schema, declared mutation, and the fake's shapes, dtypes and strides against the real ones."""
    op, args = OP_ARGS[name]

    def move(value):
        return value.to(device) if isinstance(value, torch.Tensor) else value

    opcheck(op, (*map(move, args), kernel))


@every_call
@every_kernel
@pytest.mark.parametrize("dynamic", [False, True])
def test_fullgraph_forward_and_backward(name, kernel, dynamic, device):
    """One graph, values and gradients bit for bit those of eager."""
    call, inputs = CALLS[name], leaves(CALLS[name], device)
    asked = [inputs[i] for i in call.grads]
    torch._dynamo.reset()
    with backends.use_backend(kernel):
        compiled = torch.compile(call.function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
        out, expected = compiled(*inputs), call.function(*inputs)
        grads = torch.autograd.grad(out.square().sum(), asked)
        expected_grads = torch.autograd.grad(expected.square().sum(), asked)
    assert torch.equal(out, expected)
    assert all(torch.equal(a, b) for a, b in zip(grads, expected_grads, strict=True))


def test_opcheck_of_the_regular_grid(device):
    opcheck(torch.ops.fastdl.tps_regular.default, (9, torch.float32, device))


@pytest.mark.parametrize("dynamic", [False, True])
def test_regular_grids_in_one_graph(dynamic, on, device):
    """Of the same number of points and of different ones; the grids that are kept are not touched."""

    def twice(x, few, many):
        first = fastdl.functional.tps_grid_sample(x, few, (2, 3, 5, 6))
        second = fastdl.functional.tps_grid_sample(x, many, (2, 3, 5, 6))
        return first + second + fastdl.functional.tps_grid_sample(x, 0.5 * few, (2, 3, 5, 6))

    torch._dynamo.reset()
    compiled = torch.compile(twice, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    x, few, many = (torch.rand(2, *shape, device=device) for shape in ((3, 6, 6), (9, 2), (16, 2)))
    for args in ((x, few, many), (x, many, few), (x.double(), few, few)):
        if args[0].dtype == torch.float64 and on != "reference":
            continue
        assert torch.equal(compiled(*args), twice(*args))


@pytest.mark.parametrize("control_points", [False, True])
def test_spline_module_compiles_whole(control_points, on, device):
    controls = tps_grid_sample.regular_points(9).float() * 0.9 if control_points else None
    module = fastdl.nn.TPSGridSample((5, 4), controls).to(device)
    x, points = torch.rand(2, 3, 6, 6, device=device), torch.rand(2, 9, 2, device=device)
    expected = module(x, points)
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(module), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, points), expected)
    with torch.inference_mode():
        assert torch.equal(compiled(x, points), expected)


def test_regular_grids_that_are_kept_are_real(on, device):
    """Whatever the first call of a size was made under."""
    sample = fastdl.functional.tps_grid_sample
    x, points = torch.rand(2, 3, 6, 6, device=device), torch.rand(2, 49, 2, device=device)
    controls = points[0].clone()
    tps_grid_sample._kept.cache_clear()
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(t) for t in (x, points, controls)]
        assert sample(*fake[:2], (2, 3, 5, 4)).shape == sample(*fake[:2], (2, 3, 5, 4), fake[2]).shape
    with torch.inference_mode(), torch.device("meta"):
        out = sample(x, points, (2, 3, 5, 4))
    points.requires_grad_()
    again = sample(x, points, (2, 3, 5, 4))
    assert torch.equal(out, again) and torch.autograd.grad(again.sum(), points)[0].isfinite().all()


def test_compiled_calls_follow_use_backend(device):
    """The backend is a guard: a graph traced under one is not reused under another."""
    torch._dynamo.reset()
    pool = torch.compile(lambda x: fastdl.functional.max_pool2d(x, 2), fullgraph=True, backend="eager")
    x = torch.randn(1, 2, 4, 4, device=device)
    for name in (*KERNEL_BACKENDS, "reference", *KERNEL_BACKENDS):
        with backends.use_backend(name), backends.record() as choices:
            expected = fastdl.functional.max_pool2d(x, 2)
            assert torch.equal(pool(x), expected)
        assert choices[0].backend == name


def test_running_statistics_under_compile(on, device):
    """The mutation of buffers survives functionalisation, once per step."""
    torch._dynamo.reset()
    eager, traced = fastdl.nn.BatchNorm2d(4).to(device), fastdl.nn.BatchNorm2d(4).to(device)
    compiled = torch.compile(traced, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        x = torch.randn(2, 4, 5, 5, device=device)
        torch.testing.assert_close(compiled(x), eager(x), rtol=0, atol=0)
    for name, value in eager.state_dict().items():
        assert torch.equal(traced.state_dict()[name], value), name


MODELS = {"net": (Net, (2, 1, 28, 28)), "stn": (STN, (2, 1, 42, 42)), "resnet8": (resnet8, (2, 1, 16, 16))}


@pytest.mark.parametrize("name", MODELS)
def test_converted_model_compiles_whole(name, device):
    make, shape = MODELS[name]
    torch._dynamo.reset()
    model = fastdl.convert(make().to(device)).eval()
    x = torch.randn(shape, device=device)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.slow
@every_kernel
@pytest.mark.parametrize("name", MODELS)
def test_converted_model_trains_under_inductor(name, kernel, device):
    """The default backend of torch.compile, forward and backward, on kernels.

    (By the reference the transformer's gradients would be wrong, as the stock model's are: Inductor of torch
    2.13 on the CPU miscomputes those of grid_sample.)
    """
    make, shape = MODELS[name]
    torch._dynamo.reset()
    model = fastdl.convert(make().to(device)).eval()  # eval: no dropout, so that the two agree
    if name == "stn":  # off the identity, where every sample lies on a pixel and its gradient is arbitrary
        torch.nn.init.normal_(model.localisation[-1].weight, std=0.03)
    x = torch.randn(shape, device=device)
    target = torch.tensor([1, 2], device=device)
    compiled = torch.compile(model, fullgraph=True)

    def grads(call):
        loss = fastdl.functional.cross_entropy(call(x), target)
        return torch.autograd.grad(loss, list(model.parameters()))

    with backends.use_backend(kernel):
        ours, expected = grads(compiled), grads(model)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
