"""The compiled kernels: finds the libraries built from csrc/, loads the one for this CPU, says why not.

    fastdl/_C*.so                          csrc/bindings.cpp: calls any library with torch's tensors
    fastdl/native/libfastdl_cpu_*.so       csrc/cpu, once per capability of the CPU
    fastdl/native/libfastdl_cuda.so        csrc/cuda, where nvcc was at hand
    fastdl/native/build.json               what they were built with

Nothing is loaded before the first use. ``FASTDL_CPU_CAPABILITY`` (default, avx2, avx512) takes a lesser
CPU library than the machine could run; ``FASTDL_CUDA_EMULATION`` names a library of csrc/cuda compiled for
the CPU (tests/emulation), whose kernels then take CPU tensors.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

HERE = Path(__file__).parent

#: From the least to the most capable, as torch.backends.cpu.get_cpu_capability() calls them.
CAPABILITIES = ("default", "avx2", "avx512")


def missing(backend: str, kind: str) -> str | None:
    """Why the kernels of ``backend`` (cpu, cuda) cannot run on devices of this kind; None if they can."""
    if backend == "cpu":
        return library(backend)[1] if kind == "cpu" else f"no C++ kernel for device {kind!r}"
    if kind == "cpu":
        emulated = emulation() is not None
        return library(backend)[1] if emulated else "CUDA kernels run on CPU tensors under emulation only"
    if kind != "cuda":
        return f"no CUDA kernel for device {kind!r}"
    if emulation() is not None:
        return "FASTDL_CUDA_EMULATION is set: CUDA kernels run on CPU tensors"
    return library(backend)[1]


@functools.cache
def kernel(backend: str, op: str) -> Any:
    """``forward`` and ``backward`` of ``op``: the fill functions of docs/design.md.

    And ``scale`` of cross_entropy.
    """
    found, reason = library(backend)
    if found is None:
        raise RuntimeError(f"fastdl.{op}: backend {backend!r} is not built: {reason}")
    composed = HERE / f"{op}.py"
    if composed.exists():  # more than one library call
        module = importlib.import_module(f"{__name__}.{op}")
        functions = (functools.partial(getattr(module, name), found) for name in ("forward", "backward"))
    else:
        functions = (getattr(found, f"{op}_{name}") for name in ("forward", "backward"))
    forward, backward = functions
    kernels = SimpleNamespace(forward=forward, backward=backward)
    if op == "cross_entropy":
        kernels.scale = found.cross_entropy_scale
    return kernels


def call(op: str) -> Any:
    """The whole call of ``op`` in C++, autograd included (csrc/calls.cpp); None if there is none."""
    return getattr(_bindings()[0], op, None)


@functools.cache
def library(backend: str) -> tuple[Any, str | None]:
    """The loaded library of ``backend``, or None and the reason."""
    bindings, reason = _bindings()
    if bindings is None:
        return None, reason
    path = _cpu_path() if backend == "cpu" else _cuda_path()
    if not path.exists():
        return None, f"{path.name} was not built"
    try:
        return bindings.Library(str(path)), None
    except (RuntimeError, OSError) as error:
        return None, str(error)


def describe() -> dict[str, str]:
    """What was built and what of it is in use, for ``fastdl info``."""
    lines = {}
    for backend in ("cpu", "cuda"):
        found, reason = library(backend)
        lines[backend] = reason if found is None else found.describe()
        if found is not None and backend == "cuda" and not emulation() and not torch.cuda.is_available():
            lines[backend] += ": no CUDA device here, or no CUDA build of torch"
    return lines


def emulation() -> str | None:
    """The emulated CUDA library that the environment names."""
    return os.environ.get("FASTDL_CUDA_EMULATION") or None


def capability() -> str:
    """The CPU library in use: the most capable that the CPU runs, unless the environment asks for less."""
    available = torch.backends.cpu.get_cpu_capability().lower()
    best = CAPABILITIES.index(available) if available in CAPABILITIES else 0
    asked = os.environ.get("FASTDL_CPU_CAPABILITY")
    if asked is None:
        return CAPABILITIES[best]
    if asked not in CAPABILITIES:
        raise ValueError(f"FASTDL_CPU_CAPABILITY: expected one of {', '.join(CAPABILITIES)}, got {asked!r}")
    return CAPABILITIES[min(best, CAPABILITIES.index(asked))]


def _cpu_path() -> Path:
    best = CAPABILITIES.index(capability())
    paths = [HERE / f"libfastdl_cpu_{name}.so" for name in CAPABILITIES[best::-1]]
    return next((path for path in paths if path.exists()), paths[0])


def _cuda_path() -> Path:
    return Path(emulation() or HERE / "libfastdl_cuda.so")


@functools.cache
def _bindings() -> tuple[Any, str | None]:
    """fastdl._C, or None and the reason. One built for another torch is not loaded: it might crash."""
    note = HERE / "build.json"
    if not note.exists():
        return None, "fastdl was installed without its C++ kernels"
    try:
        built = json.loads(note.read_text())["torch"]
    except (OSError, ValueError, KeyError, TypeError):
        return None, f"{note} cannot be read: install fastdl again"
    if built.split("+")[0] != torch.__version__.split("+")[0]:
        now = torch.__version__
        return None, f"the C++ kernels were built for torch {built}, this is {now}: install fastdl again"
    try:
        return importlib.import_module("fastdl._C"), None
    except ImportError as error:
        return None, f"fastdl._C cannot be loaded ({error}): install fastdl again"
