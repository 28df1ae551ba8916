"""Results as a file and as a table, and what got slower between two files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from .peers import EAGER, OURS, OWN

SCHEMA = "fastdl.bench/1"
KEY = ("op", "case", "dtype", "layout", "direction", "timer", "implementation")

Result = dict[str, Any]


class SchemaError(ValueError):
    """A file that ``fastdl bench`` did not write, or a version of it that wrote otherwise."""


def write(path: Path, environment: dict[str, Any], results: list[Result]) -> None:
    """The whole file anew: a benchmark that is interrupted leaves what it measured."""
    put(path, {"schema": SCHEMA, "environment": environment, "results": results})


def put(path: Path, content: dict[str, Any]) -> None:
    """JSON into a file in one step: it is the old one or the new one, whenever anything ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(json.dumps(content, indent=1) + "\n")
    part.replace(path)


def read(path: Path) -> dict[str, Any]:
    """A file that ``write`` wrote.

    Raises:
        SchemaError: if it is another file.
        OSError: if it cannot be read.
    """
    try:
        report = json.loads(path.read_text())
    except ValueError as error:
        raise SchemaError(f"{path} is not JSON: {error}") from None
    schema = report.get("schema") if isinstance(report, dict) else None
    if schema != SCHEMA:
        raise SchemaError(f"{path}: expected schema {SCHEMA!r}, got {schema!r}")
    missing = {key for result in report["results"] for key in KEY if key not in result}
    if missing:
        raise SchemaError(f"{path}: results without {', '.join(sorted(missing))}")
    return report


def table(results: list[Result], title: str) -> Table:
    """One case in one direction by one timer: a line per implementation."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", min_width=12)
    for name in (
        "ms",
        "p20 to p80",
        "GB/s",
        "% copy",
        "TFLOP/s",
        "% matmul",
        "vs eager",
        "vs compile",
        "error",
    ):
        table.add_column(name, justify="right")
    for r in results:
        if r["status"] != "measured":
            table.add_row(r["implementation"], f"[red]{r['status']}[/]")
            continue
        table.add_row(
            r["implementation"],
            f"{r['median_ms']:.4g}",
            f"{r['p20_ms']:.4g} to {r['p80_ms']:.4g}",
            _figure(r, "gb_per_s", "{:.1f}"),
            _figure(r, "percent_of_copy", "{:.0f}"),
            _figure(r, "tflop_per_s", "{:.2f}"),
            _figure(r, "percent_of_matmul", "{:.0f}"),
            _figure(r, "speedup_vs_eager", "{:.2f}"),
            _figure(r, "speedup_vs_compile", "{:.2f}"),
            _figure(r, "error", "{:.1e}"),
        )
    return table


def tables(results: list[Result]) -> Iterator[Table | str]:
    """Every case as a table of its own; what was not measured by name and reason, if it went wrong."""
    groups: dict[tuple[str, ...], list[Result]] = {}
    for r in results:
        if r["status"] != "skipped":
            groups.setdefault(tuple(r[key] for key in KEY[:-1]), []).append(r)
    for (op, case, dtype, layout, direction, timer), some in groups.items():
        yield table(some, f"{op} {case}, {dtype}, {layout}, {direction} ({timer})")
        for r in some:
            if r["status"] != "measured":
                yield f"{r['implementation']}: {r['note']}"


def overview(results: list[Result]) -> Table:
    """Ours alone, a line per case and direction, with goals; a missed one is red."""
    times = {tuple(r[key] for key in KEY): r["median_ms"] for r in results if r["status"] == "measured"}
    table = Table(
        title="fastdl against PyTorch, milliseconds (medians)", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for name in ("op", "case", "layout", "direction", "timer"):
        table.add_column(name)
    for name in ("eager", "fastdl", "vs eager", "goal", "compile", "vs compile", "goal"):
        table.add_column(name, justify="right")
    for r in results:
        key = tuple(r[k] for k in KEY)
        if r["implementation"] != OURS or key not in times:
            continue
        compiled = times.get((*key[:-1], "compile"))
        table.add_row(
            *(r[k] for k in ("op", "case", "layout", "direction", "timer")),
            f"{times.get((*key[:-1], EAGER), float('nan')):.4g}",
            f"{r['median_ms']:.4g}",
            _judged(r, "vs_eager"),
            _figure(r, "goal_vs_eager", "{:.2f}"),
            f"{compiled:.4g}" if compiled else "",
            _judged(r, "vs_compile"),
            _figure(r, "goal_vs_compile", "{:.2f}"),
        )
    return table


def _figure(result: Result, key: str, form: str) -> str:
    return form.format(result[key]) if result.get(key) is not None else ""


def _judged(result: Result, which: str) -> str:
    text = _figure(result, f"speedup_{which}", "{:.2f}")
    goal = result.get(f"goal_{which}")
    if not text or goal is None:
        return text
    return f"[{'green' if reached(result, which) else 'red'}]{text}[/]"


def headline(results: list[Result]) -> list[Result]:
    """Ours, measured against eager by the timers that pages quote."""
    return [
        r
        for r in results
        if r["implementation"] == OURS and r["timer"] in ("wall", "graph") and "speedup_vs_eager" in r
    ]


def reached(result: Result, which: str) -> bool | None:
    """Whether a goal is reached; None where there is none or nothing to hold against it."""
    figure, goal = result.get(f"speedup_{which}"), result.get(f"goal_{which}")
    return None if figure is None or goal is None else figure >= goal


def spread(result: Result) -> float:
    """Half of what lies between p20 and p80, as a part of the median."""
    return (result["p80_ms"] - result["p20_ms"]) / result["median_ms"] / 2


def slower(before: list[Result], after: list[Result]) -> list[tuple[Result, float, float]]:
    """Ours that got slower beyond noise: (result after, its time over before's, what noise explains).

    Where both files have eager's time, it is the ratio to eager that is compared, so that a machine that was
    busier, or another one, is not taken for slower code. Noise is 3 % and both spreads.
    """
    old = {tuple(r[key] for key in KEY): r for r in before if r["status"] == "measured"}
    new = {tuple(r[key] for key in KEY): r for r in after if r["status"] == "measured"}
    found = []
    for key, result in new.items():
        earlier = old.get(key)
        if earlier is None or key[-1] not in OWN:
            continue
        reference = (*key[:-1], EAGER)
        involved = [(earlier, result)]
        if reference in old and reference in new:
            involved.append((new[reference], old[reference]))
        ratio = 1.0
        for a, b in involved:
            ratio *= b["median_ms"] / a["median_ms"]
        noise = 1.03 + sum(spread(r) for pair in involved for r in pair)
        if ratio > noise:
            found.append((result, ratio, noise))
    return found


def slower_table(found: list[tuple[Result, float, float]]) -> Table:
    """``slower`` as a table."""
    columns = (*KEY, "time after / before", "noise explains")
    table = Table(*columns, title="slower than before", box=box.SIMPLE_HEAD)
    for result, ratio, noise in sorted(found, key=lambda item: -item[1]):
        table.add_row(*(str(result[key]) for key in KEY), f"[red]{ratio:.2f}[/]", f"{noise:.2f}")
    return table


def summary(results: list[Result]) -> str:
    """How many goals are reached, what was not right, and where ours is slower than eager."""
    goals = [reached(r, which) for r in results for which in ("vs_eager", "vs_compile")]
    goals = [g for g in goals if g is not None]
    bad = [r for r in results if r["status"] in ("wrong", "failed")]
    ours = [r for r in results if r["implementation"] == OURS and r.get("speedup_vs_eager")]
    behind = [r for r in ours if r["speedup_vs_eager"] < 0.97]
    return (
        f"{len(ours)} rows of ours, {sum(goals)} of {len(goals)} goals reached, "
        f"{len(behind)} slower than eager by more than 3 %, {len(bad)} wrong or failed"
    )
