"""``fastdl train``: a recipe, and what of it is to be otherwise."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from . import _common
from ._common import Device, console


def train(
    name: Annotated[str, typer.Argument(help="A network; `fastdl models` lists them.")],
    data: Annotated[
        str | None, typer.Option(help="Another data set than the recipe's; docs/models.md lists them.")
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of IDX files for mnist and fashion.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training samples.", min=1)] = None,
    batch: Annotated[int | None, typer.Option(help="Samples a step, of all processes.", min=2)] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="sgd, momentum, nesterov, adagrad, rmsprop, adam or adamw.")
    ] = None,
    schedule: Annotated[str | None, typer.Option(help="constant, cosine, step, warmup or one_cycle.")] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="L2 penalty of all parameters; adamw's own decay.", min=0)
    ] = None,
    clip: Annotated[float | None, typer.Option(help="Largest norm of the gradients; 0: any.", min=0)] = None,
    patience: Annotated[int | None, typer.Option(help="Stop after that many epochs without gain.")] = None,
    validation: Annotated[float | None, typer.Option(help="Part of the training samples held out.")] = None,
    augment: Annotated[
        list[str] | None, typer.Option(help="flip, crop, colour or jitter; repeatable.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="Of the network, as dropout=0.3; repeatable.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, batches and whatever else is drawn.")] = None,
    compare: Annotated[bool, typer.Option(help="Train a stock network beside the converted one.")] = False,
    stock: Annotated[bool, typer.Option(help="Train a stock network instead of a converted one.")] = False,
    amp: Annotated[bool, typer.Option(help="Half precision where torch's autocast has it.")] = False,
    compile: Annotated[bool, typer.Option(help="Through torch.compile.")] = False,
    cuda_graphs: Annotated[bool, typer.Option(help="Capture each step's forward and backward.")] = False,
    workers: Annotated[int, typer.Option(help="Processes that fetch batches.", min=0)] = 0,
    resume: Annotated[bool, typer.Option(help="Go on from the output folder's last.pt.")] = False,
    backbone: Annotated[
        Path | None, typer.Option(help="Begin with this checkpoint's weights, but for the last layer's.")
    ] = None,
    device: Device = "auto",
    output: Annotated[Path | None, typer.Option(help="Folder; by default train_output/NAME.")] = None,
) -> None:
    """Train a network of the course by its recipe; under torchrun, in several processes."""
    from .. import train as t
    from ..train import distributed

    output = output or Path("train_output") / name
    kinds = ("stock", "converted") if compare else ("stock",) if stock else ("converted",)
    how = t.How(torch.device(_common.device(device)), kinds, amp, compile, cuda_graphs, workers)
    out = Console(quiet=True) if int(os.environ.get("RANK", "0")) > 0 else console
    changes = {
        "data": data,
        "batch": batch,
        "lr": lr,
        "optimizer": optimizer,
        "schedule": schedule,
        "weight_decay": weight_decay,
        "clip": clip,
        "patience": patience,
        "validation": validation,
        "augment": tuple(augment) if augment else None,
        "option": dict(map(_assignment, option)) if option else None,
        "seed": seed,
    }
    if resume:
        given = {**changes, "backbone": backbone}
        given = [f"--{key.replace('_', '-')}" for key, value in given.items() if value is not None]
        if given:
            raise typer.BadParameter(
                f"expected no {' and no '.join(given)} beside it: the checkpoint's recipe goes on, and only "
                "--epochs may change",
                param_hint="--resume",
            )
    try:
        with _common.refusals(ValueError, TypeError, FileNotFoundError, ModuleNotFoundError):
            recipe = t.recipe(name)
            changes["options"] = {**recipe.options, **(changes.pop("option") or {})}
            recipe = None if resume else recipe.changed(**changes)
            t.train(name, recipe, how, output, out, root, resume, backbone, epochs)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    finally:
        distributed.end()


def _assignment(text: str) -> tuple[str, object]:
    """``name=value``, the value read as JSON where it is JSON."""
    name, sign, value = text.partition("=")
    if not sign:
        raise typer.BadParameter(f"expected NAME=VALUE, got {text!r}", param_hint="--option")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value
