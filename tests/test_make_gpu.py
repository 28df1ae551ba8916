"""What `make gpu` does on a machine with a GPU, as far as one without can tell."""

import json
import sys
from pathlib import Path

import pytest
import torch
from fastdl.bench import gpu
from sanitizer.run import findings
from typer.testing import CliRunner

from fastdl import cli


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


@pytest.mark.parametrize(
    "part", [p for p in (*gpu.parts(Path("o")), *gpu.more_parts(Path("o"))) if "bench" in p[2]]
)
def test_what_is_asked_of_the_benchmarks_exists(part):
    """The options are parsed; on a machine without a GPU it ends at the device."""
    _, _, (_, _, _, *arguments) = part
    result = CliRunner().invoke(cli.app, arguments)
    assert (
        result.exit_code == 2 and "no such device here: cuda" in result.output
    ) or torch.cuda.is_available()


def test_every_part_fits_into_nine_minutes(tmp_path):
    assert sum(seconds for _, seconds, _ in gpu.parts(tmp_path)) <= 480  # and a minute for the build


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
