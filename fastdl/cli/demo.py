"""``fastdl demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from . import _common
from ._common import Device, console
from .info import table


def demo(
    epochs: Annotated[int, typer.Option(help="Passes over the 4,000 training digits.", min=1)] = 12,
    device: Device = "auto",
    output: Annotated[Path, typer.Option(help="Folder for the JSON and the pictures.")] = Path("demo_output"),
    seed: Annotated[int, typer.Option(help="Of the weights and the distortions.")] = 0,
) -> None:
    """Convert a spatial transformer network, check it against the stock one, train both on real digits."""
    device = _common.device(device)
    from ..demo import run

    console.print(table())
    run(epochs, torch.device(device), output, seed, console)
