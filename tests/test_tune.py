"""``fastdl bench --tune``: which backend results speak for, and what is written when."""

import json

import pytest
import torch
import torch.nn.functional as T
from fastdl.bench import command, peers, report, runner, tune
from fastdl.bench.case import Case, Work
from tables import BUILT, SMALL, chosen, content, entry, served
from typer.testing import CliRunner

import fastdl
from fastdl import backends, bench, cli, tuned
from fastdl.parity.cases import randn
from fastdl.tuned import Class

ORDER = ("reference", "cuda", "triton")


def decide(*classes):
    """Classes of one case each, times by backend; a pair has its noise."""
    costs = {
        Class("contiguous", 4 * i): {
            ("case", "contiguous"): {
                name: tune.Cost(*(time if isinstance(time, tuple) else (time, 0.0)))
                for name, time in times.items()
            }
        }
        for i, times in enumerate(classes)
    }
    return [entry.backend for entry in tune.decide(costs, ORDER).values()]


@pytest.mark.parametrize(
    "times, expected",
    [
        ({"reference": 2.0, "cuda": 1.0, "triton": 1.5}, "cuda"),
        ({"reference": 2.0, "cuda": 1.5, "triton": 1.0}, "triton"),
        ({"reference": 2.0, "cuda": 1.029, "triton": 1.0}, "cuda"),  # a tie
        ({"reference": 1.029, "cuda": 1.01, "triton": 1.0}, "reference"),
        ({"reference": 1.031, "cuda": 1.01, "triton": 1.0}, "cuda"),
        ({"reference": 1.04, "cuda": 1.031, "triton": 1.0}, "triton"),
        ({"reference": (1.1, 0.2), "triton": (1.0, 0.2)}, "triton"),  # noise alone makes no tie
        ({"triton": 1.0}, "triton"),
    ],
)
def test_the_fastest_is_taken_and_ties_go_to_the_simpler(times, expected):
    assert decide(times) == [expected]


@pytest.mark.parametrize(
    "classes, expected",
    [
        ([{"cuda": 1.0, "triton": 2.0}, {"cuda": 2.0, "triton": 1.0}], ["cuda", "triton"]),
        # nowhere beaten: one answer, though the reference ties in one class
        ([{"reference": 1.0, "cuda": 1.0}, {"reference": 2.0, "cuda": 1.0}], ["cuda", "cuda"]),
        # beaten within noise alone
        (
            [{"reference": (1.0, 0.02), "cuda": (1.045, 0.0)}, {"reference": 2.0, "cuda": 1.0}],
            ["cuda", "cuda"],
        ),
        ([{"reference": 1.0, "cuda": 1.045}, {"reference": 2.0, "cuda": 1.0}], ["reference", "cuda"]),
        # a class that one backend has no times of
        ([{"reference": 3.0, "cuda": 1.0}, {"reference": 1.0}], ["cuda", "reference"]),
    ],
)
def test_one_answer_where_one_will_do(classes, expected):
    assert decide(*classes) == expected


def test_cases_of_a_class_are_averaged_as_ratios():
    """A long case does not outvote a short one: 2 x slower and 3 x faster is faster."""
    costs = {
        Class("contiguous", 4): {
            ("long", ""): {"reference": tune.Cost(100, 0), "cuda": tune.Cost(200, 0)},
            ("short", ""): {"reference": tune.Cost(0.3, 0), "cuda": tune.Cost(0.1, 0)},
        }
    }
    (found,) = tune.decide(costs, ORDER).values()
    assert found.backend == "cuda" and found.cases == 2
    assert found.ratios == {"reference": round((3 / 2) ** 0.5, 3), "cuda": 1.0}


NAMED = next(case for case in bench.cases(torch.device("cuda")) if case.op == "max_pool2d")


def row(implementation, ms, direction="forward", timer="graph", status="measured", case=NAMED):
    key = {"op": case.op, "case": case.name, "dtype": "bfloat16", "layout": case.layout}
    key |= {"direction": direction, "timer": timer, "implementation": implementation, "status": status}
    return key | ({"median_ms": ms, "p20_ms": ms, "p80_ms": ms} if status == "measured" else {"note": "why"})


FREE = {"FASTDL_BACKEND": "auto"}


def table_of(*rows, **environment):
    found = tune.table({**FREE, **environment}, rows)
    (classes,) = [classes for dtypes in found["ops"].values() for classes in dtypes.values()]
    (entry,) = classes.values()
    return entry


def test_directions_are_summed():
    rows = [row("eager", 2), row("cuda", 1), row("triton", 1.2)]
    assert table_of(*rows)["backend"] == "cuda"
    assert table_of(
        *rows, *[row("cuda", 2, "both"), row("triton", 1.5, "both")], row("eager", 4, "both")
    ) == {
        "backend": "triton",
        "ratios": {"reference": round(6 / 2.7, 3), "cuda": round(3 / 2.7, 3), "triton": 1.0},
        "cases": 1,
    }


def test_a_call_takes_as_long_as_the_slower_of_host_and_gpu():
    graph = [row("eager", 2), row("cuda", 1.2), row("triton", 1)]
    host = [row("eager", 5, timer="host"), row("cuda", 1, timer="host"), row("triton", 3, timer="host")]
    assert table_of(*graph)["backend"] == "triton"
    assert table_of(*graph, *host)["ratios"] == {"reference": round(5 / 1.2, 3), "cuda": 1.0, "triton": 2.5}
    assert table_of(*graph, row("triton", 9, timer="l2_hot"))["backend"] == "triton"


def test_the_reference_itself_goes_before_eager():
    assert table_of(row("eager", 1), row("cuda", 2), row("reference", 3))["ratios"] == {
        "reference": 1.5,
        "cuda": 1.0,
    }


@pytest.mark.parametrize("status", ["wrong", "failed"])
def test_what_is_wrong_is_never_taken(status):
    """Not even for the cases that it got right."""
    rows = [row("eager", 2), row("cuda", 1), row("triton", 1.5)]
    assert table_of(*rows, row("cuda", 0, "both", status=status)) == {
        "backend": "triton",
        "ratios": {"reference": round(2 / 1.5, 3), "triton": 1.0},
        "cases": 1,
    }
    assert "cuda" in table_of(*rows, row("cuda", 0, "both", status="skipped"))["ratios"]


@pytest.mark.parametrize(
    "rows, environment, message",
    [
        ([], {}, "nothing was measured"),
        ([row("cuda", 0, status="failed")], {}, "nothing was measured"),
        ([row("cuda", 1) | {"case": "of last year"}], {}, "of last year"),
        ([row("cuda", 1)], {"FASTDL_BACKEND": "cuda"}, "without FASTDL_BACKEND"),
        ([row("cuda", 1)], {"tables": {"table (cuda)": "/some/table.json"}}, "without a table"),
    ],
)
def test_results_that_make_no_table(rows, environment, message):
    with pytest.raises(report.SchemaError, match=message):
        tune.table({**FREE, **environment}, rows)


CASE = Case(
    "max_pool2d",
    "small",
    {"input": randn(1, 2, 8, 8)},
    T.max_pool2d,
    lambda tensors, options, direction: Work(1000, 2000),
    {"kernel_size": 2},
)


@pytest.fixture
def small(monkeypatch, folder):
    """The tables of a CPU are one small case; the user's file for it."""
    for module in (command, tune):
        monkeypatch.setattr(module, "cases", lambda *_: iter([CASE]))
    return tuned.user_path(*tuned.device("cpu", None))


def invoke(*arguments):
    arguments = ["bench", "--device", "cpu", "--seconds", "0", "--tune", *arguments]
    return CliRunner().invoke(cli.app, arguments, env={"COLUMNS": "200"})


def test_tuning_writes_what_auto_then_goes_by(small):
    result = invoke()
    assert result.exit_code == 0, result.output
    assert f"{small}: written" in result.output.replace("\n", "")
    found = tuned.read(small).ops["max_pool2d"]["float32"][Class("contiguous", 4)]
    assert set(found.ratios) == {"reference", *(["cpu"] if BUILT else [])}
    assert min(found.ratios.values()) == 1.0 and found.cases == 1
    assert chosen(SMALL) == ("max_pool2d", found.backend, f"measured: {small}")


def test_a_former_table_has_no_say_in_the_tuning(small, own):
    """What is measured as the C++ kernels is not what the table takes instead."""
    own(content(max_pool2d={"contiguous 2^4": entry("reference")}))
    seen = []
    ours = peers.Peer(
        "fastdl",
        "",
        lambda *_: None,
        lambda case: lambda **k: seen.append(served(SMALL)) or T.max_pool2d(**k),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(peers.PEERS, "fastdl", ours)
        assert invoke().exit_code == 0
    assert {tuple(s) for s in seen} == {("cpu" if BUILT else "reference",)}


@pytest.mark.parametrize("broken", ["wrong", "failed"])
def test_a_wrong_backend_fails_the_tuning_and_is_not_taken(small, monkeypatch, broken):
    def function(input, kernel_size):
        if broken == "failed":
            raise RuntimeError("no such kernel")
        return T.max_pool2d(input, kernel_size) + 1

    monkeypatch.setitem(
        peers.PEERS, "fastdl", peers.Peer("fastdl", "", lambda *_: None, lambda case: function)
    )
    assert invoke().exit_code == 1
    (found,) = tuned.read(small).ops["max_pool2d"]["float32"].values()
    assert found.backend == "reference" and set(found.ratios) == {"reference"}


def test_an_interrupted_tuning_writes_nothing(small, monkeypatch):
    measure, calls = runner.measure, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(command, "measure", interrupted)
    assert invoke().exit_code != 0 and len(calls) == 2
    assert not list(small.parent.iterdir())
    assert backends._tables


def test_an_interrupted_writing_leaves_the_former(small, own, monkeypatch):
    own(content(max_pool2d={"contiguous 2^4": entry("reference")}))
    before = small.read_text()
    monkeypatch.setattr(report.json, "dumps", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    assert invoke().exit_code != 0
    assert small.read_text() == before and list(small.parent.iterdir()) == [small]


def test_other_dtypes_and_ops_are_kept(small):
    assert invoke().exit_code == 0
    again = invoke("max_pool2d", "--dtype", "bfloat16")
    assert again.exit_code == 0 and "added to what it knew" in again.output
    assert set(tuned.read(small).ops["max_pool2d"]) == {"float32", "bfloat16"}
    known = json.loads(small.read_text())
    known["environment"]["torch"] = "1.13"
    known["ops"]["batch_norm"] = known["ops"]["max_pool2d"]
    small.write_text(json.dumps(known))
    anew = invoke()
    assert anew.exit_code == 0 and "written" in anew.output
    assert set(tuned.read(small).ops) == {"max_pool2d"}


def test_from_a_file(small, tmp_path):
    results, output = tmp_path / "results.json", tmp_path / "some" / "table.json"
    assert invoke("--json", str(results)).exit_code == 0
    small.unlink()
    measured = invoke("--from", str(results), "--output", str(output))
    assert measured.exit_code == 0, measured.output
    assert set(tuned.read(output).ops) == {"max_pool2d"} and not small.exists()
    assert invoke("--from", str(results)).exit_code == 0 and small.exists()
    there = report.read(results)
    there["environment"]["cpu"] = "Another CPU"
    results.write_text(json.dumps(there))
    elsewhere = invoke("--from", str(results))
    assert elsewhere.exit_code == 2 and "this machine's device" in elsewhere.output


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["--case", "2x2"], "--case"),
        (["--direction", "forward"], "--direction"),
        (["--layout", "contiguous"], "--layout"),
        (["--goals"], "--goals"),
        (["--models"], "--models"),
        (["--sweep", "--peers", "eager"], "--sweep and no --peers"),
        (["--compare", "a", "b"], "--compare"),
        (["--list"], "--list"),
        (["--from", "a", "--json", "b"], "--json"),
        (["--from", "no such file"], "no such file"),
    ],
)
def test_tuning_is_of_everything(folder, arguments, named):
    result = invoke(*arguments)
    assert result.exit_code == 2 and named in result.output


@pytest.mark.parametrize("arguments", [["--from", "a.json"], ["--output", "a.json"]])
def test_options_of_the_tuning_alone(arguments):
    result = CliRunner().invoke(cli.app, ["bench", *arguments])
    assert result.exit_code == 2 and "--tune" in result.output and arguments[0] in result.output


def test_tuning_chooses_freely(folder):
    with fastdl.use_backend("reference"):
        result = invoke()
    assert result.exit_code == 2 and "FASTDL_BACKEND" in result.output
