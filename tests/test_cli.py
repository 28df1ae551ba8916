"""The command line, run as users run it."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
from support import DEVICE

import fastdl


def run(*args, env=None, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "fastdl", *args],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        | {"COLUMNS": "200", **(env or {})},
    )


def test_info():
    facts = json.loads(run("info", "--json").stdout)
    assert facts["fastdl"] == fastdl.__version__
    assert facts["backends"]["reference (cpu)"] == "available"
    assert "fastdl info" in run("info").stdout


def test_help_is_light():
    """A command imports what it runs when it runs: asking what there is waits for none of it."""
    code = """
        import sys
        from fastdl.cli import main
        try:
            main()
        except SystemExit as done:
            assert not done.code, done.code
        rooms = [f"fastdl.{room}" for room in ("bench", "data", "demo", "models", "parity", "train")]
        heavy = [m for m in ("triton", "torch._dynamo", "matplotlib", *rooms) if m in sys.modules]
        assert not heavy, heavy
    """
    command = [sys.executable, "-c", textwrap.dedent(code), "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "warm-up" in done.stdout, done.stderr


def test_parity_passes_and_reports(tmp_path):
    """Without a GPU the interpreter comes on by itself."""
    path = tmp_path / "parity.json"
    done = run("parity", "--op", "max_pool2d", "--dtype", "float32", "--json", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(path.read_text())
    assert report["summary"]["failed"] == 0
    assert report["summary"]["cases"] == len(report["cases"]) > 50
    served = {(c["backend"], c["verdict"]) for c in report["cases"]}
    assert ("triton", "pass") in served
    assert {c["device"] for c in report["cases"]} == {DEVICE}


def test_parity_fails_loudly(tmp_path):
    """A kernel that is wrong: exit status 1, the case by name. The fault is planted through sitecustomize."""
    (tmp_path / "sitecustomize.py").write_text(
        "import fastdl.reference as r\n"
        "right = r.max_pool2d\n"
        "calls = []\n"
        "def wrong(*args):\n"
        "    calls.append(1)\n"
        "    out = right(*args)\n"
        "    return out + 1 if len(calls) % 3 == 0 and not args[-1] else out\n"
        "r.max_pool2d = wrong\n"
    )
    path = tmp_path / "parity.json"
    done = run(
        *(
            "parity",
            "--op",
            "max_pool2d",
            "--backend",
            "reference",
            "--dtype",
            "float32",
            "--json",
            str(path),
        ),
        env={"PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 1
    assert "fail" in done.stdout
    assert json.loads(path.read_text())["summary"]["failed"] > 0


@pytest.mark.parametrize(
    "args", [("--op", "conv3d"), ("--backend", "cudnn"), ("--dtype", "float64"), ("--device", "cuda:99")]
)
def test_parity_refuses_what_it_does_not_know(args):
    if args[0] == "--device" and DEVICE == "cuda":
        pytest.skip("there is a GPU")
    done = run("parity", *args)
    assert done.returncode == 2
    assert args[1] in done.stderr


@pytest.mark.slow
def test_demo(tmp_path):
    """One epoch: parity holds, both train from the same start, pictures and JSON are written."""
    done = run("demo", "--epochs", "1", "--output", str(tmp_path / "out"))
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "out" / "demo.json").read_text())
    assert set(report["parity"]) == ({"as used", "triton"} if DEVICE == "cpu" else {"as used"})
    assert all(check["failure"] == "" for checks in report["parity"].values() for check in checks)
    stock, fast = report["results"]
    assert stock["losses"][0] == pytest.approx(fast["losses"][0], rel=1e-4)
    assert fast["losses"][-1] == pytest.approx(stock["losses"][-1], rel=0.05)
    for picture in ("digits.png", "curves.png"):
        assert (tmp_path / "out" / picture).read_bytes().startswith(b"\x89PNG")
