"""The kernels of csrc/cuda on a GPU under compute-sanitizer: ``python tests/sanitizer/run.py out.json``.

Every tool first gets a program with the fault that it is there to find (control.cu): one that finds nothing
says nothing. Then it watches the calls of tests/calls.py. The four run side by side.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")


def sanitizer() -> str | None:
    return shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")


def watch(tool: str, command: list[str], seconds: float) -> dict:
    """What ``tool`` says of the kernels of fastdl that the command launches."""
    # initcheck must see every kernel that writes; what it finds elsewhere is not counted
    only = [] if tool == "initcheck" else ["--kernel-name", "kns=fastdl"]
    # every tensor an allocation of its own, so that its end is its end
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    begin = time.monotonic()
    try:
        run = subprocess.run(
            [sanitizer(), "--tool", tool, *only, *command],
            capture_output=True, text=True, timeout=seconds, env=environment,
        )  # fmt: skip
        status, said = run.returncode, run.stdout + run.stderr
    except subprocess.TimeoutExpired as late:
        status, said = None, "".join((out or b"").decode() for out in (late.stdout, late.stderr))
    return {
        "status": status,
        "seconds": round(time.monotonic() - begin, 1),
        "calls": said.count("called: "),
        "found": len(findings(said)),
        "output": said[-6000:],
    }


def findings(said: str) -> list[str]:
    """The reports, each a run of lines between empty ones, that have a kernel of ours in them."""
    lines = [line.removeprefix("=========").strip() for line in said.splitlines() if line.startswith("=====")]
    reports = re.split(r"\n\n+", "\n".join(lines))
    return [report for report in reports if re.search(r"\bat .*fastdl", report)]


def check(tool: str, control: Path, seconds: float) -> dict:
    begin = time.monotonic()
    planted = watch(tool, [str(control), str(TOOLS.index(tool))], seconds)
    left = seconds - (time.monotonic() - begin)
    ours = watch(tool, [sys.executable, __file__, "--calls"], left)
    if not planted["found"]:
        verdict = "the tool missed a planted fault"
    elif ours["found"]:
        verdict = f"{ours['found']} faults"
    else:
        verdict = "clean" if ours["status"] == 0 else "did not end"
    return {"verdict": verdict, "planted": planted, "ours": ours}


def calls() -> None:
    """What is watched: every op forward and backward, inputs copied to the GPU."""
    sys.path[:0] = [str(ROOT / "tests")]
    import torch
    from calls import CALLS, leaves

    from fastdl import backends

    device = torch.device("cuda")
    for dtype in (torch.float32, torch.float16):
        for name, call in CALLS.items():
            inputs = leaves(call, device, dtype)
            with backends.use_backend("cuda"):
                out = call.function(*inputs)
            torch.autograd.grad(out, [inputs[i] for i in call.grads], torch.ones(out.shape).to(out))
            torch.cuda.synchronize()
            print(f"called: {name} {dtype}", flush=True)


def main(path: Path, seconds: float) -> int:
    if sanitizer() is None:
        report = {"missing": "compute-sanitizer"}
    else:
        nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
        with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(len(TOOLS)) as pool:
            begin, control = time.monotonic(), Path(folder) / "control"
            subprocess.run(
                [nvcc, "-lineinfo", "-arch=native", "-o", str(control), str(HERE / "control.cu")], check=True
            )
            left = seconds - (time.monotonic() - begin)
            checks = pool.map(lambda tool: check(tool, control, left), TOOLS)
            report = dict(zip(TOOLS, checks, strict=True))
    path.write_text(json.dumps(report, indent=1) + "\n")
    for tool, result in report.items():
        print(f"{tool}: {result if isinstance(result, str) else result['verdict']}")
    return int(any(isinstance(r, dict) and r["verdict"] != "clean" for r in report.values()))


if __name__ == "__main__":
    if sys.argv[1] == "--calls":
        calls()
    else:
        sys.exit(main(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 100))
