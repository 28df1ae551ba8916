"""``fastdl parity``: every op against PyTorch, in one process per core."""

from __future__ import annotations

import json
import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import typer
from rich import box
from rich.progress import Progress
from rich.table import Table

from .. import backends
from ..info import environment
from . import _common
from ._common import Device, console

if TYPE_CHECKING:
    from ..parity import Result, Run


def parity(
    op: Annotated[
        list[str] | None, typer.Option(help=f"One of {', '.join(backends.OPS)}; repeatable.")
    ] = None,
    backend: Annotated[
        list[str] | None, typer.Option(help=f"One of {', '.join(backends.BACKENDS)}; repeatable.")
    ] = None,
    device: Device = "auto",
    dtype: Annotated[list[str] | None, typer.Option(help="float32, float16 or bfloat16; repeatable.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every result there.")] = None,
    verbose: Annotated[bool, typer.Option(help="One line per case instead of one per group.")] = False,
) -> None:
    """Hold every op against PyTorch on this machine: outputs and gradients, dtypes, layouts, backends.

    Without a GPU, Triton's kernels run through its interpreter. Exit status 1 if any case fails.
    """
    device = _common.device(device)
    from .. import parity as p

    _common.check_choice("--op", op, backends.OPS)
    _common.check_choice("--backend", backend, backends.BACKENDS)
    names = {str(d).removeprefix("torch."): d for d in p.DTYPES}
    _common.check_choice("--dtype", dtype, names)

    runs = p.plan(op or (), backend or (), device, [names[d] for d in dtype] if dtype else p.DTYPES)
    results: list[Result] = []
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("parity", total=len(runs))
        for some in _map(p.execute, runs):
            results += some
            progress.advance(task)
    console.print(_parity_table(results, verbose))
    report = p.report(results)
    console.print("{cases} cases, {failed} failed, {skipped} skipped".format(**report["summary"]))
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps({"environment": environment(), **report}, indent=1) + "\n")
    raise typer.Exit(1 if report["summary"]["failed"] else 0)


def _map(execute: Callable[[Run], list[Result]], runs: list[Run]) -> Iterator[list[Result]]:
    """Results in order, by one process per core: interpreted kernels use one, and so does compiling them."""
    if len(runs) < 8:
        yield from map(execute, runs)
        return
    # spawned, not forked: a fork of a process whose thread pool has run can hang
    context = multiprocessing.get_context("spawn")
    workers = min(os.cpu_count() or 1, 16)  # each on a GPU keeps a context in its memory
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        yield from pool.map(execute, runs, chunksize=4)


def _start_worker() -> None:
    torch.set_num_threads(1)
    # NumPy comments on every infinity that the interpreter computes with
    warnings.filterwarnings("ignore", message=".*encountered in", category=RuntimeWarning)


def _parity_table(results: list[Result], verbose: bool) -> Table:
    """One row per op, backend, dtype, layout and direction, or per case; what did not pass says why."""
    columns = ("op", "backend", "dtype", "layout", "direction", "case" if verbose else "cases")
    table = Table(*columns, "our error", "torch's", "verdict", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    groups: dict[tuple[str, ...], list[Result]] = {}
    for r in results:
        key = (r.op, r.backend, r.dtype, r.layout, r.direction)
        groups.setdefault((*key, r.case) if verbose else key, []).append(r)
    for key, members in groups.items():
        worst = max(members, key=lambda r: (r.verdict == "fail", r.error))
        colour = {"pass": "green", "fail": "red", "skip": "yellow"}[worst.verdict]
        errors = ("", "") if worst.verdict == "skip" else (f"{worst.error:.1e}", f"{worst.torch_error:.1e}")
        note = {"pass": "", "fail": f" {worst.case}: {worst.note}", "skip": f" {worst.note}"}[worst.verdict]
        table.add_row(
            *key[:5], key[5] if verbose else str(len(members)), *errors, f"[{colour}]{worst.verdict}[/]{note}"
        )
    return table
