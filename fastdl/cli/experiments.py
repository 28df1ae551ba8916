"""``fastdl experiment`` and ``experiments``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.table import Table

from . import _common
from ._common import Device, console


def experiment(
    name: Annotated[str, typer.Argument(help="Which; `fastdl experiments` lists them.")],
    output: Annotated[Path, typer.Option(help="Folder for the figure and the JSON.")] = Path("experiments"),
    epochs: Annotated[float, typer.Option(help="A factor on the epochs of the course.", min=0.01)] = 1.0,
    seed: Annotated[int, typer.Option(help="Of weights, batches and whatever else is drawn.")] = 0,
    device: Device = "auto",
) -> None:
    """Run an experiment of the course: a figure and a JSON of what came out."""
    from .. import experiments as e

    with _common.refusals(ValueError, ModuleNotFoundError):
        report = e.run(name, output, console, epochs, torch.device(_common.device(device)), seed)
    console.print_json(data=report["results"])


def experiments() -> None:
    """List the experiments of the course."""
    from ..experiments import EXPERIMENTS

    table = Table("experiment", "question")
    for name, one in EXPERIMENTS.items():
        table.add_row(name, one.question)
    console.print(table)
