"""Every kernel compiles for every architecture, fits into it and uses its matrix instructions.

The compiler needs no GPU, but kernels that the interpreter does not hold: hence a process of its own.
"""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

aot = pytest.importorskip("fastdl.kernels.aot", reason="needs Triton")

#: What Triton multiplies half-precision matrices with; it has nothing for Turing (75) since 3.3.
MATRIX = {
    "80": "mma.sync",
    "86": "mma.sync",
    "89": "mma.sync",
    "90": "wgmma",
    "100": "tcgen05",
    "120": "mma.sync",
}


def compile_op(op, arch, folder):
    """The records of ``python -m fastdl.kernels.aot``: one per distinct kernel."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "fastdl.kernels.aot", "--op", op, "--arch", arch, "--json", "rows.json"]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return json.loads((folder / "rows.json").read_text())


def check(op, arch, rows):
    found = []
    for row in rows:
        resources = aot.Resources(**{name: row[name] for name in row if name not in ("op", "case")})
        found += [f"{row['kernel']} ({row['case']}) {problem}" for problem in aot.problems(resources)]
    assert not found, "\n".join(found)
    directions = {row["case"].rsplit(maxsplit=1)[1] for row in rows}
    assert {"forward", "backward"} <= directions
    if op == "conv2d" and arch in MATRIX:
        for case in ("ResNet 3x3 bf16 NHWC", "ResNet 3x3 fp16 NCHW"):
            for direction, kernels in (("forward", 1), ("backward", 2)):  # backward: data and weight
                used = [r["matrix"] for r in rows if r["case"] == f"{case} {direction}" and r["matrix"]]
                assert used == [MATRIX[arch]] * kernels, (case, direction, used)


@pytest.mark.parametrize("op", aot.OPS)
def test_compiles_for_hopper(op, tmp_path):
    check(op, "90", compile_op(op, "90", tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("arch", [arch for arch in aot.TARGETS if arch != "90"])
@pytest.mark.parametrize("op", aot.OPS)
def test_compiles_for(op, arch, tmp_path):
    check(op, arch, compile_op(op, arch, tmp_path))


def test_summary_gives_the_worst_of_each_op_and_architecture():
    first = aot.Resources("k", "90", registers=64, spills=8, shared=1024, matrix="wgmma", matrix_count=4)
    second = aot.Resources("l", "90", registers=96, spills=0, shared=512, matrix="wgmma", matrix_count=1)
    results = [{"90": first, "75": RuntimeError()}, {"90": second, "75": RuntimeError()}]
    rows = [aot.Row(aot.Case("conv2d", "a case", None), result) for result in results]
    hopper, turing = json.loads(aot.summary(rows))["worst"]
    assert hopper == {
        "op": "conv2d", "target": "90", "kernels": 2, "failed": 0, "registers": 96, "spills": 8,
        "shared": 1024, "matrix": {"wgmma": 2},
    }  # fmt: skip
    assert turing["failed"] == 2 and turing["kernels"] == 0 and turing["registers"] is None


def test_says_that_the_interpreter_has_no_code(tmp_path):
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "fastdl.kernels.aot", "--op", "max_pool2d", "--arch", "90"]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode != 0
    assert "run without TRITON_INTERPRET in the environment" in run.stderr


@pytest.mark.parametrize("spills, shared, status", [(16, 0, 0), (20, 0, 1), (0, 1 << 20, 1)])
def test_a_kernel_over_a_limit_fails_the_compilation(monkeypatch, capsys, spills, shared, status):
    """`python -m fastdl.kernels.aot` exits with 1, as docs/testing.md says."""
    resources = aot.Resources("k", "90", 64, spills, shared, "", 0)
    launch = SimpleNamespace(kernel=SimpleNamespace(__name__="k"))
    row = aot.Row(aot.Case("conv2d", "a case", launch), {"90": resources})
    monkeypatch.setattr(aot, "default_launches", lambda *ops: [])
    monkeypatch.setattr(aot, "compile_cases", lambda *_: [row])
    assert aot.main(["--arch", "90"]) == status
    assert ("conv2d k (a case) on 90: " in capsys.readouterr().out) is bool(status)
