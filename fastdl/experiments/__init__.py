"""The experiments of the course: each answers a question, with a figure and numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ..info import environment
from ..train import figures
from ..train.checkpoint import write_atomically
from . import learning, seeing
from .baselines import baselines
from .common import Experiment, Setting
from .lottery import lottery
from .matching import geomatch

__all__ = ["EXPERIMENTS", "run"]

EXPERIMENTS = {
    "baselines": Experiment("How far do methods from before networks come?", baselines),
    "optimizers": Experiment("Which optimiser is how far after how many epochs?", learning.optimizers),
    "activations": Experiment("Which activation lets eight layers learn?", learning.activations),
    "initialisation": Experiment("From which weights can eight layers learn?", learning.initialisation),
    "batch_norm": Experiment("What rates does batch norm allow?", learning.batch_norm),
    "depth": Experiment("How deep can a network be without shortcuts, and with them?", learning.depth),
    "overfitting": Experiment("What helps where there are 200 images?", learning.overfitting),
    "lottery": Experiment("How many weights are needed, and does their start matter?", lottery),
    "stn": Experiment("What does a spatial transformer gain on distorted digits?", learning.stn),
    "backbone": Experiment("What is a body worth that was trained on other digits?", learning.backbone),
    "vae": Experiment("What do two and twenty latent variables keep of a digit?", seeing.vae),
    "features": Experiment("What do the filters of a small network look for?", seeing.features),
    "critical_points": Experiment("Which points does PointNet look at?", seeing.critical_points),
    "geomatch": Experiment("What does a spline add to an affine match?", geomatch),
    "zero_shot": Experiment("Does CLIP name what it has not seen?", seeing.zero_shot),
}


def run(
    name: str,
    output: Path,
    console: Console,
    epochs: float = 1.0,
    device: torch.device | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Run the experiment ``name``; its figure and NAME.json to ``output``. Returns what is in the JSON.

    Raises:
        ValueError: if there is no such experiment.
        ModuleNotFoundError: if matplotlib, or a package that carries the data, is not installed.
    """
    if name not in EXPERIMENTS:
        raise ValueError(f"fastdl.experiments: expected one of {', '.join(EXPERIMENTS)}, got {name!r}")
    figures.pyplot()  # that it is missing is told now, not when all is trained
    output.mkdir(parents=True, exist_ok=True)
    setting = Setting(output, console, epochs, device or torch.device("cpu"), seed)
    results = EXPERIMENTS[name].run(setting)
    report = {
        "experiment": name,
        "question": EXPERIMENTS[name].question,
        "results": results,
        "epochs factor": epochs,
        "seed": seed,
        "environment": environment(),
    }
    text = json.dumps(report, indent=1) + "\n"
    write_atomically(output / f"{name}.json", lambda path: path.write_text(text))
    return report
