"""What only a GPU can show: streams, graph capture, bad targets, several devices, tensors past 2**31."""

import pytest
import torch
from calls import CALLS, leaves
from support import KERNEL_BACKENDS

import fastdl
import fastdl.functional as F
from fastdl import backends, parity
from fastdl.backends import OPS
from fastdl.models import STN, resnet8

pytestmark = pytest.mark.gpu
every_call = pytest.mark.parametrize("name", CALLS)
every_kernel = pytest.mark.parametrize("kernel", KERNEL_BACKENDS)


@every_call
@every_kernel
def test_runs_on_the_current_stream(name, kernel):
    """A side stream, while the default one is kept busy: work on the wrong stream would see old data."""
    call, inputs = CALLS[name], leaves(CALLS[name], torch.device("cuda"))
    with torch.no_grad(), backends.use_backend(kernel):
        expected = call.function(*inputs)
        torch.cuda.synchronize()
        side = torch.cuda.Stream()
        fresh = [torch.zeros_like(t) for t in inputs]
        torch.cuda.synchronize()
        torch.cuda._sleep(200_000_000)
        with torch.cuda.stream(side):
            for to, source in zip(fresh, inputs, strict=True):
                to.copy_(source)
            got = call.function(*fresh)
        side.synchronize()
    assert torch.equal(got, expected)


@every_call
@every_kernel
def test_captured_in_a_graph(name, kernel):
    """Forward and backward captured once, replayed on new data: no synchronisation, no host read."""
    call = CALLS[name]
    static = leaves(call, torch.device("cuda"))
    asked = [static[i] for i in call.grads]

    def step():
        out = call.function(*static)
        return [out, *torch.autograd.grad(out.sum(), asked)]

    with backends.use_backend(kernel):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):  # compiles
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        for _ in range(2):
            with torch.no_grad():
                for to, new in zip(static, leaves(call, torch.device("cuda")), strict=True):
                    to.copy_(new)
            graph.replay()
            for got, expected in zip(captured, step(), strict=True):
                assert torch.equal(got, expected)


@every_kernel
@pytest.mark.parametrize("bad", [10, -1, 2**40])
def test_target_out_of_range(kernel, bad, monkeypatch):
    """NaN for its row and nothing else, the context alive; FASTDL_CHECK=1 raises instead."""
    logits = torch.randn(8, 10, device="cuda", requires_grad=True)
    target = torch.randint(10, (8,), device="cuda")
    target[3] = bad
    with backends.use_backend(kernel):
        loss = F.cross_entropy(logits, target, reduction="none")
        (grad,) = torch.autograd.grad(loss.sum(), logits)
        assert loss.isnan().nonzero().flatten().tolist() == [3]
        assert grad.isnan().all(1).nonzero().flatten().tolist() == [3]
        assert not grad[:3].isnan().any()
        monkeypatch.setattr(backends, "CHECK", True)
        with pytest.raises(IndexError, match=f"got {bad} in row 3"):
            F.cross_entropy(logits, target)
    torch.cuda.synchronize()


@every_call
@every_kernel
def test_second_device(name, kernel):
    """Tensors on cuda:1 while cuda:0 is current."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    torch.manual_seed(0)
    inputs = leaves(CALLS[name], torch.device("cuda:1"))
    torch.manual_seed(0)
    others = leaves(CALLS[name], torch.device("cuda:0"))
    with torch.cuda.device(0), backends.use_backend(kernel):
        out = CALLS[name].function(*inputs)
        assert out.device.index == 1
        assert torch.equal(out.cpu(), CALLS[name].function(*others).cpu())


@pytest.mark.slow
@every_kernel
@pytest.mark.parametrize("op", OPS)
def test_more_than_2_to_the_31_elements(op, kernel):
    """The far end of a tensor past 2**31 elements gives what it gives by itself."""
    if torch.cuda.get_device_properties(0).total_memory < 60 * 2**30:
        pytest.skip("needs 60 GiB")
    if op == "cross_entropy":
        logits = torch.randn(17000, 128256, device="cuda", dtype=torch.bfloat16)
        target = torch.randint(128256, (17000,), device="cuda")
        with backends.use_backend(kernel):
            whole = F.cross_entropy(logits, target, reduction="none")
            last = F.cross_entropy(logits[-8:].clone(), target[-8:], reduction="none")
        assert torch.equal(whole[-8:], last)
        return
    x = torch.randn(34, 64, 1024, 1024, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(8, 64, 1, 1, device="cuda", dtype=torch.bfloat16)
    mean, var = torch.randn(64, device="cuda"), torch.rand(64, device="cuda") + 0.5
    theta = torch.tensor([[0.8, -0.45, 0.1], [0.5, 0.85, -0.15]], device="cuda")
    points = torch.rand(9, 2, device="cuda") * 2 - 1
    calls = {
        "max_pool2d": lambda t: F.max_pool2d(t, 2),
        "batch_norm": lambda t: F.batch_norm(t, mean, var),
        "conv2d": lambda t: F.conv2d(t, weight),
        "affine_grid_sample": lambda t: F.affine_grid_sample(
            t, theta.expand(len(t), 2, 3), (len(t), 64, 64, 64)
        ),
        "tps_grid_sample": lambda t: F.tps_grid_sample(t, points.expand(len(t), 9, 2), (len(t), 64, 64, 64)),
    }
    with torch.no_grad(), backends.use_backend(kernel):
        assert torch.equal(calls[op](x)[-1:], calls[op](x[-1:].clone()))


@pytest.mark.parametrize("make, shape", [(STN, (32, 1, 42, 42)), (resnet8, (32, 1, 28, 28))])
def test_converted_model_on_kernels(make, shape):
    """auto serves what it says it serves, and the gradients agree with the stock model's."""
    torch.manual_seed(0)
    stock = make().cuda()
    if make is STN:
        torch.nn.init.normal_(stock.localisation[-1].weight, std=0.03)
    fast = fastdl.convert(make().cuda())
    fast.load_state_dict(stock.state_dict())
    x, target = torch.randn(shape, device="cuda"), torch.randint(10, (32,), device="cuda")

    def grads(model, loss, images):
        return torch.autograd.grad(loss(model(images), target), list(model.parameters()))

    with backends.record() as choices:
        ours = grads(fast, F.cross_entropy, x)
    assert {c.backend for c in choices} & {"cuda", "triton"}
    torchs = grads(stock, torch.nn.functional.cross_entropy, x)
    oracle = grads(stock.double(), torch.nn.functional.cross_entropy, x.double())
    for a, b, c in zip(ours, torchs, oracle, strict=True):
        assert parity.judge(a, b, c).failure == ""
