"""The parity table on the CUDA kernels, in the builds of the emulation that find what results do not show.

Each runs in a process of its own, the sanitizer having to come first.
"""

import json
import os
import signal
import subprocess
import sys

import pytest
from emulation import build

from fastdl.backends import OPS

ROOT = build.ROOT

#: name -> the build, the environment beside it and the dtypes (all). ThreadSanitizer is slow, and a dtype
#: changes little of who waits for whom.
MODES = {
    "asan": ("asan", {}, ()),
    "tsan": ("tsan", {"FASTDL_EMULATION_ORDER": "random"}, ("float32", "bfloat16")),
    "races": ("tsan", {"FASTDL_EMULATION_UNORDERED": "1"}, ("float32",)),
    "turing": ("plain", {"FASTDL_EMULATION_CAPABILITY": "75", "FASTDL_EMULATION_ORDER": "backward"}, ()),
    "ampere": ("plain", {"FASTDL_EMULATION_CAPABILITY": "80", "FASTDL_EMULATION_ORDER": "random"}, ()),
    "many multiprocessors": ("plain", {"FASTDL_EMULATION_MULTIPROCESSORS": "132"}, ()),
}


def environment_of(mode):
    """Of a process in which the kernels run in this mode."""
    built, environment, _ = MODES[mode]
    try:
        sanitizer = build.preload(built)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    return {
        **os.environ,
        **sanitizer,
        **environment,
        "FASTDL_CUDA_EMULATION": str(build.build(built)),
        "TRITON_INTERPRET": "0",
        # the kernels run on one core, and what torch's threads do among themselves is not watched
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }


def run_parity(op, mode, folder):
    """What ``fastdl parity`` says of the op; an AssertionError if the process does not live to say it."""
    environment, dtypes = environment_of(mode), MODES[mode][2]
    path = folder / "parity.json"
    command = [sys.executable, "-m", "fastdl", "parity", "--op", op, "--backend", "cuda", "--device", "cpu"]
    command += ["--json", str(path), *(word for dtype in dtypes for word in ("--dtype", dtype))]
    log = folder / "log"
    with log.open("w") as out:  # what it said is there even if it does not end
        run = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=out, stderr=out, start_new_session=True
        )
        try:
            status = run.wait(timeout=1800)
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)  # its workers too
            status = "none: out of time"
    said = log.read_text()[-8000:]
    # 1: a case failed, and the report says which; anything else, such as a sanitizer's 66, is no report
    assert status in (0, 1) and path.exists(), f"exit status {status}\n{said}"
    return json.loads(path.read_text()), said


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("op", OPS)
def test_parity(op, mode, tmp_path):
    report, said = run_parity(op, mode, tmp_path)
    cases = report["cases"]
    assert cases
    bad = [
        f"{c['case']} {c['dtype']} {c['layout']} {c['direction']}: {c['note']}"
        for c in cases
        if c["verdict"] != "pass"
    ]
    assert not bad, "\n".join(bad[:20]) + said


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["asan", "tsan"])
def test_gradient_in_forward(mode):
    """The table has no such calls: its inputs are leaves, and small."""
    path = ROOT / "tests" / "test_gradient_in_forward.py"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        "cuda and pieces",
        str(path),
    ]
    run = subprocess.run(command, cwd=ROOT, env=environment_of(mode), capture_output=True, text=True)
    assert run.returncode == 0 and " passed" in run.stdout, run.stdout[-8000:] + run.stderr[-8000:]
