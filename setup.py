"""The package, its C++ and CUDA kernels, and what pyproject.toml cannot describe of the two.

fastdl._C (csrc/bindings.cpp, calls*.cpp) is built by torch.utils.cpp_extension wherever torch and a C++
compiler are; the kernel libraries beside it by csrc/build.py. Environment variables:

    FASTDL_NATIVE=0        no C++ at all: plain Python, Triton and PyTorch
    FORCE_CUDA=1           the CUDA kernels although torch is a CPU build (nvcc is needed, no GPU)
    FASTDL_CUDA=0          no CUDA kernels although there are nvcc and a CUDA build of torch
    TORCH_CUDA_ARCH_LIST   the architectures to compile them for, such as "8.0;9.0+PTX"
    MAX_JOBS               how many compilers at once
"""

import contextlib
import json
import os
import shutil
import sys
import warnings
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "csrc"))

import build as kernels  # noqa: E402  csrc/build.py

version = next(
    line.split('"')[1]
    for line in (ROOT / "fastdl" / "__init__.py").read_text().splitlines()
    if line.startswith("__version__")
)


def missing() -> str | None:
    """Why the C++ part cannot be built here; None if it can."""
    if os.environ.get("FASTDL_NATIVE", "1") == "0":
        return "FASTDL_NATIVE=0"
    if sys.platform == "win32":
        return "the C++ kernels are for Linux and macOS"
    if kernels.compiler() is None:
        return "there is no C++ compiler"
    for module in ("torch", "ninja"):
        try:
            __import__(module)
        except ImportError:
            return f"{module} is not installed (pip install --no-build-isolation lets the build see yours)"
    return None


def cuda_architectures() -> list[str] | None:
    """What to compile the CUDA kernels for; None: leave them out."""
    import torch

    forced = os.environ.get("FORCE_CUDA", "0") == "1"
    wanted = forced or (torch.version.cuda is not None and os.environ.get("FASTDL_CUDA", "1") != "0")
    if not wanted:
        return None
    if kernels.nvcc() is None:
        if forced:
            raise RuntimeError("FORCE_CUDA=1: no nvcc on the PATH or under CUDA_HOME")
        warnings.warn("fastdl: no nvcc, so no CUDA C++ kernels; Triton's are there", stacklevel=2)
        return None
    return kernels.architectures()


@contextlib.contextmanager
def alone(folder: Path):
    """One build at a time in ``folder``: two at once would overwrite each other's objects."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def native() -> dict:
    """setup()'s arguments for the C++ part."""
    reason = missing()
    if reason is not None:
        warnings.warn(f"fastdl: installed without its C++ kernels: {reason}", stacklevel=2)
        return {}

    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    class Build(BuildExtension):
        """fastdl._C, then the kernel libraries and a note of what all was built with, in fastdl/native."""

        def run(self) -> None:
            # pip builds in a new folder each time; this one keeps the objects, one set per torch and Python
            python = f"{sys.implementation.cache_tag}-torch-{torch.__version__}"
            self.build_temp = str(ROOT / "build" / "bindings" / python)
            cuda = cuda_architectures()
            with alone(ROOT / "build" / "native"):
                super().run()
                libraries = kernels.build(ROOT / "build" / "native", cuda)
                where = self._package() / "native"
                where.mkdir(parents=True, exist_ok=True)
                for old in where.glob("libfastdl_*.so"):
                    if old.name not in {library.name for library in libraries}:
                        old.unlink()
                for library in libraries:
                    put(library, where / library.name)
                note = {"torch": torch.__version__, "cuda_architectures": cuda or []}
                (where / "build.json").write_text(json.dumps(note) + "\n")

        def _package(self) -> Path:
            """The folder of fastdl that this command fills: the source's own for an editable install."""
            editable = self.inplace or getattr(self, "editable_mode", False)
            return ROOT / "fastdl" if editable else Path(self.build_lib).resolve() / "fastdl"

    extension = CppExtension(
        "fastdl._C",
        ["csrc/bindings.cpp", "csrc/calls.cpp", "csrc/calls_conv2d.cpp", "csrc/calls_sampling.cpp"],
        extra_compile_args=["-O2", "-g0", "-fvisibility=hidden"],
    )
    return {"ext_modules": [extension], "cmdclass": {"build_ext": Build.with_options(use_ninja=True)}}


def put(source: Path, target: Path) -> None:
    """Copy in one step: a process that has the old file open keeps it."""
    part = target.with_suffix(f".{os.getpid()}")
    shutil.copyfile(source, part)
    part.replace(target)


setup(
    version=version,
    license="MIT",  # here, since setuptools before 77 does not take the expression from pyproject.toml
    packages=[*find_packages(include=["fastdl", "fastdl.*"]), "fastdl.kernels", "fastdl.bench"],
    package_dir={"fastdl.kernels": "kernels", "fastdl.bench": "bench"},
    package_data={
        "fastdl": ["py.typed"],
        "fastdl.native": ["*.so", "build.json"],
        "fastdl.tuned": ["*.json"],
    },
    **native(),
)
