"""The main job on real data: convert a spatial transformer network, check it, train it beside the stock one.

Both networks start from the same weights and see the same distorted digits in the same order, batch by batch
in turn, so that losses can be compared and step times are interleaved.
"""

from __future__ import annotations

import copy
import json
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor, nn

from . import backends, convert, explain
from .data import Digits, distort, mnist5k
from .info import environment
from .models import STN
from .parity import judge

BATCH = 100


class Trainee(NamedTuple):
    """A network with its optimiser and what is recorded of its training."""

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    losses: list[float]
    seconds: list[float]


def run(epochs: int, device: torch.device, output: Path, seed: int, console: Console) -> dict[str, Any]:
    """The whole demo; writes demo.json, digits.png and curves.png to ``output`` and returns the JSON."""
    output.mkdir(parents=True, exist_ok=True)
    digits = Digits(*(t.to(device) for t in mnist5k()))
    test_images = distort(digits.test_images, torch.Generator().manual_seed(seed + 1))
    labels = digits.test_labels
    steps = epochs * len(digits.train_images) // BATCH

    torch.manual_seed(seed)
    stock = STN().to(device)
    fast = convert(copy.deepcopy(stock))
    explanation = explain(fast, test_images[:BATCH])
    print(explanation)

    checks = {"as used": compare(_stirred(stock), _stirred(fast), test_images[:BATCH], labels[:BATCH])}
    if device.type == "cpu" and backends.why_not("triton", device) is None:
        # what a GPU would run, on a few digits
        console.print("the Triton kernels, interpreted, on four digits ...")
        with backends.use_backend("triton"):
            checks["triton"] = compare(_stirred(stock), _stirred(fast), test_images[::250], labels[::250])
    for how, lines in checks.items():
        console.print(_parity_table(how, lines))

    trainees = [_trainee("stock", stock, steps), _trainee("converted", fast, steps)]
    _train(trainees, digits, epochs, seed, console)

    report = {
        "environment": environment(),
        "epochs": epochs,
        "steps": steps,
        "seed": seed,
        "explain": [vars(row) for row in explanation.rows],
        "parity": checks,
        "results": [_result(t, test_images, labels) for t in trainees],
    }
    ratio = statistics.median(a / b for a, b in zip(trainees[0].seconds, trainees[1].seconds, strict=True))
    report["speedup_median"] = round(ratio, 3)
    _print_results(report, console)

    (output / "demo.json").write_text(json.dumps(report, indent=1) + "\n")
    _draw_digits(fast, test_images, output / "digits.png")
    _draw_curves(trainees, output / "curves.png")
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


def _trainee(name: str, model: nn.Module, steps: int) -> Trainee:
    # the transformer learns at half the rate: a bad theta early on would blind the classifier
    transformer = [p for n, p in model.named_parameters() if n.startswith("localisation")]
    classifier = [p for n, p in model.named_parameters() if not n.startswith("localisation")]
    groups = [{"params": transformer, "lr": 5e-4}, {"params": classifier, "lr": 1e-3}]
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    return Trainee(name, model, optimizer, schedule, [], [])


def _train(trainees: list[Trainee], digits: Digits, epochs: int, seed: int, console: Console) -> None:
    """Adam with a cosine schedule; digits distorted anew for every batch."""
    generator = torch.Generator().manual_seed(seed)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    batches = len(digits.train_images) // BATCH
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("training", total=epochs * batches)
        for epoch in range(epochs):
            order = torch.randperm(len(digits.train_images), generator=generator)
            for picked in order.to(digits.train_images.device).split(BATCH):
                images = distort(digits.train_images[picked], generator)
                labels = digits.train_labels[picked]
                # take turns in going first, so that neither always finds the caches warm
                for trainee in trainees if len(trainees[0].losses) % 2 else reversed(trainees):
                    _step(trainee, images, labels)
                losses = ", ".join(f"{t.name} {t.losses[-1]:.3f}" for t in trainees)
                progress.update(task, advance=1, description=f"epoch {epoch + 1}/{epochs}, loss: {losses}")


def _step(trainee: Trainee, images: Tensor, labels: Tensor) -> None:
    start = _now(images)
    trainee.model.train()
    loss = F.cross_entropy(trainee.model(images), labels)
    trainee.optimizer.zero_grad()
    loss.backward()
    trainee.optimizer.step()
    trainee.seconds.append(_now(images) - start)
    trainee.schedule.step()
    trainee.losses.append(float(loss.detach()))


def _now(like: Tensor) -> float:
    if like.is_cuda:
        torch.cuda.synchronize(like.device)
    return time.perf_counter()


def _result(trainee: Trainee, images: Tensor, labels: Tensor) -> dict[str, Any]:
    trainee.model.eval()
    with torch.no_grad():
        logits = trainee.model(images)
    return {
        "model": trainee.name,
        "train_loss_last_epoch": round(statistics.mean(trainee.losses[-40:]), 4),
        "test_loss": round(float(F.cross_entropy(logits, labels)), 4),
        "test_accuracy": round(float((logits.argmax(1) == labels).float().mean()), 4),
        "milliseconds_per_step_median": round(1e3 * statistics.median(trainee.seconds), 3),
        "losses": [round(loss, 5) for loss in trainee.losses],
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
    pyplot = _pyplot()
    shown = images[::100]
    with torch.no_grad():
        rows = {"distorted": shown, "transformed": model.transform(shown)}
    figure, axes = pyplot.subplots(2, len(shown), figsize=(len(shown), 2.4))
    for (title, row), line in zip(rows.items(), axes, strict=True):
        for image, axis in zip(row, line, strict=True):
            axis.imshow(image[0].float().cpu(), cmap="gray")
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(title)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _draw_curves(trainees: list[Trainee], path: Path) -> None:
    pyplot = _pyplot()
    figure, axis = pyplot.subplots(figsize=(6, 3.5))
    for trainee, style in zip(trainees, ("-", "--"), strict=True):
        axis.plot(trainee.losses, style, label=trainee.name, linewidth=1)
    axis.set(xlabel="step", ylabel="training loss", yscale="log", title="STN on distorted MNIST digits")
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    from matplotlib import pyplot

    return pyplot
