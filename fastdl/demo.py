"""The main job on real data: convert a spatial transformer network, check it, train it beside the stock one.

The trainer's twins start from the same weights and see the same distorted digits in the same order, batch by
batch in turn, so that losses can be compared and step times are interleaved.
"""

from __future__ import annotations

import copy
import json
import statistics
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from . import backends, data, explain
from .info import environment
from .parity import judge
from .train import How, recipe
from .train.figures import pyplot
from .train.loop import Run, Trainer
from .train.tasks import evaluate


def run(epochs: int, device: torch.device, output: Path, seed: int, console: Console) -> dict[str, Any]:
    """The whole demo; writes demo.json, digits.png and curves.png to ``output`` and returns the JSON."""
    output.mkdir(parents=True, exist_ok=True)
    how = How(device, ("stock", "converted"))
    r = recipe("stn").changed(epochs=epochs, seed=seed, validation=0.0)
    trainer = Trainer("stn", r, how, None, data.load(r.data))
    stock, fast = (run.model for run in trainer.runs)
    images, labels = (part[0].to(device) for part in trainer.data.test)
    explanation = explain(fast, images[: r.batch])
    print(explanation)

    some = images[: r.batch], labels[: r.batch]
    checks = {"as used": compare(_stirred(stock), _stirred(fast), *some)}
    if device.type == "cpu" and backends.why_not("triton", device) is None:
        # what a GPU would run, on a few digits
        console.print("the Triton kernels, interpreted, on four digits ...")
        with backends.use_backend("triton"):
            checks["triton"] = compare(_stirred(stock), _stirred(fast), images[::250], labels[::250])
    for name, lines in checks.items():
        console.print(_parity_table(name, lines))

    trainer.train(console)

    report = {
        "environment": environment(),
        "epochs": epochs,
        "steps": epochs * trainer.steps,
        "seed": seed,
        "explain": [vars(row) for row in explanation.rows],
        "parity": checks,
        "results": [_result(run, trainer) for run in trainer.runs],
    }
    pairs = zip(*(run.seconds for run in trainer.runs), strict=True)
    report["speedup_median"] = round(statistics.median(a / b for a, b in pairs), 3)
    _print_results(report, console)

    (output / "demo.json").write_text(json.dumps(report, indent=1) + "\n")
    _draw_digits(fast, images, output / "digits.png")
    _draw_curves(trainer.runs, output / "curves.png")
    console.print(f"wrote {output}/demo.json, digits.png (what the transformer sees and gives), curves.png")
    return report


def compare(stock: nn.Module, fast: nn.Module, images: Tensor, labels: Tensor) -> list[dict[str, Any]]:
    """Logits and every parameter's gradient of ``fast`` against ``stock``, by the rule of fastdl.parity."""

    def results(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
        logits = model(x)  # the stock model is torch's, whatever backend is in force
        names, parameters = zip(*model.named_parameters(), strict=True)
        grads = torch.autograd.grad(F.cross_entropy(logits, labels), parameters)
        return {"logits": logits.detach(), **{f"grad {n}": g for n, g in zip(names, grads, strict=True)}}

    ours, torchs = results(fast, images), results(stock, images)
    oracle = results(copy.deepcopy(stock).double(), images.double())
    return [
        {"tensor": name, **judge(tensor, torchs[name], oracle[name])._asdict()}
        for name, tensor in ours.items()
    ]


def _parity_table(how: str, checks: list[dict[str, Any]]) -> Table:
    title = f"converted against stock, float64 oracle (backend: {how})"
    table = Table("tensor", "our error", "torch's", "verdict", title=title)
    for check in checks:
        verdict = "[red]fail[/] " + check["failure"] if check["failure"] else "[green]pass[/]"
        table.add_row(check["tensor"], f"{check['error']:.2g}", f"{check['torch_error']:.2g}", verdict)
    return table


def _stirred(model: nn.Module) -> nn.Module:
    """A copy off the identity, where every sample would fall on a pixel and its gradient be arbitrary."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.localisation[-1].parameters():
            parameter += 0.03 * torch.randn(parameter.shape, generator=generator).to(parameter.device)
    return model


def _result(run: Run, trainer: Trainer) -> dict[str, Any]:
    loss, accuracy, _ = evaluate(run.model, run.loss, "classify", trainer.data.test, trainer.how.device)
    losses = [float(loss) for loss in run.losses]
    return {
        "model": run.kind,
        "train_loss_last_epoch": round(statistics.mean(losses[-trainer.steps :]), 4),
        "test_loss": round(loss, 4),
        "test_accuracy": round(accuracy, 4),
        "milliseconds_per_step_median": round(1e3 * statistics.median(run.seconds), 3),
        "losses": [round(loss, 5) for loss in losses],
    }


def _print_results(report: dict[str, Any], console: Console) -> None:
    table = Table(
        "model", "train loss", "test loss", "test accuracy", "ms per step (median)",
        title=f"after {report['epochs']} epochs on 4,000 distorted digits",
    )  # fmt: skip
    for r in report["results"]:
        table.add_row(
            r["model"],
            f"{r['train_loss_last_epoch']:.4f}",
            f"{r['test_loss']:.4f}",
            f"{100 * r['test_accuracy']:.1f} %",
            f"{r['milliseconds_per_step_median']:.2f}",
        )
    console.print(table)
    console.print(f"stock / converted time per step, median of interleaved pairs: {report['speedup_median']}")


def _draw_digits(model: nn.Module, images: Tensor, path: Path) -> None:
    """The first of each class before and after the transformer."""
    plt = pyplot()
    shown = images[::100]
    with torch.no_grad():
        rows = {"distorted": shown, "transformed": model.transform(shown)}
    figure, axes = plt.subplots(2, len(shown), figsize=(len(shown), 2.4))
    for (title, row), line in zip(rows.items(), axes, strict=True):
        for image, axis in zip(row, line, strict=True):
            axis.imshow(image[0].float().cpu(), cmap="gray")
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(title)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw_curves(runs: list[Run], path: Path) -> None:
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(6, 3.5))
    for run, style in zip(runs, ("-", "--"), strict=True):
        axis.plot([float(loss) for loss in run.losses], style, label=run.kind, linewidth=1)
    axis.set(xlabel="step", ylabel="training loss", yscale="log", title="STN on distorted MNIST digits")
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
