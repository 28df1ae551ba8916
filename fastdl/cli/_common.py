"""What the commands share: the console, the device, and how mistakes of the user are told."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Annotated

import torch
import typer
from rich.console import Console

console = Console()
if not console.is_terminal:
    console.width = max(console.width, 120)  # a log folds nothing

Device = Annotated[str, typer.Option(help="cpu, cuda or auto: cuda where there is one.")]


def device(name: str) -> str:
    """The device asked for; where it is the CPU, Triton's kernels are to be interpreted."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError:
        kind = ""
    if kind not in ("cpu", "cuda") or (kind == "cuda" and not torch.cuda.is_available()):
        raise typer.BadParameter(f"no such device here: {name}", param_hint="--device")
    if kind == "cpu" and "triton" not in sys.modules:
        os.environ.setdefault("TRITON_INTERPRET", "1")  # read by Triton when it is first imported
    return name


def check_choice(option: str, given: list[str] | None, known: Iterable[str]) -> None:
    for name in given or ():
        if name not in known:
            raise typer.BadParameter(f"expected one of {', '.join(known)}, got {name!r}", param_hint=option)


@contextlib.contextmanager
def refusals(*kinds: type[Exception]) -> Iterator[None]:
    """What fastdl itself refuses is told in a line; an error of anybody else keeps its traceback."""
    try:
        yield
    except kinds as error:
        if not str(error).startswith("fastdl."):
            raise
        raise typer.BadParameter(str(error)) from None


@contextlib.contextmanager
def told(option: str, *kinds: type[Exception]) -> Iterator[None]:
    """Errors of these kinds are the option's, told in a line."""
    try:
        yield
    except kinds as error:
        raise typer.BadParameter(str(error), param_hint=option) from None
