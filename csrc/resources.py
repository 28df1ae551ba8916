"""What nvcc makes of every kernel of csrc/cuda on every GPU, found out without one.

``python csrc/resources.py`` compiles the .cu files for each architecture and prints a line per kernel:
registers, spills and static shared memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from build import NVCC_FLAGS, nvcc

CSRC = Path(__file__).resolve().parent
CACHE = CSRC.parent / "build" / "nvcc"

ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "120")
OPS = ("conv2d", "batch_norm", "cross_entropy", "max_pool2d", "affine_grid_sample", "tps_grid_sample")

#: Static shared memory of one block; more of it does not compile. Registers of one thread.
SHARED_LIMIT, REGISTER_LIMIT = 48 << 10, 255


@dataclasses.dataclass(frozen=True)
class Resources:
    """What one compiled kernel takes."""

    file: str
    kernel: str
    target: str
    registers: int  # per thread
    spills: int  # bytes per thread stored to local memory for want of registers
    stack: int  # bytes per thread of local memory; more than spills where an array is indexed at run time
    shared: int  # bytes of static shared memory per block

    @property
    def op(self) -> str:
        return next((op for op in OPS if self.file.startswith(op)), "")


_ENTRY = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)' for 'sm_(?P<target>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<spills>\d+) bytes spill stores.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


def parse(file: str, text: str) -> list[Resources]:
    """The kernels that ``ptxas -v`` speaks of, by their mangled names."""
    found = []
    for match in _ENTRY.finditer(text):
        shared = re.search(r"(\d+) bytes smem", match["rest"])
        numbers = {name: int(match[name]) for name in ("registers", "spills", "stack")}
        target = match["target"].rstrip("af")
        found.append(
            Resources(file, match["kernel"], target, **numbers, shared=int(shared[1]) if shared else 0)
        )
    return found


def problems(resources: Resources) -> list[str]:
    """What must not be."""
    found = []
    if resources.spills:
        found.append(f"spills {resources.spills} bytes")
    if resources.shared > SHARED_LIMIT:
        found.append(f"takes {resources.shared} bytes of static shared memory")
    if resources.registers > REGISTER_LIMIT:
        found.append(f"takes {resources.registers} registers")
    return found


def demangle(names: Iterable[str]) -> dict[str, str]:
    """Mangled names to ``kernel<arguments>``, without namespaces and parameters."""
    names = list(dict.fromkeys(names))
    run = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True)
    plain = run.stdout.splitlines() if run.returncode == 0 else names
    short = {}
    for name, text in zip(names, plain, strict=True):
        text = re.sub(r"\(anonymous namespace\)::|_GLOBAL__N__\w+::|fastdl::|^void ", "", text)
        depth = 0
        for i, letter in enumerate(text):
            depth += {"<": 1, ">": -1}.get(letter, 0)
            if letter == "(" and depth == 0:
                text = text[:i]
                break
        short[name] = text
    return short


def _included(source: Path) -> list[Path]:
    """The file and, transitively, what it includes of ours."""
    found, queue = set(), [source.resolve()]
    while queue:
        path = queue.pop()
        if path in found or not path.is_file():
            continue
        found.add(path)
        names = re.findall(r'^\s*#\s*include\s*"([^"]+)"', path.read_text(), re.MULTILINE)
        queue += [(path.parent / name).resolve() for name in names]
    return sorted(found)


def _digest(source: Path, command: list[str]) -> str:
    version = subprocess.run([command[0], "--version"], capture_output=True).stdout
    digest = hashlib.sha256("\0".join(command).encode() + version)
    for path in _included(source):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:20]


def compile_file(source: Path, arch: str) -> list[Resources]:
    """The kernels of a .cu on an architecture. What was compiled before comes from build/nvcc."""
    flags = [flag for flag in NVCC_FLAGS if flag != "-lineinfo"]
    command = [str(nvcc()), *flags, f"-arch=sm_{arch}", "-cubin", "-Xptxas", "-v"]
    cached = CACHE / f"{source.stem}-{arch}-{_digest(source, command)}.json"
    if cached.exists():
        return [Resources(**row) for row in json.loads(cached.read_text())]
    with tempfile.TemporaryDirectory() as folder:
        run = subprocess.run([*command, "-o", f"{folder}/cubin", str(source)], capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"{source.name} does not compile for sm_{arch}:\n{run.stdout}{run.stderr}")
    rows = parse(source.stem, run.stdout + run.stderr)
    names = demangle(row.kernel for row in rows)
    rows = [dataclasses.replace(row, kernel=names[row.kernel]) for row in rows]
    CACHE.mkdir(parents=True, exist_ok=True)
    part = cached.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps([dataclasses.asdict(row) for row in rows]))
    part.rename(cached)
    return rows


def compile_all(sources: Iterable[Path], archs: Iterable[str]) -> list[Resources]:
    """Every kernel of the sources on every architecture."""
    jobs = [(source, arch) for arch in archs for source in sources]
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
        return [row for rows in pool.map(lambda job: compile_file(*job), jobs) for row in rows]


def summary(rows: Iterable[Resources]) -> str:
    """The version and, for each op and architecture, the worst of its kernels, as JSON of one line each."""
    columns = ("registers", "spills", "stack", "shared")
    groups: dict[tuple[str, str], list[Resources]] = {}
    for row in rows:
        groups.setdefault((row.op, row.target), []).append(row)
    lines = [
        {"op": op, "target": arch, "kernels": len(group)}
        | {name: max(getattr(row, name) for row in group) for name in columns}
        for (op, arch), group in groups.items()
    ]
    text = subprocess.run([str(nvcc()), "--version"], capture_output=True, text=True).stdout
    version = re.search(r"V([\d.]+)", text)
    about = (
        "per op and architecture: how many kernels there are, the most registers per thread, bytes of spills "
        "and of local memory per thread and bytes of static shared memory per block"
    )
    versions = json.dumps({"nvcc": version[1] if version else "?"})
    head = f'{{\n"about": "{about}",\n"versions": {versions},\n"worst": [\n'
    return head + ",\n".join(map(json.dumps, lines)) + "\n]\n}\n"


def table(rows: Iterable[Resources]) -> str:
    """A line per kernel: registers on each architecture, and what else it takes where it takes something."""
    rows = list(rows)
    archs = list(dict.fromkeys(row.target for row in rows))
    kernels: dict[tuple[str, str], dict[str, Resources]] = {}
    for row in rows:
        kernels.setdefault((row.file, row.kernel), {})[row.target] = row
    lines = [f"{'registers of the kernels on sm_':80}" + "".join(f"{arch:>5}" for arch in archs) + "  shared"]
    for (file, kernel), by_arch in kernels.items():
        name = f"{file}: {kernel}"
        cells = "".join(f"{by_arch[a].registers if a in by_arch else '-':>5}" for a in archs)
        shared = max(row.shared for row in by_arch.values())
        lines.append(f"{name[:79]:80}{cells}{shared:8}")
        lines += [f"    sm_{row.target}: {problem}" for row in by_arch.values() for problem in problems(row)]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", nargs="*", type=Path, help="default: csrc/cuda/*.cu")
    parser.add_argument("--arch", action="append", choices=ARCHITECTURES, help="repeatable; default: all")
    parser.add_argument("--json", metavar="FILE", help="also write the rows there")
    parser.add_argument("--summary", metavar="FILE", help="also write a line per op and architecture there")
    options = parser.parse_args(argv)
    if nvcc() is None:
        parser.error("there is no nvcc: set CUDA_HOME")
    sources = [path.resolve() for path in options.sources] or sorted((CSRC / "cuda").glob("*.cu"))
    rows = compile_all(sources, options.arch or ARCHITECTURES)
    print(table(rows))
    if options.json:
        Path(options.json).write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
    if options.summary:
        Path(options.summary).write_text(summary(rows))
    return int(any(problems(row) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
