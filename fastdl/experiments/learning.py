"""How a network learns: optimisers, activations, initialisation, batch norm, depth, and learning too much."""

from __future__ import annotations

from typing import Any

from .. import data
from ..models.mlp import ACTIVATIONS, INITIALISATIONS
from ..train import figures
from .common import Report, Setting, fit, scores

OPTIMIZERS = {
    "sgd": 0.01, "momentum": 0.01, "nesterov": 0.01, "adagrad": 0.01, "rmsprop": 1e-3, "adam": 1e-3,
}  # fmt: skip


def _draw(setting: Setting, name: str, curves: dict[str, list[float]], half: int | None = None) -> None:
    """``curves`` over the epochs; those from number ``half`` on have the colours of the first, dashed."""
    figure, axis = figures.pyplot().subplots(figsize=(7, 3.8))
    half = len(curves) if half is None else half
    for number, (title, values) in enumerate(curves.items()):
        style = {"color": f"C{number % half}", "linestyle": "--" if number >= half else "-"}
        marker = "." if len(values) < 3 else ""
        axis.plot(range(1, len(values) + 1), values, label=title, marker=marker, **style)
    axis.set(xlabel="epoch", ylabel="test accuracy")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))  # beside: curves fill the axes
    figures.save(figure, setting.output / f"{name}.png")


def optimizers(setting: Setting) -> Report:
    """`net`, 15 epochs each."""
    curves = {}
    for name, lr in OPTIMIZERS.items():
        curves[f"{name} {lr:g}"] = scores(fit(setting, "net", optimizer=name, lr=lr, epochs=15))
    _draw(setting, "optimizers", curves)
    return {"accuracy by epoch": curves}


def _deep(setting: Setting, epochs: int = 10, **options: Any) -> list[float]:
    """Eight linear layers of 64."""
    options = {"width": 64, "depth": 8, **options}
    changes = {"optimizer": "momentum", "lr": 0.01, "batch": 100, "epochs": epochs}
    return scores(fit(setting, "mlp", options=options, **changes))


def activations(setting: Setting) -> Report:
    """Eight linear layers with each activation, torch's initialisation."""
    curves = {name: _deep(setting, activation=name) for name in ACTIVATIONS}
    _draw(setting, "activations", curves)
    return {"accuracy by epoch": curves}


def initialisation(setting: Setting) -> Report:
    """Eight linear layers with ReLU from each initialisation."""
    curves = {name: _deep(setting, init=name) for name in INITIALISATIONS}
    _draw(setting, "initialisation", curves)
    return {"accuracy by epoch": curves}


def batch_norm(setting: Setting) -> Report:
    """The small VGG by plain SGD at three rates, with and without."""
    curves = {}
    for on in (True, False):
        for lr in (0.01, 0.1, 0.5):
            changes = {"optimizer": "sgd", "lr": lr, "epochs": 2}
            title = f"{'with' if on else 'without'}, rate {lr}"
            curves[title] = scores(fit(setting, "vgg_mini", options={"batch_norm": on}, **changes))
    _draw(setting, "batch_norm", curves, half=3)
    return {"accuracy by epoch": curves}


def depth(setting: Setting) -> Report:
    """Plain, gated and residual layers, 10 and 30 deep."""
    curves = {}
    for layers in (10, 30):
        for kind in ("plain", "highway", "shortcut", "residual"):
            trainer = fit(setting, "highway", options={"kind": kind, "depth": layers}, epochs=20)
            curves[f"{kind}, {layers}"] = scores(trainer)
    _draw(setting, "depth", curves, half=4)
    return {"accuracy by epoch": curves}


def overfitting(setting: Setting) -> Report:
    """An MLP on 200 digits: as it is, with dropout, weight decay, augmentation, two of them."""
    full = data.load("mnist5k")
    few = data.Samples(full.train)[list(range(0, 4000, 20))]
    dataset = full._replace(train=data.Split(*few))
    ways: dict[str, dict[str, Any]] = {
        "as it is": {},
        "dropout 0.5": {"options": {"dropout": 0.5}},
        "weight decay 0.01": {"weight_decay": 1e-2},
        "augmentation": {"augment": ("jitter",)},
        "augmentation and dropout 0.3": {"augment": ("jitter",), "options": {"dropout": 0.3}},
    }
    curves, results = {}, {}
    for title, changes in ways.items():
        trainer = fit(setting, "mlp", dataset, lr=0.01, batch=50, epochs=100, **changes)
        curves[title] = scores(trainer)
        last = trainer.history[-1]
        results[title] = {
            "test accuracy": round(last["score"], 4),
            "test loss": round(last["validation_loss"], 4),
            "training loss": round(last["train_loss"], 4),
        }
    _draw(setting, "overfitting", curves)
    return {"after the last epoch": results}


def stn(setting: Setting) -> Report:
    """With and without the transformer on distorted digits."""
    curves = {
        title: scores(fit(setting, "stn", options={"transform": on}))
        for title, on in (("with transformer", True), ("plain CNN", False))
    }
    _draw(setting, "stn", curves)
    return {"accuracy by epoch": curves}


def backbone(setting: Setting) -> Report:
    """Layers learnt on digits 0 to 4, used for 5 to 9 of which there are 20 images each."""
    full = data.load("mnist5k")

    def digits(low: int, number: int | None) -> data.Data:
        splits = []
        for split, limit in ((full.train, number), (full.test, None)):
            (images,), (labels,) = split
            kept = [(labels == c).nonzero().flatten()[:limit] for c in range(low, low + 5)]
            kept = [i for part in kept for i in part.tolist()]
            splits.append(data.Split((images[kept],), (labels[kept] - low,)))
        return data.Data(*splits)

    few = digits(5, 20)
    options = {"classes": 5}
    first = fit(setting, "resnet8", digits(0, None), options=options)
    scratch = fit(setting, "resnet8", few, options=options, batch=20, epochs=20)
    body = {k: v for k, v in first.runs[0].model.state_dict().items() if not k.startswith("fc.")}
    reused = fit(setting, "resnet8", few, options=options, batch=20, epochs=20, weights=body)
    curves = {"from scratch": scores(scratch), "body of digits 0 to 4": scores(reused)}
    _draw(setting, "backbone", curves)
    return {"accuracy by epoch": curves, "digits 0 to 4": scores(first)[-1]}
