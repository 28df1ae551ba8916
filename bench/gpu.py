"""What ``make gpu`` runs on a machine with a GPU: ``python -m fastdl.bench.gpu FOLDER [PART ...]``.

Each part has its time and writes a file of its own; one that fails or runs out of time costs the others
nothing. gpu.json tells of all of them: what was run, how it ended, how long it took, the end of what it said.
A second run into the same folder goes on where the first stopped: parts that ended well are not run again.
Parts can be named; some run only then, since they may take half an hour together.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

PYTHON = sys.executable
ROOT = Path(__file__).resolve().parent.parent


def parts(out: Path) -> list[tuple[str, int, list[str]]]:
    """Name, seconds and command, what matters most first: eight minutes in all, without the build."""
    pytest = [PYTHON, "-m", "pytest", "-v", "--continue-on-collection-errors", "-m", "not slow"]
    parallel = ["-n", str(min(os.cpu_count() or 1, 12)), "--dist", "load"]
    parity = [PYTHON, "-m", "fastdl", "parity", "--device", "cuda", "--backend"]
    # on a GPU these files run csrc/cuda as no emulation can; compiling Triton's kernels would take too long
    bench = [PYTHON, "-m", "fastdl", "bench", "--device", "cuda", "--peers"]
    steps = "eager,fastdl,eager_graph,fastdl_graph"
    kernels = ["tests/kernels", "tests/test_layouts.py", "tests/test_autograd.py", "tests/test_short_way.py"]
    return [
        ("info", 20, [PYTHON, "-m", "fastdl", "info", "--json"]),
        ("parity-cuda", 60, [*parity, "cuda", "--json", str(out / "parity_cuda.json")]),
        ("tests-gpu", 50, [*pytest, *parallel, "tests/test_gpu.py"]),
        ("tests-cuda", 60, [*pytest, *parallel, *kernels, "-k", "cuda and not triton"]),
        ("sanitizer", 70, [PYTHON, "tests/sanitizer/run.py", str(out / "sanitizer.json"), "65"]),
        ("bench", 90, [*bench, "eager,cuda,triton,fastdl", "--goals", "--json", str(out / "bench.json")]),
        ("steps", 50, [*bench, steps, "--only-models", "--json", str(out / "bench_steps.json")]),
        ("parity-triton", 80, [*parity, "triton", "--json", str(out / "parity_triton.json")]),
    ]


def more_parts(out: Path) -> list[tuple[str, int, list[str]]]:
    """Those that run only when they are named."""
    bench = [PYTHON, "-m", "fastdl", "bench", "--device", "cuda", "--json"]
    every = "eager,compile,fastdl,cuda,triton,cudnn_relu,liger,quack,flag_gems"
    return [
        ("bench-compile", 500, [*bench, str(out / "bench_compile.json"), "--goals", "--peers", every]),
        ("bench-all", 500, [*bench, str(out / "bench_all.json"), "--peers", "eager,cuda,triton,fastdl"]),
        ("sweep", 400, [*bench, str(out / "bench_sweep.json"), "--sweep", "--peers", "eager,fastdl"]),
        ("steps-compile", 300, [*bench, str(out / "bench_steps_compile.json"), "--only-models",
                                "--peers", "eager,compile,fastdl"]),
    ]  # fmt: skip


def run(command: list[str], seconds: float) -> dict:
    """How the command ended; all that it started is gone afterwards."""
    begin = time.monotonic()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored below a shell's `&`
        cwd=ROOT,
    )
    status = None
    try:
        said, _ = process.communicate(timeout=seconds)
        status = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGINT)  # upon which pytest writes what it has
        try:
            said, _ = process.communicate(timeout=8)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            said, _ = process.communicate()
    failed = [line.strip() for line in said.splitlines() if re.search(r"\b(FAILED|ERROR)\b", line)]
    return {
        "status": status,
        "seconds": round(time.monotonic() - begin, 1),
        "passed": len(re.findall(r"\bPASSED\b", said)),
        "failed": failed[:200],
        "output": said[-4000:],
    }


def main(out: Path, names: list[str]) -> int:
    out.mkdir(parents=True, exist_ok=True)
    file = out / "gpu.json"
    report = json.loads(file.read_text()) if file.exists() else {}
    known = {name: (seconds, command) for name, seconds, command in [*parts(out), *more_parts(out)]}
    for name in names:
        if name not in known:
            print(f"expected parts among {', '.join(known)}, got {name!r}")
            return 2
    for name in names or [name for name, *_ in parts(out)]:
        if report.get(name, {}).get("status") == 0:
            print(f"{name}: done before")
            continue
        seconds, command = known[name]
        report[name] = run(command, seconds)
        status, took = report[name]["status"], report[name]["seconds"]
        print(f"{name}: {'out of time' if status is None else status or 'ok'}, {took} s", flush=True)
        if status != 0:
            print(report[name]["output"], flush=True)
        file.write_text(json.dumps(report, indent=1) + "\n")  # so far
    return int(any(part["status"] != 0 for part in report.values()))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve(), sys.argv[2:]))
