"""`fastdl suite`: what a row says, that an interruption loses nothing, what is accepted."""

import json

import pytest
from fastdl.bench import tables
from test_train import _tiny_data, command_line, tiny  # noqa: F401 the fixture replaces the digits

from fastdl import models
from fastdl.train import suite
from fastdl.train.recipes import ACCEPTED, RECIPES, VARIANTS, Accepted
from fastdl.train.tasks import TASKS

pytest.importorskip("matplotlib")


def test_accepted_figures_are_of_runs_and_of_metrics_they_have():
    runs = suite.runs()
    assert set(ACCEPTED) == set(RECIPES) | set(VARIANTS) == {t for t, (_, r) in runs.items() if r is not None}
    for title, bounds in ACCEPTED.items():
        task = TASKS[runs[title][1].task]
        for bound in bounds:
            assert bound.metric in (task.label, *task.further, "test loss")
            assert bound.at_most == (bound.metric == "test loss" or task.sign < 0)


def test_accepted():
    assert Accepted("accuracy", 0.9).met(0.9) and not Accepted("accuracy", 0.9).met(0.89)
    assert Accepted("pixels off", 3.0, at_most=True).met(3.0)
    assert not Accepted("pixels off", 3.0, at_most=True).met(float("nan"))


def test_the_rows_are_all_networks_and_their_variants():
    rows = suite.runs()
    assert {name for name, _ in rows.values()} == set(models.names())
    assert list(suite.runs(["net"])) == ["net", "net, momentum"]
    with pytest.raises(ValueError, match=r"expected networks among linear, .*, got 'yolox'"):
        suite.runs(["yolox"])


def suite_command(*args):
    return command_line(*args, command="suite")


@pytest.fixture
def quick(monkeypatch):
    """Nothing is compiled, one epoch."""
    monkeypatch.setattr(suite, "TIMED", ("eager", "fastdl"))
    for name in ("linear", "net"):
        monkeypatch.setitem(suite.RECIPES, name, RECIPES[name].changed(epochs=1, batch=40))
    monkeypatch.setattr(suite, "VARIANTS", {})


def test_what_a_run_leaves(tmp_path, quick):
    done = suite_command("net", "--seconds", 0, "--output", tmp_path)
    assert done.exit_code == 1, done.output  # one epoch is not enough
    report = json.loads((tmp_path / "suite.json").read_text())
    row = report["rows"]["net"]
    assert row["parity"]["parameters"] == 21_840
    assert row["parity"]["taken"] == row["parity"]["calls"] > 0 and not row["parity"]["failed"]
    accuracy = row["score"]["metrics"]["accuracy"]
    assert accuracy["at least"] == 0.925 and accuracy["met"] is False
    assert accuracy["stock"] == pytest.approx(accuracy["converted"], abs=0.03)
    assert {r["implementation"]: r["status"] for r in row["time"]["rows"]} == {
        "eager": "measured",
        "fastdl": "measured",
    }
    line = next(
        line for line in tables.suite(tmp_path / "suite.json", tmp_path).splitlines() if "| net " in line
    )
    assert "| 21,840 | 7 of 7 |" in line and "at least 0.925 (missed)" in line


def test_an_interrupted_suite_goes_on(tmp_path, quick, monkeypatch):
    """What was measured is kept, what is missing is measured, and a part that is named is measured anew."""
    measure, seen = suite._measure, []

    def interrupted(part, title, *rest):
        seen.append((title, part))
        if seen[-1] == ("net", "score"):
            raise KeyboardInterrupt
        return measure(part, title, *rest) if part == "parity" else part

    args = "linear", "net", "--output", tmp_path
    monkeypatch.setattr(suite, "_measure", interrupted)
    monkeypatch.setattr(suite, "line", lambda *_: "")
    assert suite_command(*args).exit_code != 0
    first = json.loads((tmp_path / "suite.json").read_text())["rows"]
    assert set(first["linear"]) == {"network", "parity", "score", "time"}
    assert set(first["net"]) == {"network", "parity"}

    seen.clear()
    monkeypatch.setattr(suite, "_measure", lambda part, title, *_: seen.append((title, part)) or part)
    monkeypatch.setattr(suite, "missed", lambda _: [])
    assert suite_command(*args).exit_code == 0
    assert seen == [("net", "score"), ("net", "time")]
    assert suite_command(*args, "--part", "time").exit_code == 0
    assert seen[2:] == [("linear", "time"), ("net", "time")]
    done = suite_command(*args, "--seed", 1)
    assert done.exit_code == 2 and "and seed 1, to go on with" in done.stderr


def test_what_is_missed():
    good = {"parity": {"failed": {}}, "score": {"metrics": {"accuracy": {"met": True}, "AUC": {}}}}
    bad = {"score": {"metrics": {"accuracy": {"met": True}, "AUC": {"met": False}}}}
    wrong = {"parity": {"failed": {"gradient of fc.weight": "too far"}}}
    assert suite.missed({"rows": {"a": good, "b": bad, "c": wrong, "d": {}}}) == ["b", "c"]
