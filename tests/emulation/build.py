"""Compiles csrc/cuda/*.cu with g++ and the runtime here into libraries that run the kernels on the CPU.

``python tests/emulation/build.py`` builds all three and prints where they are; while an op is in the making,
``... plain --name mine --sources csrc/cuda/library.cu csrc/cuda/max_pool2d*.cu`` does with its files alone.
Objects are kept by the hash of everything that goes into them: a changed .cu is one compilation and one link.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
KERNELS = ROOT / "csrc" / "cuda"
BUILD = ROOT / "build" / "emulation"

MODES = ("plain", "asan", "tsan")

# Static variables that are initialised, if only by zero, must not lie in the .bss: that is shared memory.
FLAGS = [
    "-std=c++17", "-g1", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique", "-fno-strict-aliasing",
    "-fno-zero-initialized-in-bss", "-ffp-contract=off", "-Wall", "-Wno-unknown-pragmas",
    "-fno-tree-loop-distribute-patterns",
]  # fmt: skip
KERNEL_FLAGS = {
    "plain": ["-O1"],
    "asan": [
        "-O1", "-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=all",
        "-fno-omit-frame-pointer",
    ],
    "tsan": ["-O1", "-fsanitize=thread", "-fno-omit-frame-pointer"],
}  # fmt: skip
RUNTIME_FLAGS = {"plain": ["-O2"], "asan": ["-O2", "-DEMULATION_ASAN"], "tsan": ["-O2", "-DEMULATION_TSAN"]}

_ACCESSES = [f"{way}{size}" for way in ("read", "write") for size in (1, 2, 4, 8, 16)]
_ACCESSES += [f"unaligned_{way}{size}" for way in ("read", "write") for size in (2, 4, 8, 16)]
WRAPPED = [f"__tsan_{name}" for name in [*_ACCESSES, "read_range", "write_range"]] + ["memcpy", "memset"]


def compiler() -> str:
    return os.environ.get("CXX", "g++")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Only one process at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    if done.stderr:
        print(done.stderr, file=sys.stderr, end="")


def _included(source: Path) -> list[Path]:
    """The file and, transitively, what it includes of ours."""
    found: dict[Path, None] = {}
    queue = [source]
    while queue:
        path = queue.pop()
        if path in found:
            continue
        found[path] = None
        for name in re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(), re.MULTILINE):
            for folder in (path.parent, HERE, KERNELS):
                if (candidate := (folder / name).resolve()).is_file():
                    queue.append(candidate)
                    break
    return sorted(found)


def _digest(parts: Iterable[bytes | str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else part.encode())
        digest.update(b"\0")
    return digest.hexdigest()[:20]


def _object(source: Path, flags: list[str]) -> Path:
    """The compiled source, from the cache if nothing has changed."""
    includes = [f"-I{HERE}", f"-I{KERNELS}"]
    command = [compiler(), *FLAGS, *flags, *includes, "-x", "c++", "-c", str(source)]
    key = _digest([*command, *(p.read_bytes() for p in _included(source))])
    path = BUILD / "objects" / f"{source.stem}-{key}.o"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        _run([*command, "-o", str(part)])
        part.rename(path)
    else:
        path.touch()
    return path


def build(mode: str, sources: Iterable[Path] | None = None, name: str = "fastdl_cuda") -> Path:
    """The library ``build/emulation/lib<name>_<mode>.so`` of the sources (csrc/cuda/*.cu), up to date."""
    kernels = sorted(KERNELS.glob("*.cu")) if sources is None else [Path(p) for p in sources]
    runtime = [p for p in sorted(HERE.glob("*.cpp")) if p.stem != "races" or mode == "tsan"]
    with locked(BUILD / f"{name}_{mode}.lock"):
        jobs = [(p, [*KERNEL_FLAGS[mode], f"-DFASTDL_EMULATED={mode}"]) for p in kernels]
        jobs += [(p, RUNTIME_FLAGS[mode]) for p in runtime]
        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
            objects = list(pool.map(lambda job: _object(*job), jobs))
        sanitize = [flag for flag in KERNEL_FLAGS[mode] if flag.startswith("-fsanitize=")]
        wrap = [f"-Wl,--wrap={symbol}" for symbol in WRAPPED] if mode == "tsan" else []
        link = [compiler(), "-shared", "-Wl,-Bsymbolic", *sanitize, *wrap]
        link += [*map(str, objects), "-ldl", "-pthread"]
        library = BUILD / f"lib{name}_{mode}.so"
        stamp = library.with_suffix(".key")
        key = _digest(link)
        if not (library.exists() and stamp.exists() and stamp.read_text() == key):
            part = library.with_suffix(f".{os.getpid()}.part")
            _run([*link, "-o", str(part)])
            part.rename(library)
            stamp.write_text(key)
            _forget_old_objects()
    return library


def program(source: Path, mode: str) -> Path:
    """A small program that loads such libraries, with the sanitizer linked in."""
    sanitize = [flag for flag in KERNEL_FLAGS[mode] if flag.startswith("-fsanitize=")]
    command = [compiler(), "-O1", *sanitize, str(source), "-ldl", "-pthread"]
    path = BUILD / f"{source.stem}_{mode}-{_digest([*command, source.read_bytes()])}"
    with locked(BUILD / f"{path.name}.lock"):
        if not path.exists():
            part = path.with_suffix(f".{os.getpid()}.part")
            _run([*command, "-o", str(part)])
            part.rename(path)
    return path


def _forget_old_objects(keep: int = 600) -> None:
    objects = sorted((BUILD / "objects").glob("*.o"), key=lambda p: p.stat().st_mtime)
    for path in objects[:-keep]:
        path.unlink(missing_ok=True)


#: Torch's memory is filled with 0xFF as it is allocated, that unwritten outputs be seen.
OPTIONS = {
    "plain": {"MALLOC_PERTURB_": "1"},
    "asan": {
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0:handle_abort=0:"
        "max_malloc_fill_size=1073741824:malloc_fill_byte=255",
        "UBSAN_OPTIONS": "print_stacktrace=1:abort_on_error=1",
    },
    "tsan": {
        "TSAN_OPTIONS": "halt_on_error=1:exitcode=66:report_signal_unsafe=0:history_size=4:atexit_sleep_ms=0"
    },
}


def preload(mode: str) -> dict[str, str]:
    """The environment in which any process can load the library: sanitizers must come first."""
    if mode == "plain":
        return OPTIONS[mode]
    wanted = {"asan": ["libasan.so", "libstdc++.so"], "tsan": ["libtsan.so", "libstdc++.so"]}[mode]
    paths = [
        subprocess.run(
            [compiler(), f"-print-file-name={name}"], capture_output=True, text=True
        ).stdout.strip()
        for name in wanted
    ]
    if missing := [p for p in paths if not os.path.isabs(p)]:
        raise FileNotFoundError(f"{compiler()} has no {', '.join(missing)}")
    return {"LD_PRELOAD": " ".join(paths), **OPTIONS[mode]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modes", nargs="*", default=MODES, help="plain, asan, tsan (all)")
    parser.add_argument("--sources", nargs="+", type=Path, help="these .cu alone (all of csrc/cuda)")
    parser.add_argument("--name", default="fastdl_cuda", help="of the library (fastdl_cuda)")
    options = parser.parse_args()
    for mode in options.modes:
        print(build(mode, options.sources and [p.resolve() for p in options.sources], options.name))
