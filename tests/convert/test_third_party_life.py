"""What becomes of networks of other people once they are converted: copies, averages, masks, processes."""

import copy
import io
import os
import pickle
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from extras import made
from torch import nn
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from whole import assert_judged_once, assert_same, step

from fastdl import backends
from fastdl.convert import convert, revert

pytestmark = pytest.mark.slow

every = pytest.mark.parametrize(
    "name",
    ["norm and activation in one", "shuffle", "hourglass", "encoder-decoder", "frozen norms, shared head"],
)


@pytest.fixture
def pair(name):
    model, x = made(name)
    return convert(copy.deepcopy(model)), model, x


@every
def test_copies(pair, name):
    """deepcopy, state_dict both ways, and a pickle where the model itself has one."""
    ours, model, x = pair
    expected = step(copy.deepcopy(model), x)
    assert_same(step(copy.deepcopy(ours), x), expected)

    file = io.BytesIO()
    torch.save(ours.state_dict(), file)
    file.seek(0)
    state = torch.load(file)
    assert list(state) == list(model.state_dict())
    for other in (copy.deepcopy(model), copy.deepcopy(ours)):
        for tensor in other.state_dict().values():
            tensor.zero_()
        other.load_state_dict(state)
        assert_same(step(other, x), expected)

    try:
        pickle.dumps(model)
    except (AttributeError, pickle.PicklingError):
        return
    assert_same(step(pickle.loads(pickle.dumps(ours)), x), expected)


@every
def test_averages_while_training(pair, name):
    """Two steps of SGD with an exponential moving average beside: all three models as if never converted."""
    seen = []
    for model in pair[:2]:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        for _ in range(2):
            step(model.train(), pair[2])
            optimizer.step()
            average.update_parameters(model)
        seen.append(
            step(model, pair[2]) | {f"average {k}": v for k, v in step(average.eval(), pair[2]).items()}
        )
    assert_same(*seen)


@every
@pytest.mark.parametrize("before", [True, False])
def test_masks(name, before):
    """Pruned before or after the conversion; the masks made permanent; reverted."""
    models = []
    for converted in (True, False):
        model, x = made(name)
        if converted and not before:
            convert(model)
        torch.manual_seed(3)
        convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
        for module in convolutions[::2]:
            prune.random_unstructured(module, "weight", amount=0.5)
        models.append(convert(model) if converted else model)
    ours, theirs = models
    assert_same(step(ours, x), step(theirs, x))
    for model in models:
        for module in model.modules():
            if isinstance(module, nn.Conv2d) and prune.is_pruned(module):
                prune.remove(module, "weight")
    assert_same(step(ours, x), step(theirs, x))
    assert_same(step(revert(ours), x), step(theirs, x))


@every
def test_hooks(pair, name):
    """Of every module, in their order; and afterwards the fused calls are back."""
    calls = []
    for model in pair[:2]:
        seen = []
        handles = [
            module.register_forward_hook(lambda *_, name=name, seen=seen: seen.append(name))
            for name, module in model.named_modules()
        ]
        out = step(model, pair[2])
        calls.append((seen, out))
        for handle in handles:
            handle.remove()
    assert calls[0][0] == calls[1][0]
    assert_same(calls[0][1], calls[1][1])
    assert_same(step(pair[0], pair[2]), step(pair[1], pair[2]))


@every
def test_bad_input(pair, name):
    """An error of torch's type, and neither parameters nor running statistics have changed."""
    ours, theirs, x = pair
    before = copy.deepcopy(ours.state_dict())
    for wrong in (x[:, :2], x[:, :, :, 0, None, None], x.to(torch.int32)):
        kinds = []
        for model in (ours, theirs):
            with backends.use_backend("auto"), pytest.raises(Exception) as error:
                model(wrong)
            kinds.append(error.type)
            assert str(error.value)
        assert kinds[0] is kinds[1]
    assert all(torch.equal(value, before[key]) for key, value in ours.state_dict().items())


@every
def test_backend_fastdl(pair, name):
    """The model as written under torch.compile's backend "fastdl", the converted one under aot_eager."""
    ours, model, x = pair
    torch._dynamo.reset()
    fused, traced = torch.compile(model, backend="fastdl"), torch.compile(ours, backend="aot_eager")
    with backends.use_backend("auto"):
        assert_judged_once(model, model, x, fused)
        assert_judged_once(ours, model, x, traced)


def test_inductor():
    """Converted, under torch.compile's default backend."""
    model, x = made("residual")  # of "encoder-decoder" Inductor 2.13 fails to compile the stock network too
    ours = convert(copy.deepcopy(model))
    torch._dynamo.reset()
    compiled = torch.compile(ours)
    with backends.use_backend("auto"):
        assert_judged_once(ours, model, x, compiled)


def worker(rank: int, port: int, name: str) -> None:
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    model, x = made(name)
    batches = [x, x.flip(0) * 0.5]
    alone = [step(copy.deepcopy(model), batch) for batch in batches]
    ours = convert(model)
    step(ours, batches[rank], nn.parallel.DistributedDataParallel(ours))
    for key, parameter in ours.named_parameters():
        a, b = (each[f"gradient of {key}"] for each in alone)
        torch.testing.assert_close(parameter.grad, (a + b) / 2, rtol=1e-3, atol=1e-5)
    dist.destroy_process_group()


def test_distributed():
    """Gradients are the average of those of the model as written on each batch."""
    name = "norm and activation in one"
    made(name)  # skips, if need be, here
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, (port, name), nprocs=2)
