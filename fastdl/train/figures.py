"""A run as pictures: its curves, and which classes were taken for which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def pyplot() -> Any:
    """matplotlib without a display.

    Raises:
        ModuleNotFoundError: if it is not installed.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "fastdl.train: expected matplotlib, which draws the figures, to be installed, got "
            f"{error}; run `pip install 'fastdl[demo]'`"
        ) from None
    return pyplot


def save(figure: Any, path: Path) -> None:
    """As a small PNG."""
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    pyplot().close(figure)


def curves(history: list[dict[str, Any]], label: str, path: Path) -> None:
    """Loss and score over the epochs, a line per run."""
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(9, 3.4))
    for name in dict.fromkeys(row["run"] for row in history):
        rows = [row for row in history if row["run"] == name]
        epochs = [row["epoch"] for row in rows]
        left.plot(epochs, [row["train_loss"] for row in rows], label=f"{name}, training")
        if rows[0]["validation_loss"] is not None:
            left.plot(epochs, [row["validation_loss"] for row in rows], "--", label=f"{name}, validation")
            right.plot(epochs, [row["score"] for row in rows], label=name)
    left.set(xlabel="epoch", ylabel="loss")
    right.set(xlabel="epoch", ylabel=f"{label}, validation")
    left.legend(fontsize=8)
    save(figure, path)


def confusion(predicted: Tensor, target: Tensor, names: tuple[str, ...], path: Path) -> None:
    """How many samples of each class were taken for each."""
    size = len(names)
    counts = torch.bincount(target * size + predicted, minlength=size * size).view(size, size).numpy()
    figure, axis = pyplot().subplots(figsize=(4.5, 4.2))
    axis.imshow(counts, cmap="Blues")
    for row in range(size):
        for column in range(size):
            if counts[row, column]:
                dark = counts[row, column] > counts.max() / 2
                place = {"ha": "center", "va": "center", "fontsize": 7, "color": "white" if dark else "black"}
                axis.text(column, row, int(counts[row, column]), **place)
    axis.set_xticks(range(size), names, rotation=90 if max(map(len, names)) > 2 else 0, fontsize=7)
    axis.set_yticks(range(size), names, fontsize=7)
    axis.set(xlabel="predicted", ylabel="true")
    save(figure, path)
