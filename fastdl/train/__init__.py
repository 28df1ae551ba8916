"""One trainer for the networks of the course: behind ``fastdl train``."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from .. import data, models
from ..info import environment
from . import checkpoint, distributed, figures
from .augment import TRANSFORMS
from .loop import How, Trainer, fresh
from .optimizers import OPTIMIZERS, SCHEDULES
from .recipes import RECIPES, Recipe, recipe
from .tasks import TASKS, evaluate

__all__ = ["RECIPES", "How", "Recipe", "check", "load_backbone", "recipe", "train"]


def check(r: Recipe, how: How) -> None:
    """Refuse what cannot be run.

    Raises:
        ValueError: if a name or number of the recipe is none of its choices, or the device cannot do it.
    """
    for what, given, known in (
        ("optimizer", [r.optimizer], OPTIMIZERS),
        ("schedule", [r.schedule], SCHEDULES),
        ("augment", r.augment, TRANSFORMS),
        ("task", [r.task], TASKS),
        ("data", [r.data], data.names()),
    ):
        for name in given:
            if name not in known:
                raise ValueError(f"fastdl.train: expected {what} among {', '.join(known)}, got {name!r}")
    for what, value, low, high in (
        ("validation", r.validation, 0, 0.9),
        ("epochs", r.epochs, 1, float("inf")),
        ("batch", r.batch, 2, float("inf")),
        ("lr", r.lr, 0, float("inf")),
    ):
        if not low <= value <= high:
            raise ValueError(f"fastdl.train: expected {what} between {low} and {high}, got {value}")
    if how.cuda_graphs and how.device.type != "cuda":
        raise ValueError(f"fastdl.train: expected a CUDA device for CUDA graphs, got {how.device}")


def train(
    name: str,
    r: Recipe | None = None,
    how: How = How(),  # noqa: B008 a tuple
    output: Path = Path("train_output"),
    console: Console | None = None,
    root: Path | None = None,
    resume: bool = False,
    backbone: Path | None = None,
    epochs: int | None = None,
) -> dict[str, Any]:
    """Train ``name`` by the recipe ``r``; writes checkpoints, a log, a report and pictures to ``output``.

    Args:
        r: by default the network's own.
        root: folder of IDX files, for the data sets that need one.
        resume: go on from ``output``/last.pt, by the recipe that stands there.
        backbone: a checkpoint of the same kind of network, whose weights are taken but for the last layer's.
        epochs: in place of the recipe's, a resumed run's too.

    Returns:
        the report.

    Raises:
        ValueError, TypeError, FileNotFoundError: if something is not as it has to be.
    """
    console = console or Console(quiet=True)
    state = None
    if resume:
        if r is not None or backbone is not None:
            raise ValueError(
                "fastdl.train: expected neither a recipe nor a backbone with resume: the checkpoint has both"
            )
        state = checkpoint.load(output / "last.pt", name)
        r = Recipe.from_plain(state["recipe"])
    r = (r or recipe(name)).changed(epochs=epochs)
    check(r, how)
    figures.pyplot()  # that it is missing is told now, not when all is trained
    model = fresh(name, r)  # an option that is none is told before anything is read
    if not resume and (output / "last.pt").exists():
        raise ValueError(
            f"fastdl.train: expected an output folder without a run, got {output}, which holds one; "
            "resume it or name another"
        )
    if distributed.started():
        how = how._replace(device=distributed.begin(how.device))
    dataset = data.load(r.data, root)
    _try(name, r, dataset, model)
    trainer = Trainer(name, r, how, output, dataset, model)
    output.mkdir(parents=True, exist_ok=True)
    if state is not None:
        trainer.resume(state)
    elif backbone is not None:
        for run in trainer.runs:
            kept = load_backbone(run.model, backbone)
            console.print(f"{len(kept)} tensors of {backbone}; fresh: {', '.join(_fresh(run.model, kept))}")
    try:
        trainer.train(console)
    except KeyboardInterrupt:
        console.print(
            f"interrupted in epoch {trainer.epoch + 1}; --resume continues behind epoch {trainer.epoch}"
        )
        raise
    report = _report(trainer, dataset)
    if trainer.rank == 0:
        _write(trainer, dataset, report, console)
    return report


def _try(name: str, r: Recipe, dataset: data.Data, model: nn.Module) -> None:
    """Twenty test samples through the network, its loss and its score; nothing of it changes.

    Raises:
        ValueError: if the network cannot take them.
    """
    number = len(dataset.test.targets[0])
    some = data.Split(*data.Samples(dataset.test)[list(range(0, number, max(1, number // 20)))])
    try:
        evaluate(model, models.create_loss(name), r.task, some, torch.device("cpu"))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"fastdl.train: expected data that {name} with its options can take, got {r.data} ({reason})"
        ) from error


def load_backbone(model: nn.Module, path: Path) -> set[str]:
    """Take the weights of the checkpoint at ``path`` into ``model``, the last layer's excepted.

    Returns the names of the tensors taken.

    Raises:
        ValueError: if nothing fits.
    """
    found = checkpoint.load(path, None)
    weights = found.get("weights") or next(iter(found["runs"].values()))["weights"]
    own = model.state_dict()
    head = list(own)[-1].rpartition(".")[0]
    fitting = {
        key: value
        for key, value in weights.items()
        if key in own and own[key].shape == value.shape and key.rpartition(".")[0] != head
    }
    if not fitting:
        raise ValueError(f"fastdl.train: expected a checkpoint with layers like the network's, got {path}")
    model.load_state_dict({**own, **fitting})
    return set(fitting)


def _fresh(model: nn.Module, kept: set[str]) -> list[str]:
    return [key for key in model.state_dict() if key not in kept]


def _report(trainer: Trainer, dataset: data.Data) -> dict[str, Any]:
    """What came out, on the test samples: of each run the best weights by the validation score."""
    r, results = trainer.recipe, []
    for run in trainer.runs:
        last = {k: v.detach().clone() for k, v in run.model.state_dict().items()}
        run.model.load_state_dict(run.best["weights"])
        loss, score, outputs = evaluate(run.model, run.loss, r.task, dataset.test, trainer.how.device)
        run.model.load_state_dict(last)
        run.outputs = outputs
        rows = [row for row in trainer.history if row["run"] == run.kind]
        steps = sorted(row["milliseconds_per_step"] for row in rows)
        further = TASKS[r.task].further.items()
        results.append(
            {
                "run": run.kind,
                "epoch": run.best["epoch"],
                "train_loss": rows[-1]["train_loss"],
                "test_loss": loss,
                "test_score": score,
                "further": {label: f(outputs, dataset.test.targets) for label, f in further},
                "milliseconds_per_step": steps[len(steps) // 2],
            }
        )
    parameters = sum(p.numel() for p in trainer.runs[0].model.parameters())
    return {
        "model": trainer.name,
        "parameters": parameters,
        "score": TASKS[r.task].label,
        "epochs": trainer.epoch,
        "recipe": r.plain(),
        "processes": trainer.size,
        "results": results,
        "history": trainer.history,
        "environment": environment(),
    }


def _write(trainer: Trainer, dataset: data.Data, report: dict[str, Any], console: Console) -> None:
    output, label = trainer.output, report["score"]
    text = json.dumps(report, indent=1) + "\n"
    checkpoint.write_atomically(output / "report.json", lambda p: p.write_text(text))
    checkpoint.write_atomically(output / "log.csv", lambda p: _write_csv(p, trainer.history))
    figures.curves(trainer.history, label, output / "curves.png")
    written = ["last.pt", "best.pt", "report.json", "log.csv", "curves.png"]
    if trainer.recipe.task == "classify" and dataset.names:
        predicted = trainer.runs[-1].outputs[0].argmax(1)
        figures.confusion(predicted, dataset.test.targets[0], dataset.names, output / "confusion.png")
        written.append("confusion.png")
    if _write_tensorboard(output, trainer.history):
        written.append("tensorboard")
    table = Table("run", "best epoch", "test loss", label, "ms per step", title=trainer.name)
    for row in report["results"]:
        numbers = f"{row['test_loss']:.4f}", f"{row['test_score']:.4f}", f"{row['milliseconds_per_step']:.2f}"
        table.add_row(row["run"], str(row["epoch"]), *numbers)
    console.print(table)
    console.print(f"wrote {', '.join(written)} to {output}")


def _write_csv(path: Path, history: list[dict[str, Any]]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(history[0]))
        writer.writeheader()
        writer.writerows(history)


def _write_tensorboard(output: Path, history: list[dict[str, Any]]) -> bool:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return False
    for kind in {row["run"] for row in history}:
        with SummaryWriter(str(output / "tensorboard" / kind)) as writer:
            for row in (row for row in history if row["run"] == kind):
                for key in ("train_loss", "validation_loss", "score", "lr"):
                    if row[key] is not None:
                        writer.add_scalar(key, row[key], row["epoch"])
    return True
