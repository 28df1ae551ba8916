"""``fastdl bench``: measure, show, compare, tune."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from .. import backends
from ..info import environment
from . import _common
from ._common import Device, console


def bench(
    ops: Annotated[
        list[str] | None, typer.Argument(help=f"Of {', '.join(backends.OPS)}; all without one.")
    ] = None,
    case: Annotated[
        list[str] | None, typer.Option(help="Only cases whose name contains this; repeatable.")
    ] = None,
    direction: Annotated[
        list[str] | None, typer.Option(help="forward, backward or both; repeatable.")
    ] = None,
    layout: Annotated[list[str] | None, typer.Option(help="contiguous or channels_last; repeatable.")] = None,
    models: Annotated[bool, typer.Option("--models", help="Training steps of networks as well.")] = False,
    only_models: Annotated[bool, typer.Option("--only-models", help="Training steps alone.")] = False,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="How cost grows with batch, channels, image, classes, instead.")
    ] = False,
    goals: Annotated[
        bool, typer.Option("--goals", help="Only cases and directions that the project has a goal for.")
    ] = False,
    peers: Annotated[
        str | None, typer.Option(help="Who is measured, comma-separated (`--list` names them), or all.")
    ] = None,
    device: Device = "auto",
    dtype: Annotated[
        str | None, typer.Option(help="float32 (default on a CPU), float16 or bfloat16.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Per case and direction, on a CPU.", min=0.0)] = 1.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every result there.")] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write a page there: tables and pictures, all in one file.")
    ] = None,
    show: Annotated[
        list[Path] | None, typer.Option(help="Measure nothing: show these files of results; repeatable.")
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(help="Measure nothing: what got slower from one file to the other?"),
    ] = None,
    listing: Annotated[
        bool, typer.Option("--list", help="Measure nothing: name the cases and the peers.")
    ] = False,
    tune: Annotated[
        bool, typer.Option("--tune", help="Measure the backends and have `auto` go by what was fastest.")
    ] = False,
    source: Annotated[
        Path | None, typer.Option("--from", help="With --tune: measure nothing, take this file of results.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="With --tune: the table's file instead of the device's own.")
    ] = None,
) -> None:
    """Time every op against PyTorch and others on this machine; each result is checked before it is timed.

    Exit status 1 if fastdl or one of its backends by name fails or is wrong, or with --compare if one of
    them got slower beyond noise.
    """
    device = _common.device(device)
    named = {"--case": case, "--direction": direction, "--layout": layout, "--models": models}
    named |= {"--only-models": only_models, "--sweep": sweep, "--goals": goals, "--peers": peers}
    named |= {"--show": show, "--compare": compare, "--list": listing, "--html": html}
    named |= {"--json": json_file} if source else {}
    _check_tuning(tune, {"--from": source, "--output": output}, named)
    from .. import bench as b
    from ..bench import command

    if compare is not None:
        with _common.told("--compare", OSError, b.SchemaError):
            raise typer.Exit(0 if command.compare(*compare, console) else 1)
    if listing:
        for table in command.listing(torch.device(device)):
            console.print(table)
        return
    if show:
        with _common.told("--show", OSError, b.SchemaError):
            reports = [b.read(path) for path in show]
        for report in reports:
            console.print(command.overview(report["results"]))
            console.print(b.summary(report["results"]))
        if html is not None:
            b.write_page(html, reports)
        return
    dtype = dtype or ("float32" if device == "cpu" else "bfloat16")
    named = (
        list(b.PEERS)
        if peers == "all"
        else peers.split(",")
        if peers
        else (command.tune.PEERS if tune else b.DEFAULT)[torch.device(device).type]
    )
    _common.check_choice("OPS", ops, backends.OPS)
    _common.check_choice("--direction", direction, b.DIRECTIONS)
    _common.check_choice("--layout", layout, b.LAYOUTS)
    _common.check_choice("--peers", named, (*b.PEERS, *command.IMPLEMENTATIONS))
    dtypes = {str(d).removeprefix("torch."): d for d in backends.KERNEL_DTYPES}
    _common.check_choice("--dtype", [dtype], dtypes)
    plan = command.Plan(
        torch.device(device),
        () if only_models else ops or backends.OPS,
        case or (),
        direction or b.DIRECTIONS,
        layout or tuple(b.LAYOUTS),
        dtypes[dtype],
        named,
        models or only_models,
        sweep,
        goals,
        seconds,
    )
    if tune:
        with _common.told("--from" if source else "--tune", OSError, b.SchemaError):
            raise typer.Exit(0 if command.tuning(plan, console, json_file, source, output) else 1)
    if not list(plan.jobs()):
        words = [("", ops), ("--case", case), ("--direction", direction), ("--layout", layout)]
        asked = [f"{flag} {word!r}".strip() for flag, given in words for word in given or ()]
        switches = {"--models": models, "--only-models": only_models, "--sweep": sweep, "--goals": goals}
        asked += [flag for flag, on in switches.items() if on]
        raise typer.BadParameter(f"nothing on {device} is left by {', '.join(asked)}", param_hint="filters")
    results = command.run(plan, console, json_file)
    console.print(b.summary(results))
    if html is not None:
        b.write_page(html, [{"environment": environment(), "results": results}])
    wrong = any(r["implementation"] in b.OWN and r["status"] in ("wrong", "failed") for r in results)
    raise typer.Exit(1 if wrong else 0)


def _check_tuning(tune: bool, needs: dict[str, object], excludes: dict[str, object]) -> None:
    if not tune:
        for option in (option for option, given in needs.items() if given):
            raise typer.BadParameter("expected --tune beside it", param_hint=option)
        return
    given = [option for option, value in excludes.items() if value]
    if given:
        raise typer.BadParameter(
            f"expected no {' and no '.join(given)} beside it: a table is made of all cases of an op",
            param_hint="--tune",
        )
    if not backends.automatic():
        raise typer.BadParameter(
            "expected no FASTDL_BACKEND: it is to choose between the backends", param_hint="--tune"
        )
