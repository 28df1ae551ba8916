"""``fastdl bench``: what the options ask for, measured and shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console, Group
from rich.table import Table

from fastdl import backends, tuned
from fastdl.info import environment

from . import PEERS, cases, keep_heap, measure, measure_step, read, report, steps, sweep, tune
from .case import Case
from .models import IMPLEMENTATIONS, Step


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    device: torch.device
    ops: Sequence[str]
    names: Sequence[str]
    directions: Sequence[str]
    layouts: Sequence[str]
    dtype: torch.dtype
    peers: Sequence[str]
    models: bool
    sweep: bool
    goals: bool
    seconds: float

    def jobs(self) -> Iterator[tuple[str, Case, str] | Step]:
        """Every case with each of its directions (and what grows, in a sweep), then the training steps."""
        for grows, case in self._cases():
            for direction, goal in case.directions.items():
                wanted = goal is not None or not self.goals
                if wanted and direction in self.directions and case.layout in self.layouts:
                    yield grows, case, direction
        if self.models:
            yield from steps(self.device, self.names)

    def _cases(self) -> Iterator[tuple[str, Case]]:
        if not self.sweep:
            for case in cases(self.device, self.ops, self.names):
                yield "", case
            return
        for op in self.ops:
            for grows, case in sweep.cases(op):
                if not self.names or any(name in f"{grows} {case.name}" for name in self.names):
                    yield grows, case


def run(plan: Plan, console: Console, json_file: Path | None) -> list[report.Result]:
    """Measure, print each case as it is done, and keep the file up to date."""
    keep_heap()
    jobs = list(plan.jobs())
    results: list[report.Result] = []
    facts = environment()
    for number, job in enumerate(jobs, 1):
        if isinstance(job, Step):
            wanted = [name for name in plan.peers if name in IMPLEMENTATIONS]
            rows = measure_step(job, plan.device, wanted, plan.seconds)
        else:
            if any(name.startswith("compile") for name in plan.peers):
                torch._dynamo.reset()  # its limit of recompilations is per function
            grows, case, direction = job
            wanted = [name for name in plan.peers if name in PEERS]
            rows = (
                replace(row, sweep=grows)
                for row in measure(case, direction, plan.device, plan.dtype, wanted, plan.seconds)
            )
        some = [row.plain() for row in rows]
        results += some
        if json_file is not None:
            report.write(json_file, facts, results)
        for shown in report.tables(some):
            console.print(shown)
        console.print(f"[dim]{number} of {len(jobs)}[/]")
    console.print(overview(results))
    skipped = {(r["implementation"], r["note"]) for r in results if r["status"] == "skipped"}
    for name, reason in sorted(skipped):
        console.print(f"[dim]{name} was skipped: {reason}[/]")
    return results


def tuning(
    plan: Plan, console: Console, json_file: Path | None, source: Path | None, output: Path | None
) -> bool:
    """Write the table that the plan's results amount to, or those in ``source``; whether nothing was wrong.

    ``output``: its file; None: the user's own for the device.

    Raises:
        SchemaError: if no table can be made of the results, or not for this machine.
        OSError: if a file cannot be read or written.
    """
    if source is None:
        with backends.untuned():
            facts, results = environment(), run(plan, console, json_file)
    else:
        found = read(source)
        facts, results = found["environment"], [r for r in found["results"] if r["op"] in plan.ops]
    table = tune.table(facts, results)
    output = output or _own_file(table)
    console.print(tune.shown(table))
    kept = tune.write(output, table)
    backends.forget()
    console.print(f"{output}: {'added to what it knew' if kept else 'written'}")
    return not any(r["status"] in ("wrong", "failed") and r["implementation"] in tune.OWN for r in results)


def _own_file(table: dict[str, Any]) -> Path:
    facts = table["environment"]
    here = tuned.device(table["kind"], None)
    if here is None or facts.get("gpu" if table["kind"] == "cuda" else "cpu") != here[0]:
        raise report.SchemaError(
            "expected results of this machine's device; --output names a file for another's"
        )
    return tuned.user_path(*here)


def overview(results: list[report.Result]) -> Group:
    """Ours against PyTorch, and what sweeps come down to."""
    some = [r for r in results if not r.get("sweep")]
    shown = [report.overview(some)] if some else []
    return Group(*shown, *([fits_table(results)] if len(some) < len(results) else []))


def fits_table(results: list[report.Result]) -> Table:
    """The line that fits each sweep."""
    columns = ("op", "what grows", "direction", "timer", "implementation")
    table = Table(*columns, title="time = overhead + least bytes / rate")
    for name in ("overhead, us", "rate, GB/s"):
        table.add_column(name, justify="right")
    for key, fit in sweep.fits(results).items():
        table.add_row(*key, f"{fit.overhead_us:.1f}", f"{fit.gb_per_s:.1f}")
    return table


def listing(device: torch.device) -> Iterator[Table]:
    """What there is to name: cases with their goals, and peers."""
    table = Table(
        "op", "case", "layout", "direction", "goal vs eager", "vs compile", title=f"cases ({device.type})"
    )
    for case in cases(device):
        for direction, goal in case.directions.items():
            goals = ("", "") if goal is None else (str(goal.eager), str(goal.compile or ""))
            table.add_row(case.op, case.name, case.layout, direction, *goals)
    yield table
    table = Table("peer", "what", "", title="peers")
    probe = next(cases(device))
    for peer in PEERS.values():
        table.add_row(peer.name, peer.about, peer.why_not(probe, "forward", device) or "")
    yield table


def compare(before: Path, after: Path, console: Console) -> bool:
    """Print what got slower from ``before`` to ``after``; whether nothing did.

    Raises:
        SchemaError: if one of them is another kind of file.
        OSError: if one cannot be read.
    """
    old, new = (read(path)["results"] for path in (before, after))
    found = report.slower(old, new)
    if found:
        console.print(report.slower_table(found))
    else:
        console.print(f"nothing of {len(new)} results is slower beyond noise")
    return not found
