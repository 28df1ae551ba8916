"""``fastdl info``: the environment."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Table

from ..info import environment
from ._common import console


def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Say what is there to run on: versions, devices, backends, and why the rest is not."""
    facts = environment()
    if as_json:
        print(json.dumps(facts, indent=2))
    else:
        console.print(table())


def table() -> Table:
    """The environment as a table."""
    shown = Table("", "", title="fastdl info", show_header=False)
    for name, value in environment().items():
        if isinstance(value, dict):
            for key, status in value.items():
                shown.add_row(key, f"[green]{status}[/]" if status == "available" else status)
        else:
            shown.add_row(name, str(value))
    return shown
