"""What the experiments share: training without files, and results as JSON beside a figure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console

from .. import data, train
from ..train.loop import Trainer

Report = dict[str, Any]


class Setting(NamedTuple):
    """How an experiment is run: ``epochs`` is a factor on those of the course."""

    output: Path
    console: Console
    epochs: float = 1.0
    device: torch.device = torch.device("cpu")
    seed: int = 0

    def scaled(self, epochs: int) -> int:
        return max(1, round(self.epochs * epochs))


class Experiment(NamedTuple):
    """``run`` draws a figure to its setting's output and returns the numbers."""

    question: str
    run: Callable[[Setting], Report]


def fit(setting: Setting, name: str, dataset: data.Data | None = None, **changes: Any) -> Trainer:
    """A trained network; ``history`` has the score on the test samples after each epoch (nothing is chosen by
    it), ``runs[0].model`` the network after the last."""
    epochs = changes.pop("epochs", train.recipe(name).epochs)
    weights = changes.pop("weights", {})  # to begin with
    recipe = train.recipe(name).changed(
        validation=0.0, seed=setting.seed, epochs=setting.scaled(epochs), **changes
    )
    how = train.How(setting.device)
    train.check(recipe, how)
    trainer = Trainer(name, recipe, how, None, dataset or data.load(recipe.data))
    trainer.held = trainer.data.test
    trainer.runs[0].model.load_state_dict(weights, strict=False)
    trainer.train(setting.console)
    trainer.runs[0].model.eval()
    return trainer


def scores(trainer: Trainer) -> list[float]:
    """The test score after each epoch."""
    return [round(row["score"], 4) for row in trainer.history]


def grid(axes: Any, images: torch.Tensor, titles: list[str] | None = None) -> None:
    """Grey images ``[N, H, W]``, one on each of ``axes``."""
    for i, axis in enumerate(axes.flat):
        axis.axis("off")
        if i < len(images):
            axis.imshow(images[i].detach().cpu(), cmap="gray")
            if titles:
                axis.set_title(titles[i], fontsize=7)
