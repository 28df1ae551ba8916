"""``fastdl bench --tune``: from measurements to the table that ``auto`` reads (``fastdl.tuned``).

A case costs the sum of its directions. Cases of a class are averaged as ratios (geometric mean). One answer
for a whole op and dtype is worth more than the last per cents, since then no call has to be looked at: if a
backend is nowhere beaten beyond noise, it is taken everywhere. Otherwise each class has its own.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich import box
from rich.table import Table
from torch._subclasses.fake_tensor import FakeTensorMode

from fastdl import tuned

from . import cases
from .peers import EAGER, OURS
from .report import Result, SchemaError, put, spread

#: Within this the simpler backend is taken (``tuned.SIMPLEST``).
TIE = 1.03

#: Whom to measure. On a CPU ours is the C++ kernels as ``auto`` has them serve, leaving dense convolutions to
#: torch; by the name "cpu" they serve everything.
PEERS = {"cpu": ("reference", OURS), "cuda": ("reference", "cuda", "triton")}

#: Those of ``PEERS`` whose errors fail the command.
OWN = ("reference", "cuda", "triton", OURS)

#: What was the same if two tables may be one.
VERSIONS = ("fastdl", "torch", "triton", "cuda", "cpu", "threads", "gpu")


class Cost(NamedTuple):
    """Of a case by a backend: all directions together, and how far noise reaches, as a part of it."""

    ms: float
    noise: float


#: Per class, per case, by backend.
Costs = dict[tuned.Class, dict[tuple[str, str], dict[str, Cost]]]


def table(environment: Mapping[str, Any], results: Iterable[Result]) -> dict[str, Any]:
    """The table that results of one device amount to, as plain data.

    Raises:
        SchemaError: if nothing was measured, or not what ``auto`` chooses from, or cases that are not known.
    """
    results = list(results)
    kind = kind_of(results)
    ops: dict[str, dict[str, Any]] = defaultdict(dict)
    for (op, dtype), found in costs(environment, results).items():
        entries = decide(found, tuned.SIMPLEST[kind])
        if entries:
            ops[op][dtype] = {str(shape): entry._asdict() for shape, entry in sorted(entries.items())}
    if not ops:
        raise SchemaError("nothing was measured that one backend could be chosen by")
    return {"schema": tuned.SCHEMA, "kind": kind, "environment": dict(environment), "ops": dict(ops)}


def kind_of(results: Iterable[Result]) -> str:
    """The kind of device that was measured."""
    return "cuda" if {"graph", "host"} & {r["timer"] for r in results} else "cpu"


def costs(environment: Mapping[str, Any], results: Iterable[Result]) -> dict[tuple[str, str], Costs]:
    """What each case cost by each backend, per op and dtype; backends that were ever wrong are left out.

    Raises:
        SchemaError: for what ``auto`` did not choose freely, and for cases that are not known.
    """
    results = [r for r in results if r["op"] != "step" and not r.get("sweep")]
    kind = kind_of(results)
    held = environment.get("tables", {}).get(f"table ({kind})", "none")
    if environment.get("FASTDL_BACKEND") != "auto" or not held.startswith("none"):
        raise SchemaError("expected results without FASTDL_BACKEND and without a table in force")
    known = _classes(kind)
    names = {EAGER: "reference", **{name: name for name in tuned.SIMPLEST[kind]}}
    if kind == "cpu":
        built = environment.get("backends", {}).get("cpu (cpu)", "available") == "available"
        names["cpu"], names[OURS] = "", "cpu" if built else ""
    rows: dict[tuple[str, str, str, str], dict[str, list[Result]]] = defaultdict(lambda: defaultdict(list))
    out: set[tuple[str, str, str]] = set()
    alone = {(r["op"], r["case"], r["layout"]) for r in results if r["implementation"] == "reference"}
    for r in results:
        case, name = (r["op"], r["case"], r["layout"]), r["implementation"]
        if case not in known:
            raise SchemaError(f"there is no case {' '.join(case)}: measure anew")
        backend = "" if name == EAGER and case in alone else names.get(name, "")
        if not backend or r["status"] == "skipped" or r["timer"] == "l2_hot":
            continue
        if r["status"] == "measured":
            rows[(*case, r["dtype"])][backend].append(r)
        else:
            out.add((known[case][0], r["dtype"], backend))
    found: dict[tuple[str, str], Costs] = defaultdict(lambda: defaultdict(dict))
    for (op, case, layout, dtype), by_backend in rows.items():
        function, shape = known[op, case, layout]
        found[function, dtype][shape][case, layout] = {
            backend: _cost(some)
            for backend, some in by_backend.items()
            if (function, dtype, backend) not in out
        }
    return found


def _cost(rows: list[Result]) -> Cost:
    """The sum of the directions; on a GPU a call takes as long as the slower of the GPU and the host."""
    slowest: dict[str, Result] = {}
    for r in rows:
        known = slowest.get(r["direction"])
        if known is None or known["median_ms"] < r["median_ms"]:
            slowest[r["direction"]] = r
    ms = sum(r["median_ms"] for r in slowest.values())
    return Cost(ms, sum(r["median_ms"] * spread(r) for r in slowest.values()) / ms)


def _classes(kind: str) -> dict[tuple[str, str, str], tuple[str, tuned.Class]]:
    """Every case of a kind of device by op, name and layout: its function and class."""
    found = {}
    for case in cases(torch.device(kind)):
        with FakeTensorMode():
            tensors = case.draw(torch.device("cpu"), torch.float32)
            function = case.function or case.op
            shape = tuned.classify(function, tensors["input"], tensors.get("weight"))
        found[case.op, case.name, case.layout] = function, shape
    return found


def decide(costs: Costs, order: tuple[str, ...]) -> dict[tuned.Class, tuned.Entry]:
    """Which backend to take for each class; ``order``: the simplest first."""
    times = {shape: _mean(cases.values()) for shape, cases in costs.items()}
    times = {shape: found for shape, found in times.items() if found}
    best = {shape: min(found, key=lambda name: found[name].ms) for shape, found in times.items()}
    everywhere = [
        name
        for name in order
        if all(
            name in found
            and found[name].ms <= found[best[shape]].ms * (TIE + found[name].noise + found[best[shape]].noise)
            for shape, found in times.items()
        )
    ]
    whole = _mean([case for cases in costs.values() for case in cases.values()])
    one = _simplest({name: whole[name].ms for name in everywhere if name in whole}, order)
    return {
        shape: tuned.Entry(
            one or _simplest({name: cost.ms for name, cost in found.items()}, order),
            {name: round(found[name].ms / found[best[shape]].ms, 3) for name in order if name in found},
            len(costs[shape]),
        )
        for shape, found in times.items()
    }


def _mean(cases: Iterable[Mapping[str, Cost]]) -> dict[str, Cost]:
    """Geometric means over cases, of the backends that have all of them."""
    cases = list(cases)
    names = set.intersection(*(set(case) for case in cases))
    return {
        name: Cost(
            statistics.geometric_mean(case[name].ms for case in cases),
            statistics.fmean(case[name].noise for case in cases),
        )
        for name in names
    }


def _simplest(times: Mapping[str, float], order: tuple[str, ...]) -> str:
    """Of what is within ``TIE`` of the fastest, the first in ``order``; "" of nothing."""
    fastest = min(times.values(), default=0.0)
    return next((name for name in order if name in times and times[name] <= TIE * fastest), "")


def write(path: Path, table: dict[str, Any]) -> bool:
    """The table into its file, in one step; whether what the file knew of other ops and dtypes was kept.

    It is not where it was measured on other versions or another device.
    """
    ops, kept = table["ops"], False
    try:
        tuned.read(path)
        old = json.loads(path.read_text())
        kept = all(old["environment"].get(key) == table["environment"].get(key) for key in VERSIONS)
    except (OSError, ValueError, LookupError):
        pass
    if kept:
        ops = {op: {**old["ops"].get(op, {}), **ops.get(op, {})} for op in {**old["ops"], **ops}}
    put(path, {**table, "ops": ops})
    return kept


def shown(table: dict[str, Any]) -> Table:
    """What was decided, with the evidence."""
    columns = ("op", "dtype", "class", "cases", "backend")
    grid = Table(*columns, title="tuned", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    names = tuned.SIMPLEST[table["kind"]]
    for name in names:
        grid.add_column(f"{name}, time / best", justify="right")
    for op, dtypes in table["ops"].items():
        for dtype, classes in dtypes.items():
            for shape, e in classes.items():
                ratios = [f"{e['ratios'][name]:.2f}" if name in e["ratios"] else "" for name in names]
                grid.add_row(op, dtype, shape, str(e["cases"]), e["backend"], *ratios)
    return grid
