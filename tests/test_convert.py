"""convert, revert and explain on whole models: what users do with a model still works on a converted one."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize, prune

import fastdl.nn
from fastdl.convert import convert, explain, revert
from fastdl.models.net import Net
from fastdl.models.resnet import BasicBlock, Bottleneck, resnet8
from fastdl.models.stn import STN

MODELS = {
    "net": (Net, (2, 1, 28, 28)),
    "stn": (STN, (2, 1, 42, 42)),
    "resnet": (resnet8, (2, 1, 14, 14)),
    "bottleneck": (lambda: Bottleneck(8, 4), (2, 8, 6, 6)),
}


@pytest.fixture(params=MODELS)
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """A converted model, its twin as written, and an input."""
    torch.manual_seed(0)
    build, shape = MODELS[request.param]
    written = build()
    return convert(copy.deepcopy(written)), written, torch.randn(shape)


def seeded(model: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(7)
    return model(*inputs)


def fused_calls(model: nn.Module) -> list[str]:
    return [row.call for row in explain(model).rows if row.op and " + " in row.call]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> None:
    model.train()
    torch.manual_seed(3)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("training", [True, False])
def test_same_output(pair, training):
    converted, written, x = pair
    converted.train(training)
    written.train(training)
    torch.testing.assert_close(seeded(converted, x), seeded(written, x))


def test_same_training(pair):
    converted, written, x = pair
    for model in (converted, written):
        train(model, torch.optim.SGD(model.parameters(), 0.05, momentum=0.9), x)
    for (name, ours), theirs in zip(
        converted.state_dict().items(), written.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, msg=lambda m, name=name: f"{name}: {m}")


def test_the_same_model_comes_back():
    model = resnet8()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    tensors = model.state_dict(keep_vars=True)
    shown = repr(model)
    assert convert(model) is model
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert tensors.pop(name) is tensor
    assert not tensors
    assert repr(model) == shown
    assert isinstance(model.blocks[0], BasicBlock)
    before = model.conv1.weight.detach().clone()
    train(model, optimizer, torch.randn(2, 1, 8, 8))
    assert not torch.equal(before, model.conv1.weight)


def test_revert_is_exact(pair):
    converted, written, x = pair
    seeded(converted, x)
    copies = [copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))]
    written.load_state_dict(converted.state_dict())
    for model in (converted, *copies):
        assert revert(model) is model
        for ours, theirs in zip(model.modules(), written.modules(), strict=True):
            assert type(ours) is type(theirs)
            assert list(vars(ours)) == list(vars(theirs))
        assert torch.equal(seeded(model, x), seeded(written, x))


def test_converting_again_changes_nothing(pair):
    converted, _, _ = pair
    classes = [type(module) for module in converted.modules()]
    plans = [vars(module).get("_fastdl_plans") for module in converted.modules()]
    assert convert(converted) is converted
    assert classes == [type(module) for module in converted.modules()]
    for before, module in zip(plans, converted.modules(), strict=True):
        assert vars(module).get("_fastdl_plans") is before


def test_everything_is_fused_in_a_residual_network():
    for model, additions in ((resnet8(), 3), (nn.Sequential(Bottleneck(8, 4), Bottleneck(16, 4)), 2)):
        calls = fused_calls(convert(model))
        norms = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
        shortcuts = [name for name in norms if "downsample" in name]
        assert len(calls) == len(norms) - len(shortcuts)
        assert sum("+ add + relu" in call for call in calls) == additions
        assert not [row for row in explain(model).rows if "relu" in row.call and not row.op]


def test_everything_is_fused_in_the_course_models():
    assert fused_calls(convert(Net())) == ["conv1 + max_pool2d + relu", "conv2 + max_pool2d + relu"]
    calls = fused_calls(convert(STN()))
    assert "affine_grid + grid_sample" in calls
    assert sum("relu" in call for call in calls) == 3
    first = "1 (Conv2d) + 2 (ReLU) + 3 (MaxPool2d)"
    assert {first, "4 (Conv2d) + 5 (ReLU)"} <= set(calls)


def test_dropout_follows_train_and_eval():
    model = convert(Net())
    x = torch.randn(4, 1, 28, 28)
    model.eval()
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


def test_fused_sites_run_fused(monkeypatch):
    calls = []
    forward = fastdl.nn.batch_norm_forward
    monkeypatch.setattr(fastdl.nn, "batch_norm_forward", lambda *a: calls.append(a[2:]) or forward(*a))
    convert(Bottleneck(16, 4))(torch.randn(2, 16, 4, 4))
    assert [(rest[0] is not None, rest[1]) for rest in calls] == [
        (False, "relu"),
        (False, "relu"),
        (True, "relu"),
    ]


def test_copies_keep_working(pair):
    converted, _, x = pair
    out = seeded(converted.eval(), x)
    file = io.BytesIO()
    torch.save(converted, file)
    file.seek(0)
    copies = [
        copy.deepcopy(converted),
        copy.copy(converted),
        pickle.loads(pickle.dumps(converted)),
        torch.load(file, weights_only=False),
    ]
    for model in copies:
        assert torch.equal(seeded(model, x), out)
        assert fused_calls(model) == fused_calls(converted)
        assert {type(m) for m in model.modules()} == {type(m) for m in converted.modules()}


def test_a_copy_is_on_its_own():
    model = convert(Net()).eval()
    other = copy.deepcopy(model)
    nn.init.zeros_(other.conv1.weight)
    x = torch.randn(1, 1, 28, 28)
    other(x)
    assert model.conv1.weight.abs().sum() > 0
    assert not torch.equal(model(x), other(x))


def test_state_dict_goes_both_ways(pair):
    converted, written, x = pair
    converted.load_state_dict(written.state_dict())
    written.load_state_dict(converted.state_dict())
    torch.testing.assert_close(converted.eval()(x), written.eval()(x))


def test_a_replica_of_data_parallel_shares_the_plan():
    model = convert(resnet8()).eval()
    x = torch.randn(2, 1, 8, 8)
    replicas = {module: module._replicate_for_data_parallel() for module in model.modules()}
    for module, replica in replicas.items():
        for name, child in module._modules.items():
            replica._modules[name] = child if child is None else replicas[child]
        for name, parameter in module._parameters.items():
            setattr(replica, name, parameter)  # as data_parallel does: plain tensors
    torch.testing.assert_close(replicas[model](x), model(x))


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_of_fused_modules_fire(register):
    model = Bottleneck(16, 4).eval()
    written, x = copy.deepcopy(model), torch.randn(2, 16, 4, 4)
    convert(model)
    for name in ("bn1", "bn3", "relu"):
        seen = []
        handles = [
            getattr(getattr(m, name), register)(
                lambda module, *args, seen=seen: seen.append(args[-1][0].clone())
            )
            for m in (model, written)
        ]
        torch.testing.assert_close(model(x), written(x))
        half = len(seen) // 2
        assert half == (3 if name == "relu" else 1)
        torch.testing.assert_close(seen[:half], seen[half:])
        for handle in handles:
            handle.remove()


def test_backward_hooks_and_global_hooks_fire():
    model, seen = convert(Net()), []
    handle = model.conv1.register_full_backward_hook(lambda *_: seen.append("backward"))
    model(torch.randn(1, 1, 28, 28).requires_grad_()).sum().backward()
    handle.remove()
    everywhere = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(m))
    model(torch.randn(1, 1, 28, 28))
    everywhere.remove()
    assert seen[0] == "backward"
    assert model.conv1 in seen
    assert model.conv2 in seen


def test_pruned_and_parametrised_layers_are_honoured():
    class Double(nn.Module):
        def forward(self, weight):
            return 2 * weight

    written, x = Net().eval(), torch.randn(2, 1, 28, 28)
    model = convert(copy.deepcopy(written))
    plain = model(x)
    for each in (model, written):
        prune.l1_unstructured(each.conv1, "weight", amount=0.5)
        parametrize.register_parametrization(each.conv2, "weight", Double())
    assert not torch.equal(model(x), plain)
    torch.testing.assert_close(model(x), written(x))
    revert(model)
    assert type(model.conv1) is nn.Conv2d
    assert parametrize.is_parametrized(model.conv2)
    torch.testing.assert_close(model(x), written(x))
    for each in (model, written):
        prune.remove(each.conv1, "weight")
        parametrize.remove_parametrizations(each.conv2, "weight")
    assert type(model.conv2) is fastdl.nn.Conv2d
    torch.testing.assert_close(model(x), written(x))
    assert type(revert(model).conv2) is nn.Conv2d


def test_a_class_put_on_top_keeps_the_plan():
    """As fully_shard does."""
    model, x = convert(Net()).eval(), torch.randn(2, 1, 28, 28)
    expected = model(x)
    model.__class__ = type("Sharded", (type(model),), {})
    copied = pickle.loads(pickle.dumps(vars(model)["_fastdl_plans"]))
    assert copied == {}
    vars(model)["_fastdl_plans"].clear()
    assert torch.equal(model(x), expected)
    assert vars(model)["_fastdl_plans"][False].run is not None
    convert(model)
    assert type(model).__name__ == "Sharded"


class Steep(nn.ReLU):
    """A subclass of a type that fuses, with another meaning."""

    def forward(self, x):
        return 2 * super().forward(x)


def test_a_replaced_child_is_honoured():
    model = convert(Net()).eval()
    x = torch.randn(2, 1, 28, 28)
    model.conv1 = nn.Conv2d(1, 10, 5)
    torch.testing.assert_close(model(x), revert(copy.deepcopy(model))(x))
    block = convert(BasicBlock(4, 4))
    block.relu = Steep()
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(block(x), revert(copy.deepcopy(block))(x))
    block.relu = nn.SiLU()
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(block(x), revert(copy.deepcopy(block))(x))
    block.downsample = nn.Conv2d(4, 4, 1)
    torch.testing.assert_close(block(x), revert(copy.deepcopy(block))(x))
    block.downsample = None
    torch.testing.assert_close(block(x), revert(copy.deepcopy(block))(x))


def test_shared_modules_are_converted_once():
    norm = nn.BatchNorm2d(3)
    model = nn.Sequential(norm, nn.ReLU(), norm, nn.ReLU())
    written, x = copy.deepcopy(model), torch.randn(2, 3, 4, 4)
    convert(model)
    assert model[0] is model[2] is norm
    torch.testing.assert_close(model(x), written(x))
    torch.testing.assert_close(norm.running_mean, written[0].running_mean)
    assert norm.num_batches_tracked == 2


def test_a_container_can_be_edited():
    model = convert(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()))
    x = torch.randn(1, 1, 5, 5)
    assert fused_calls(model) == ["0 (Conv2d) + 1 (ReLU)"]
    model.append(nn.Flatten(0))
    assert model(x).dim() == 1
    assert len(model[:2]) == 2
    assert torch.equal(model[:2](x).flatten(), model(x))


def test_a_leaf_alone():
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    expected = loss(x, y)
    assert convert(loss) is loss
    assert type(loss) is fastdl.nn.CrossEntropyLoss
    torch.testing.assert_close(loss(x, y), expected)
    assert type(revert(loss)) is nn.CrossEntropyLoss
    assert convert(nn.Conv2d(1, 1, 1)).weight.shape == (1, 1, 1, 1)


def test_modules_of_ours_survive_a_revert():
    model = nn.Sequential(fastdl.nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 1))
    revert(convert(model))
    assert [type(module) for module in model] == [fastdl.nn.Conv2d, nn.ReLU, nn.Conv2d]


def test_subclasses_stay():
    class Scaled(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    model = convert(nn.Sequential(Scaled(1, 2, 3), nn.ReLU()))
    assert type(model[0]) is Scaled
    assert any("subclass" in row.note for row in explain(model).rows if row.path == "0")


def test_signature_and_fx_still_work():
    import inspect

    model = convert(Net())
    assert list(inspect.signature(model.forward).parameters) == ["x"]
    with pytest.raises(TypeError, match="forward"):
        model()
    with pytest.raises(TypeError, match="forward"):
        model(torch.randn(1, 1, 28, 28), 3)
    x = torch.randn(1, 1, 28, 28)
    torch.testing.assert_close(model.eval()(x=x), model(x))


def test_wrong_arguments():
    for function in (convert, revert, explain):
        with pytest.raises(TypeError, match=r"fastdl\.\w+: expected model to be a torch.nn.Module, got int"):
            function(3)


def test_nothing_global_is_patched():
    before = nn.Module.__call__, nn.Module.__getattr__, F.relu, nn.Conv2d.forward, nn.Sequential.forward
    convert(Net())
    assert before == (
        nn.Module.__call__,
        nn.Module.__getattr__,
        F.relu,
        nn.Conv2d.forward,
        nn.Sequential.forward,
    )
    assert type(Net()) is Net


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("name", "compiler"), [("net", "aot_eager"), ("stn", "eager"), ("resnet", "eager")])
def test_compiles_whole(name, compiler, training):
    torch.manual_seed(0)
    build, shape = MODELS[name]
    model, x = convert(build()).train(training), torch.randn(shape)
    twin = copy.deepcopy(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=compiler, fullgraph=True)
    torch.testing.assert_close(seeded(compiled, x), seeded(twin, x))
    torch.testing.assert_close(dict(model.named_buffers()), dict(twin.named_buffers()))


def test_the_compiled_graph_is_the_fused_one():
    graphs = []
    model = convert(BasicBlock(4, 4))
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=lambda graph, _: graphs.append(graph) or graph, fullgraph=True)
    compiled(torch.randn(2, 4, 5, 5))
    assert not [node for node in graphs[0].graph.nodes if "iadd" in str(node.target)]


def test_a_residual_block_on_every_backend(on, device):
    torch.manual_seed(0)
    written = BasicBlock(2, 3).to(device)
    model = convert(copy.deepcopy(written))
    x = torch.randn(2, 2, 5, 5, device=device)
    assert {row.backend for row in explain(model).rows if row.op} == {on}
    for each in (model, written):
        each(x).square().mean().backward()
    for ours, theirs in zip(model.parameters(), written.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4)


def test_autocast_and_channels_last():
    written = resnet8().eval()
    model = convert(copy.deepcopy(written))
    x = torch.randn(2, 1, 8, 8).to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x), written(x))
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = model(x), written(x)
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs, rtol=0.1, atol=0.1)
    model.double()
    written.double()
    torch.testing.assert_close(model(x.double()), written(x.double()))
