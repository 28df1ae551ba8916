"""The trainer: the same weights after an interruption, twins, checkpoints, what it refuses."""

import copy
import csv
import json
import os
import socket
import sys
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from rich.console import Console
from torch import nn
from typer.testing import CliRunner

from fastdl import data, models, train
from fastdl.cli import app
from fastdl.train import augment, checkpoint, distributed, loop, optimizers, tasks

pytest.importorskip("matplotlib")


def tiny() -> data.Data:
    """Two hundred images whose class is the brightest of ten rows: quick to learn, nothing to read."""
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(240) % 10
    images = 0.3 * torch.randn(240, 1, 28, 28, generator=g)
    images[torch.arange(240), 0, 2 * labels + 4] += 1
    split = [data.Split((images[s],), (labels[s],)) for s in (slice(0, 200), slice(200, 240))]
    return data.Data(*split, names=tuple("0123456789"))


@pytest.fixture(autouse=True)
def _tiny_data(monkeypatch):
    monkeypatch.setitem(data._SETS, "mnist5k", tiny)
    monkeypatch.setattr(train, "_write_tensorboard", lambda *_: False)


def run(output: Path, name: str = "net", how: train.How = train.How(), **changes):  # noqa: B008
    recipe = train.recipe(name).changed(**{"batch": 40, "epochs": 3, "validation": 0.2, **changes})
    return train.train(name, recipe, how, output)


def weights(output: Path, kind: str = "converted") -> dict[str, torch.Tensor]:
    return checkpoint.load(output / "last.pt", None)["runs"][kind]["weights"]


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_what_a_run_leaves(tmp_path):
    report = run(tmp_path / "a", "mlp", lr=0.05)
    assert report["results"][0]["test_score"] > 0.5
    assert json.loads((tmp_path / "a" / "report.json").read_text())["epochs"] == 3
    rows = list(csv.DictReader((tmp_path / "a" / "log.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[2]["train_loss"]) < float(rows[0]["train_loss"])
    for picture in ("curves.png", "confusion.png"):
        assert (tmp_path / "a" / picture).read_bytes().startswith(b"\x89PNG")


def test_best_weights_load_into_a_fresh_network(tmp_path):
    report = run(tmp_path / "a", "net", options={"dropout": 0.1})
    best = checkpoint.load(tmp_path / "a" / "best.pt", "net")
    model = models.create("net", **best["options"]).eval()
    model.load_state_dict(best["weights"])
    test = tiny().test
    right = (model(*test.inputs).argmax(1) == test.targets[0]).float().mean()
    assert float(right) == pytest.approx(report["results"][0]["test_score"])


def test_two_runs_agree_to_the_bit(tmp_path):
    for name in ("a", "b"):
        run(tmp_path / name, options={"dropout": 0.5})
    assert_same(weights(tmp_path / "a"), weights(tmp_path / "b"))


@pytest.mark.parametrize("changes", [{"optimizer": "adam", "lr": 1e-3}, {"schedule": "cosine"}], ids=str)
def test_an_interrupted_run_continues_to_the_same_weights(tmp_path, monkeypatch, changes):
    """Interrupted in the middle of the second epoch; dropout, batch norm, moments go on as if nothing was."""
    changes |= {"options": {"dropout": 0.5}, "augment": ("jitter", "crop")}
    run(tmp_path / "whole", **changes)
    step, calls = loop.Run.step, []

    def interrupted(self, *batch):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return step(self, *batch)

    monkeypatch.setattr(loop.Run, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", **changes)
    monkeypatch.setattr(loop.Run, "step", step)
    torch.manual_seed(99)
    report = train.train("net", output=tmp_path / "parts", resume=True)
    assert report["epochs"] == 3
    assert_same(weights(tmp_path / "parts"), weights(tmp_path / "whole"))


def command_line(*args: object, command: str = "train"):
    """What `fastdl train` leaves, or another command, on the CPU."""
    runner = CliRunner(env={"COLUMNS": "300", "TERM": "dumb"})
    return runner.invoke(app, [command, *map(str, args), "--device", "cpu"])


def test_a_resumed_run_has_the_epochs_of_its_checkpoint(tmp_path, monkeypatch):
    """`--resume` without `--epochs` went on to the recipe's 30."""
    output, save = tmp_path / "a", loop.Trainer.save

    def interrupted(trainer):
        save(trainer)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop.Trainer, "save", interrupted)
    assert command_line("linear", "--batch", 40, "--epochs", 2, "--output", output).exit_code == 130
    monkeypatch.setattr(loop.Trainer, "save", save)
    for args, epochs in ((), 2), (("--epochs", 3), 3):
        done = command_line("linear", "--resume", *args, "--output", output)
        assert done.exit_code == 0, done.output
        assert json.loads((output / "report.json").read_text())["epochs"] == epochs
    for args in ("--lr", 0.5), ("--seed", 0), ("--option", "classes=5"), ("--backbone", output / "best.pt"):
        done = command_line("linear", "--resume", *args, "--output", output)
        assert done.exit_code == 2
        assert f"expected no {args[0]} beside it: the checkpoint's recipe goes on" in done.stderr
    with pytest.raises(ValueError, match="expected neither a recipe nor a backbone with resume"):
        train.train("linear", train.recipe("linear"), output=output, resume=True)


def test_twins_see_the_same(tmp_path):
    how = train.How(runs=("stock", "converted"))
    report = run(tmp_path / "a", "vgg_mini", how, options={"dropout": 0.3}, epochs=1)
    stock, fast = report["history"]
    assert fast["train_loss"] == pytest.approx(stock["train_loss"], rel=1e-3)
    assert [row["run"] for row in report["results"]] == ["stock", "converted"]


def test_early_stopping(tmp_path):
    report = run(tmp_path / "a", "linear", lr=0.0, epochs=9, patience=2)
    assert report["epochs"] == 3  # the first is the best, two more are not better


def test_a_loss_that_is_no_number_ends_the_run(tmp_path):
    assert run(tmp_path / "a", "mlp", lr=1e30, epochs=5)["epochs"] < 5


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_optimizers(tmp_path, name):
    report = run(tmp_path / "a", "linear", optimizer=name, lr=0.01, weight_decay=1e-4, clip=1.0)
    assert report["history"][-1]["train_loss"] < report["history"][0]["train_loss"]


@pytest.mark.parametrize(
    ("name", "rates"),
    [("constant", (1, 1, 1)), ("cosine", (1, 0.5, 0)), ("step", (1, 0.1, 0.001)), ("warmup", (0, 1, 1)),
     ("one_cycle", (0.04, 0.811745, 0))],
)  # fmt: skip
def test_schedules(name, rates):
    schedule = optimizers.SCHEDULES[name]
    assert [schedule(t) for t in (0, 0.5, 1)] == pytest.approx(rates, abs=1e-6)


def test_parts_of_a_network_may_learn_more_slowly():
    optimizer = optimizers.make_optimizer(models.create("stn"), "adam", 1e-3, 0.0, ("localisation", 0.5))
    optimizers.set_rate(optimizer, "cosine", 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([5e-4, 2.5e-4])
    assert len(optimizer.param_groups[1]["params"]) == 8


@pytest.mark.parametrize("name", augment.TRANSFORMS)
def test_augmentation(name):
    images = torch.rand(8, 3, 28, 28)
    outs = [augment.TRANSFORMS[name](images, torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*outs) and outs[0].shape == images.shape
    assert not torch.equal(outs[0], images)
    assert float(outs[0].mean()) == pytest.approx(float(images.mean()), rel=0.3)


def test_a_backbone_gives_all_but_the_head(tmp_path):
    run(tmp_path / "a", epochs=1)
    best = checkpoint.load(tmp_path / "a" / "best.pt", "net")["weights"]
    model = models.create("net")
    kept = train.load_backbone(model, tmp_path / "a" / "best.pt")
    assert "conv1.weight" in kept and "fc2.weight" not in kept
    assert torch.equal(model.conv2.weight, best["conv2.weight"])
    assert not torch.equal(model.fc2.weight, best["fc2.weight"])
    with pytest.raises(ValueError, match="expected a checkpoint with layers like the network's"):
        train.load_backbone(models.create("vit"), tmp_path / "a" / "best.pt")


@pytest.mark.slow
@pytest.mark.parametrize("name", train.RECIPES)
def test_every_recipe_runs(tmp_path, monkeypatch, name):
    """Two batches of its own data, stock and converted: one loss, a score, a checkpoint that loads."""
    monkeypatch.undo()
    full = data.load(train.recipe(name).data)
    batch = min(train.recipe(name).batch, 20)
    few = [
        data.Split(*data.Samples(s)[list(range(n))]) for s, n in ((full.train, 2 * batch), (full.test, 40))
    ]
    monkeypatch.setattr(data, "load", lambda *_: full._replace(train=few[0], test=few[1]))
    how = train.How(runs=("stock", "converted"))
    report = run(tmp_path / "a", name, how, batch=batch, epochs=1, validation=0.0)
    stock, fast = report["history"]
    assert fast["train_loss"] == pytest.approx(stock["train_loss"], rel=1e-3)
    assert all(isinstance(row["test_score"], float) for row in report["results"])
    assert checkpoint.load(tmp_path / "a" / "best.pt", name)["weights"].keys()


def test_a_likelihood_is_bounded_by_samples():
    """The mean of the latent variables was decoded, which gives less than any bound."""
    model, loss = models.create("vae"), models.create_loss("vae")
    nn.init.constant_(model.log_variance.bias, 3.0)
    images = torch.rand(300, 1, 28, 28)
    state = torch.get_rng_state()
    some = data.Split((images,), (images,))
    values = [tasks.evaluate(model, loss, "likelihood", some, torch.device("cpu"))[1] for _ in range(2)]
    assert values[0] == values[1]
    assert torch.equal(torch.get_rng_state(), state)
    assert values[0] > loss(*model.eval()(images), images).item()


def test_the_nearer_pairs_of_one_class_the_greater_the_auc():
    outputs = torch.zeros(4, 2), torch.tensor([[0.1, 0], [0.2, 0], [0.3, 0], [0.4, 0]])
    auc = tasks.TASKS["pairs"].further["AUC"]
    assert auc(outputs, (torch.tensor([1.0, 1, 0, 0]),)) == 1
    assert auc(outputs, (torch.tensor([1.0, 0, 1, 0]),)) == 0.75


# -- checkpoints that are not right -


def test_checkpoint_of_another_network(tmp_path):
    run(tmp_path / "a", epochs=1)
    with pytest.raises(ValueError, match=r"expected a checkpoint of lenet5, got .*last\.pt of net"):
        train.train("lenet5", output=tmp_path / "a", resume=True)


def test_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a checkpoint at .*last\.pt, found none"):
        train.train("net", output=tmp_path / "a", resume=True)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half a file", b"not a checkpoint"])
def test_damaged_checkpoint(tmp_path, content):
    (tmp_path / "last.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read the checkpoint .*: it is cut short or something else"):
        train.train("net", output=tmp_path, resume=True)


def test_something_else_than_a_checkpoint(tmp_path):
    torch.save({"weights": torch.zeros(2)}, tmp_path / "last.pt")
    with pytest.raises(ValueError, match="to be a checkpoint of `fastdl train`; it is not"):
        checkpoint.load(tmp_path / "last.pt", None)


def test_a_pickle_that_runs_code_does_not(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "evil"),)

    torch.save(Evil(), tmp_path / "last.pt")
    with pytest.raises(ValueError, match="cannot read the checkpoint"):
        checkpoint.load(tmp_path / "last.pt", None)
    assert not (tmp_path / "evil").exists()


def test_an_interrupted_write_loses_nothing(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    checkpoint.save(path, "net", {"epoch": 1})
    save = torch.save

    def cut_short(state, to):
        save(state, to)
        Path(to).write_bytes(Path(to).read_bytes()[:100])
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", cut_short)
    with pytest.raises(OSError, match="no space left"):
        checkpoint.save(path, "net", {"epoch": 2})
    assert checkpoint.load(path, "net")["epoch"] == 1
    assert os.listdir(tmp_path) == ["last.pt"]


def test_a_finished_run_is_not_overwritten(tmp_path):
    run(tmp_path / "a", epochs=1)
    with pytest.raises(ValueError, match="expected an output folder without a run"):
        run(tmp_path / "a", epochs=1)


def test_resuming_other_twins(tmp_path):
    run(tmp_path / "a", epochs=1)
    how = train.How(runs=("stock", "converted"))
    with pytest.raises(ValueError, match="expected a checkpoint of stock and converted networks, got one of"):
        train.train("net", how=how, output=tmp_path / "a", resume=True)


# -- what is refused -


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "lion"}, "expected optimizer among sgd, .*, got 'lion'"),
        ({"schedule": "linear"}, "expected schedule among constant, .*, got 'linear'"),
        ({"augment": ("cutmix",)}, "expected augment among flip, .*, got 'cutmix'"),
        ({"data": "cifar"}, "expected data among mnist5k, .*, got 'cifar'"),
        ({"validation": 1.0}, r"expected validation between 0 and 0\.9, got 1\.0"),
        ({"validation": 0.001}, r"at least one of 200 training samples for validation, got a part of 0\.001"),
    ],
)  # fmt: skip
def test_recipes_that_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "a", **changes)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("name", ["shapes64", "ink16", "digit_pairs", "pixels", "warps48"])
def test_data_that_do_not_fit_the_network(tmp_path, name):
    with pytest.raises(ValueError, match=f"expected data that net with its options can take, got {name} "):
        run(tmp_path / "a", data=name)
    assert not (tmp_path / "a").exists()


def test_labels_that_do_not_fit_the_network(tmp_path):
    with pytest.raises(ValueError, match=r"resnet8 with its options can take, got mnist5k .*out of bounds"):
        run(tmp_path / "a", "resnet8", options={"classes": 5})


def test_matplotlib_is_asked_for_first(tmp_path, monkeypatch):
    """It was missed when everything was trained."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"expected matplotlib, .*; run `pip install 'fastdl\[demo\]'"
    ):
        run(tmp_path / "a")
    args = "experiment", "activations", "--epochs", "0.01", "--device", "cpu", "--output", str(tmp_path / "a")
    done = CliRunner(env={"COLUMNS": "300", "TERM": "dumb"}).invoke(app, args)
    assert done.exit_code == 2 and "expected matplotlib, which draws the figures" in done.stderr
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("name", ["vgg16", "yolox"])
def test_networks_without_a_recipe(name):
    with pytest.raises(ValueError, match=r"expected (a network with a data set|one of linear, mlp)"):
        train.recipe(name)


def test_cuda_graphs_need_cuda(tmp_path):
    with pytest.raises(ValueError, match="expected a CUDA device for CUDA graphs, got cpu"):
        run(tmp_path / "a", how=train.How(cuda_graphs=True))
    done = command_line("net", "--cuda-graphs", "--output", tmp_path / "a")
    assert done.exit_code == 2
    assert "expected a CUDA device for CUDA graphs, got cpu" in done.stderr
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("runs", [("converted",), ("stock", "converted")], ids=str)
def test_a_run_builds_its_network_once(tmp_path, monkeypatch, runs):
    """It was built to check the options, to try the data and to train."""
    create, built = models.create, []
    monkeypatch.setattr(
        models, "create", lambda *args, **options: built.append(args) or create(*args, **options)
    )
    run(tmp_path / "a", how=train.How(runs=runs), epochs=1)
    assert built == [("net",)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["net", "vgg_mini", "resnet8"])
def test_compiled_it_trains_the_same(tmp_path, name):
    """Four steps through Inductor, stock and converted: the losses, and where the weights went.

    Rounding turns a ReLU or a maximum here and there: a stock network's layer strays by 2 % of its way.
    """
    torch._dynamo.reset()
    start = loop.fresh(name, train.recipe(name)).state_dict()
    found = {}
    for compile in (False, True):
        how = train.How(runs=("stock", "converted"), compile=compile)
        report = run(tmp_path / str(compile), name, how, epochs=1, optimizer="sgd", lr=0.01)
        found[compile] = report["history"]
    for plain, compiled in zip(*found.values(), strict=True):
        assert compiled["train_loss"] == pytest.approx(plain["train_loss"], rel=1e-3)
        assert compiled["validation_loss"] == pytest.approx(plain["validation_loss"], rel=1e-3)
    for kind in ("stock", "converted"):
        plain, compiled = (weights(tmp_path / str(compile), kind) for compile in (False, True))
        for key in plain:
            way = (plain[key] - start[key]).float().norm()
            assert way > 0 and (compiled[key] - plain[key]).float().norm() < 0.05 * way, (kind, key)


def test_command_line(tmp_path):
    """What is wrong comes as one message, not as a traceback."""
    for args, message in (
        (("yolox",), "expected one of linear"),
        (("net", "--option", "width=3"), "expected options of 'net' among dropout"),
        (("net", "--option", "width"), "expected NAME=VALUE"),
        (("net", "--data", "mnist", "--root", tmp_path), "expected train-images-idx3-ubyte"),
        (("net", "--root", tmp_path), "expected no folder of IDX files for mnist5k"),
    ):
        done = command_line(*args, "--output", tmp_path / "out")
        assert done.exit_code == 2
        assert message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_half_precision(tmp_path):
    report = run(tmp_path / "a", "vgg_mini", train.How(amp=True), optimizer="adam", lr=1e-3)
    assert report["history"][-1]["train_loss"] < report["history"][0]["train_loss"]
    assert all(w.dtype in (torch.float32, torch.int64) for w in weights(tmp_path / "a").values())


# -- several processes -


def test_processes_draw_from_seeds_of_their_own(monkeypatch):
    """The second process's seed of a step was the first's of the next one."""
    seeds: dict[int, list[int]] = {0: [], 1: []}
    recipe = train.recipe("linear").changed(batch=20, validation=0.0)
    for rank, drawn in seeds.items():
        trainer = loop.Trainer("linear", recipe, train.How(), None, tiny())
        trainer.rank, trainer.size = rank, 2
        monkeypatch.setattr(torch, "manual_seed", drawn.append)
        trainer.train(Console(quiet=True))
        monkeypatch.undo()
        assert len(set(drawn)) == len(drawn) == recipe.epochs * 10
    assert not set(seeds[0]) & set(seeds[1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_synchronised_batch_norm_of_half_precision(monkeypatch, dtype):
    """It summed and counted in bfloat16, then failed. Both processes have the same share here."""
    monkeypatch.setattr(distributed, "rank_and_size", lambda: (0, 2))
    monkeypatch.setattr(distributed.differentiable, "all_reduce", lambda tensor: 2 * tensor)
    x = (torch.randn(9, 3, 8, 8, generator=torch.Generator().manual_seed(0)) + 5).to(dtype)
    norm = nn.BatchNorm2d(3, dtype=torch.promote_types(dtype, torch.float32))
    ours = distributed.BatchNorm.like(copy.deepcopy(norm))
    out = ours(x)
    expected = norm(torch.cat([x, x]).to(norm.weight.dtype))[:9]
    assert out.dtype == dtype
    torch.testing.assert_close(out, expected.to(dtype))
    torch.testing.assert_close(ours.running_mean, norm.running_mean)
    torch.testing.assert_close(ours.running_var, norm.running_var)


def worker(rank: int, port: int, output: Path) -> None:
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    data._SETS["mnist5k"] = tiny
    run(output, "vgg_mini", epochs=2, optimizer="momentum")
    distributed.end()


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    """With batch norm over both, two halves of a batch are the batch."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, (port, tmp_path / "two"), nprocs=2)
    run(tmp_path / "one", "vgg_mini", epochs=2, optimizer="momentum")
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one.keys() == two.keys()
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-3, atol=1e-4)


def test_synchronised_batch_norm_alone_is_batch_norm():
    norm = nn.BatchNorm2d(3)
    x = torch.randn(4, 3, 5, 5)
    expected = norm(x)
    model = distributed.synchronised(nn.Sequential(norm), torch.device("cpu"))
    assert type(model[0]) is distributed.BatchNorm
    assert torch.equal(model(x), expected)
    assert model[0].weight is norm.weight and int(model[0].num_batches_tracked) == 2
