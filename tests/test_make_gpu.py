"""What `make gpu` does on a machine with a GPU, as far as one without can tell."""

import json
import sys
from pathlib import Path

import pytest
from fastdl.bench import command, gpu
from sanitizer.run import findings
from typer.testing import CliRunner

from fastdl import cli, parity


def python(code, seconds):
    return gpu.run([sys.executable, "-c", code], seconds)


def test_a_part_tells_how_it_ended():
    done = python("print('a PASSED'); print('b FAILED'); raise SystemExit(3)", 60)
    assert (done["status"], done["passed"], done["failed"]) == (3, 1, ["b FAILED"])


def test_a_part_out_of_time_may_still_write():
    waits = """
        import time
        try:
            print("begun", flush=True)
            time.sleep(100)
        except KeyboardInterrupt:
            print("written")
        """
    done = python("\n".join(line[8:] for line in waits.splitlines()), 5)
    assert done["status"] is None and "written" in done["output"] and done["seconds"] < 60


def test_a_second_run_goes_on(tmp_path, monkeypatch, capsys):
    """What ended well is not run again; what failed is; an unknown part is named."""
    runs = []

    def run(command, seconds):
        runs.append(command[0])
        return {"status": 1 if command == ["b"] and len(runs) < 3 else 0, "seconds": 0.0, "output": "..."}

    monkeypatch.setattr(gpu, "run", run)
    monkeypatch.setattr(gpu, "parts", lambda out: [("a", 1, ["a"]), ("b", 1, ["b"])])
    monkeypatch.setattr(gpu, "more_parts", lambda out: [("c", 1, ["c"])])
    assert gpu.main(tmp_path, []) == 1
    assert gpu.main(tmp_path, []) == 0
    assert gpu.main(tmp_path, ["c"]) == 0
    assert runs == ["a", "b", "b", "c"]
    assert set(json.loads((tmp_path / "gpu.json").read_text())) == {"a", "b", "c"}
    assert gpu.main(tmp_path, ["d"]) == 2 and "'d'" in capsys.readouterr().out


PARTS = {name: arguments for name, _, arguments in (*gpu.parts(Path("o")), *gpu.more_parts(Path("o")))}


def planned(monkeypatch, arguments):
    """What the command would measure on a GPU, if there is one or not: a plan."""
    plans = []
    monkeypatch.setattr(cli._common, "device", lambda name: name)
    monkeypatch.setattr(command, "run", lambda plan, *_: plans.append(plan) or [])
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    (plan,) = plans
    return plan


@pytest.mark.parametrize("name", [name for name, arguments in PARTS.items() if "bench" in arguments])
def test_what_is_asked_of_the_benchmarks_exists(monkeypatch, name):
    """Options, cases and peers, each of a kind that is measured there; nothing is measured here."""
    plan = planned(monkeypatch, PARTS[name][3:])
    assert plan.device.type == "cuda" and list(plan.jobs())
    ran = set(command.PEERS) if plan.ops else set()
    assert set(plan.peers) <= ran | (set(command.IMPLEMENTATIONS) if plan.models else set())


@pytest.mark.parametrize(
    "wrong", [["--peers", "eager,nobody"], ["--gaols"], ["conv3d"], ["--case", "none such"]]
)
def test_a_misspelt_part_would_be_seen(monkeypatch, wrong):
    with pytest.raises(AssertionError, match="Error"):
        planned(monkeypatch, ["bench", "--device", "cuda", *wrong])


@pytest.mark.parametrize("name", [name for name, arguments in PARTS.items() if "bench" not in arguments])
def test_what_else_is_asked_for_exists(monkeypatch, tmp_path, name):
    """Parity's options are parsed; files that are named are there."""
    arguments = PARTS[name]
    assert all((gpu.ROOT / path).exists() for path in arguments if path.startswith("tests/"))
    if "parity" in arguments:
        plans = []
        monkeypatch.setattr(cli._common, "device", lambda name: name)
        monkeypatch.setattr(parity, "plan", lambda *asked: plans.append(asked) or [])
        monkeypatch.chdir(tmp_path)
        result = CliRunner().invoke(cli.app, arguments[3:])
        assert result.exit_code == 0 and plans[0][2] == "cuda", result.output


def test_the_parts_fit_into_eight_minutes(tmp_path):
    assert sum(seconds for _, seconds, _ in gpu.parts(tmp_path)) <= 480  # the build comes on top


def test_reports_of_other_kernels_are_not_counted():
    """As compute-sanitizer prints them."""
    said = """
========= COMPUTE-SANITIZER
========= Invalid __global__ write of size 4 bytes
=========     at fastdl::out_of_bounds(float *)+0x90 in control.cu:9
=========     by thread (63,0,0) in block (0,0,0)
=========
========= Uninitialized __global__ memory read of size 4 bytes
=========     at void at::native::elementwise_kernel<4>(int)+0x90
=========         Host Frame: fastdl_batch_norm_forward in libfastdl_cuda.so
=========
========= Error: Race reported between Write access at fastdl::race(float *)+0x120 in control.cu:13
=========     and Read access at fastdl::race(float *)+0x1b0 in control.cu:14 [252 hazards]
=========
========= ERROR SUMMARY: 3 errors
"""
    assert len(findings(said)) == 2
