"""``fastdl models``, ``warm-up`` and ``suite``: the networks of the course, listed, compiled, measured."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.table import Table

from . import _common
from ._common import Device, console


def models() -> None:
    """List the networks of the course: parameters, and what each is trained on."""
    from .. import models as m
    from ..train import RECIPES

    table = Table("network", "parameters", "data", "optimiser", "epochs", title="fastdl models")
    for name in m.names():
        with torch.device("meta"):
            count = sum(p.numel() for p in m.create(name).parameters())
        r = RECIPES.get(name)
        row = (r.data, f"{r.optimizer} {r.lr:g}", str(r.epochs)) if r else ("-", "-", "-")
        table.add_row(name, f"{count:,}", *row)
    console.print(table)


def warm_up(
    name: Annotated[str, typer.Argument(help="A network; `fastdl models` lists them.")],
    batch: Annotated[int, typer.Option(help="Samples a call.", min=2)] = 64,
    amp: Annotated[bool, typer.Option(help="Half precision where torch's autocast has it.")] = False,
    device: Device = "auto",
) -> None:
    """Compile what a network of the course needs, forward and backward, and say how long that took.

    Triton keeps what it compiles in TRITON_CACHE_DIR (~/.triton/cache): an empty folder there shows what the
    first run costs, another process then what it costs to load.
    """
    device = _common.device(device)
    from .. import convert, models
    from .. import warm_up as run

    try:
        model, loss = models.create(name), models.create_loss(name)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    parts = [t.to(device) for t in (*models.example_inputs(name), *models.example_targets(name))]
    number = len(models.example_inputs(name))
    parts = [_repeated(t, batch, len(parts[0])) for t in parts]
    model, loss = (convert(module.to(device)) for module in (model, loss))

    def criterion(out: object) -> torch.Tensor:
        return loss(*(out if isinstance(out, tuple) else (out,)), *parts[number:])

    for which in ("first", "second"):
        start = time.perf_counter()
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=amp):
            run(model, *parts[:number], loss=criterion)
        if device != "cpu":
            torch.cuda.synchronize()
        console.print(f"{which} run: {time.perf_counter() - start:.3f} s")


def _repeated(t: torch.Tensor, batch: int, number: int) -> torch.Tensor:
    """``t`` of ``number`` samples over and over, until there are ``batch``; a square is of pairs of them."""
    chosen = torch.arange(batch, device=t.device) % number
    return t[chosen][:, chosen] if t.shape == (number, number) else t[chosen]


def suite(
    names: Annotated[
        list[str] | None, typer.Argument(help="Networks; all without one. `fastdl models` lists them.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for suite.json and the runs.")] = Path("suite_output"),
    part: Annotated[
        list[str] | None,
        typer.Option(help="parity, score or time, anew; repeatable. Without one: what suite.json lacks."),
    ] = None,
    seconds: Annotated[float, typer.Option(help="For the times of a network, on a CPU.", min=0.0)] = 3.0,
    seed: Annotated[int, typer.Option(help="Of weights, batches and whatever else is drawn.")] = 0,
    device: Device = "auto",
) -> None:
    """Every network of the course: calls that kernels take, parity, the score of its recipe, times of a step.

    Exit status 1 if a network is outside the tolerance rule or misses what the course accepts.
    """
    device = torch.device(_common.device(device))
    from ..train import suite as s

    _common.check_choice("--part", part, s.PARTS)
    with _common.refusals(ValueError, ModuleNotFoundError):
        report = s.measure(names or (), part or (), output, console, device, seed, seconds)
    console.print(f"wrote {output / 'suite.json'}")
    raise typer.Exit(1 if s.missed(report) else 0)
