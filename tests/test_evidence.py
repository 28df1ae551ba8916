"""What ``auto`` picks is what measured best: held against the committed results."""

from pathlib import Path

import pytest
import torch
from fastdl.bench import OURS, read, tune
from fastdl.bench.report import KEY, spread

from fastdl import backends, tuned

HERE = Path(__file__).parent.parent / "bench" / "results"
RESULTS = sorted(path for path in HERE.rglob("bench*.json") if path.parent.name != "local")  # committed ones
ROWS = [
    pytest.param(r, id=" ".join((path.parent.name, *(r[k] for k in KEY))))
    for path in RESULTS
    for r in read(path)["results"]
    if r["implementation"] == OURS and r["timer"] != "l2_hot"
]


def test_there_are_results():
    assert ROWS


@pytest.mark.parametrize("row", ROWS)
def test_never_slower_than_eager(row):
    """Beyond 3 % and the spread of the measurement; nor wrong, nor failed."""
    assert row["status"] == "measured", row.get("note")
    assert row["speedup_vs_eager"] >= 0.97 - spread(row)


def shapes(path):
    """Of every shape that was measured: what each backend cost, and what ``auto`` picks on that machine."""
    report = read(path)
    facts, kind = report["environment"], tune.kind_of(report["results"])
    architecture = "cpu" if kind == "cpu" else f"sm_{facts['compute_capability'].replace('.', '')}"
    brought = tuned.HERE / f"{architecture}.json"
    table = tuned.read(brought) if brought.exists() else None
    for (op, dtype), classes in tune.costs(facts, report["results"]).items():
        for shape, cases in classes.items():
            order = backends.order(op, kind, getattr(torch, dtype), shape, table)
            there = [b for b, _ in order if facts["backends"].get(f"{b} ({kind})") == "available"]
            for case, costs in cases.items():
                name = " ".join((path.parent.name, op, *case, dtype))
                yield pytest.param(costs, [*there, "reference"][0], id=name)


SHAPES = [shape for path in RESULTS for shape in shapes(path)]


@pytest.mark.parametrize("costs, chosen", SHAPES)
def test_within_3_percent_of_the_best_backend(costs, chosen):
    """Beyond the spread of both measurements; all directions of the shape together."""
    assert len(costs) > 1
    best = min(costs.values())
    assert costs[chosen].ms <= best.ms * (1.03 + best.noise + costs[chosen].noise)


def test_a_slower_choice_is_seen():
    """The same of the worst there is."""
    behind = 0
    for shape in SHAPES:
        costs, _ = shape.values
        try:
            test_within_3_percent_of_the_best_backend(costs, max(costs, key=costs.get))
        except AssertionError:
            behind += 1
    assert behind > len(SHAPES) / 2


def test_on_a_cpu_no_table_is_needed():
    """What the committed results amount to is what the order that is built in says: one answer everywhere."""
    report = read(HERE / "cpu" / "bench.json")
    found = tune.table(report["environment"], report["results"])
    for op, dtypes in found["ops"].items():
        ((backend, _),) = backends.order(op, "cpu", torch.float32, None, None)
        assert {entry["backend"] for entry in dtypes["float32"].values()} == {backend}
