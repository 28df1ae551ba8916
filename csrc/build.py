"""How the kernel libraries are compiled: shared objects without torch, by ninja.

cpu     libfastdl_cpu_<capability>.so, the same sources once per capability of the CPU
cuda    libfastdl_cuda.so, by nvcc, for each architecture of a list
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

CSRC = Path(__file__).resolve().parent

#: What each CPU library may use beyond the architecture's baseline; fastdl/native picks the last that runs.
CAPABILITIES: dict[str, list[str]] = {"default": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    CAPABILITIES["avx2"] = ["-mavx2", "-mfma", "-mf16c"]
    CAPABILITIES["avx512"] = [
        *CAPABILITIES["avx2"],
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"),
    ]

CXX_FLAGS = [
    *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"),
    *("-Wall", "-Wextra", "-Wno-psabi", "-Wno-uninitialized", "-Wno-maybe-uninitialized"),
]
NVCC_FLAGS = [
    *("-std=c++17", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden", "-Xfatbin", "-compress-all"),
    *("--threads", "1", "-lineinfo", "--expt-relaxed-constexpr"),
]

#: What the CUDA library is compiled for where TORCH_CUDA_ARCH_LIST does not say and no GPU is seen.
ARCHITECTURES = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0")


def compiler() -> str | None:
    """The C++ compiler, as distutils and torch find it: $CXX, else c++, g++ or clang++."""
    named = os.environ.get("CXX")
    return (
        shutil.which(named.split()[0])
        if named
        else next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    )


def nvcc() -> str | None:
    """nvcc of $CUDA_HOME, else of the PATH or its usual place."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    places = [f"{home}/bin/nvcc"] if home else ["nvcc", "/usr/local/cuda/bin/nvcc"]
    return next(filter(None, map(shutil.which, places)), None)


def gencodes(architectures: list[str]) -> list[str]:
    """nvcc's flags for architectures such as "9.0" or "12.0+PTX"; the last also as PTX, for later GPUs."""
    flags = []
    for i, name in enumerate(architectures):
        number = re.fullmatch(r"(\d+)\.(\d+)([af]?)(\+PTX)?", name.strip())
        if number is None:
            raise ValueError(f"TORCH_CUDA_ARCH_LIST: expected numbers such as 8.0 or 9.0+PTX, got {name!r}")
        arch = f"{number[1]}{number[2]}{number[3]}"
        flags.append(f"-gencode=arch=compute_{arch},code=sm_{arch}")
        if number[4] or i == len(architectures) - 1:
            flags.append(f"-gencode=arch=compute_{arch},code=compute_{arch}")
    return flags


def architectures() -> list[str]:
    """$TORCH_CUDA_ARCH_LIST, else those of the GPUs at hand, else all that nvcc knows of ARCHITECTURES."""
    named = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if named:
        return re.split(r"[;, ]+", named.strip())
    import torch

    if torch.cuda.is_available():
        devices = range(torch.cuda.device_count())
        return sorted({"{}.{}".format(*torch.cuda.get_device_capability(i)) for i in devices}, key=float)
    known = subprocess.run([nvcc(), "--list-gpu-arch"], capture_output=True, text=True).stdout.split()
    return [name for name in ARCHITECTURES if f"compute_{name.replace('.', '')}" in known]


class Ninja:
    """A build.ninja in the making."""

    def __init__(self) -> None:
        self.lines = [
            "ninja_required_version = 1.5",
            "rule cxx",
            "  command = $compiler -MD -MF $out.d $flags -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule link",
            "  command = $compiler -shared $flags $in -o $out",
        ]
        self.targets: list[str] = []

    def library(
        self, target: str, sources: list[Path], compiler: str, flags: list[str], link: list[str]
    ) -> None:
        """``target``.so from ``sources``."""
        objects = []
        for source in sources:
            out = f"{target}/{source.stem}.o"
            objects.append(out)
            self._edge(out, "cxx", [str(source)], compiler, flags)
        self._edge(f"lib{target}.so", "link", objects, compiler, link)
        self.targets.append(f"lib{target}.so")

    def _edge(self, out: str, rule: str, sources: list[str], compiler: str, flags: list[str]) -> None:
        escape = lambda text: text.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")  # noqa: E731
        self.lines += [
            f"build {out}: {rule} {' '.join(map(escape, sources))}",
            f"  compiler = {compiler}",
            f"  flags = {' '.join(flags)}",
        ]

    def run(self, folder: Path) -> list[Path]:
        """Compile into ``folder``, $MAX_JOBS at a time; the libraries made."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "build.ninja").write_text("\n".join([*self.lines, ""]))
        jobs = os.environ.get("MAX_JOBS")
        command = [sys.executable, "-m", "ninja", "-C", str(folder), *(["-j", jobs] if jobs else [])]
        if subprocess.run([*command, "--quiet"]).returncode:
            raise RuntimeError("the kernels do not compile; FASTDL_NATIVE=0 installs fastdl without them")
        return [folder / target for target in self.targets]


def build(folder: Path, cuda: list[str] | None) -> list[Path]:
    """Compile the CPU libraries and, for the architectures ``cuda``, the CUDA one, into ``folder``."""
    ninja = Ninja()
    sources = sorted((CSRC / "cpu").glob("*.cpp"))
    for capability, flags in CAPABILITIES.items():
        defines = [f"-DFASTDL_CAPABILITY={capability}"]
        ninja.library(f"fastdl_cpu_{capability}", sources, compiler(), [*CXX_FLAGS, *flags, *defines], [])
    if cuda:
        add_cuda(ninja, cuda)
    return ninja.run(folder)


def add_cuda(ninja: Ninja, architectures: list[str]) -> None:
    """The CUDA library, by nvcc."""
    sources = sorted((CSRC / "cuda").glob("*.cu"))
    flags = [*NVCC_FLAGS, *gencodes(architectures), f"-DFASTDL_ARCHITECTURES={','.join(architectures)}"]
    ninja.library("fastdl_cuda", sources, nvcc(), flags, ["-cudart", "static"])
