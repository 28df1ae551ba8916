"""What ``auto`` picks is what measured best: held against the committed results."""

from pathlib import Path

import pytest
from fastdl.bench import OURS, read
from fastdl.bench.report import KEY, spread

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
