"""Which implementations exist on this machine, why the others do not, and which one serves a call.

Backends:
    reference   plain torch operators, on any device; serves whatever no kernel covers.
    triton      the kernels of ``fastdl.kernels``: CUDA (or ROCm) tensors, or CPU tensors under Triton's
                interpreter (``TRITON_INTERPRET=1`` before the first use; exact but slow, meant for tests).

``auto`` (the default) never measures at call time: it reads ``_AUTO`` below. A backend that is named
explicitly, by ``use_backend`` or the environment variable ``FASTDL_BACKEND``, serves the call or raises;
only a call on an empty tensor, where there is nothing to compute, always goes to the reference.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import torch

OPS = ("conv2d", "batch_norm", "cross_entropy", "max_pool2d", "affine_grid_sample")
BACKENDS = ("reference", "triton")

#: The dtypes that kernels serve; they accumulate in float32.
KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

#: What ``auto`` picks for tensors on a GPU, and on what evidence. Tensors on the CPU go to the reference:
#: no native CPU kernels are built yet, and interpreted Triton is for tests.
_AUTO: dict[str, tuple[str, str]] = {
    "conv2d": ("reference", "cuDNN: no measurement shows the Triton kernel ahead of it"),
    "batch_norm": ("triton", "3 passes over the data against 5 to 8 unfused (computed, not yet measured)"),
    "cross_entropy": ("triton", "3 passes over the logits against 6 to 7 (computed, not yet measured)"),
    "max_pool2d": ("triton", "1 byte saved per output against 8 (computed, not yet measured)"),
    "affine_grid_sample": ("triton", "no grid in memory, no atomics (computed, not yet measured)"),
}


class Choice(NamedTuple):
    """Which backend serves a call of ``op``, and why not a kernel where it is the reference."""

    op: str
    backend: str
    reason: str


# One plain global, process-wide like torch.backends' flags: torch.compile guards on it.
_forced: str = os.environ.get("FASTDL_BACKEND", "auto")
_recorded: list[Choice] | None = None

#: FASTDL_CHECK=1: also check class targets on the GPU, at the price of a synchronisation.
CHECK: bool = os.environ.get("FASTDL_CHECK", "0") == "1"


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Serve every call inside by backend ``name`` ("auto", "reference", "triton"), or raise.

    Process-wide, not per thread. A backward pass uses the backend that its forward used.

    Raises:
        ValueError: if there is no backend of that name.
    """
    global _forced
    _check_name(name)
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


@contextlib.contextmanager
def record() -> Iterator[list[Choice]]:
    """Collect the choices made for the calls inside."""
    global _recorded
    before, _recorded = _recorded, []
    try:
        yield _recorded
    finally:
        _recorded = before


def choose(
    op: str,
    device: torch.device,
    dtype: torch.dtype,
    unsupported: str | None = None,
    empty: bool = False,
) -> Choice:
    """The backend for a call of ``op`` on tensors of this device and dtype.

    ``unsupported`` says why kernels in general do not cover the call (None: they do), ``empty`` that there
    is nothing to compute.

    Raises:
        RuntimeError: if the backend in force was named explicitly and cannot serve the call.
    """
    choice = _choose(op, device, dtype, unsupported, empty)
    if _recorded is not None:
        _recorded.append(choice)
    return choice


def serves(op: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether an ordinary call of ``op`` on such tensors would run a kernel of ours."""
    return _choose(op, device, dtype, None, False).backend != "reference"


def _choose(
    op: str, device: torch.device, dtype: torch.dtype, unsupported: str | None, empty: bool
) -> Choice:
    if _forced != "auto":
        _check_name(_forced)
    if empty:
        return Choice(op, "reference", "nothing to compute")
    if _forced == "reference":
        return Choice(op, "reference", "chosen by name")
    reason = unsupported or _dtype_reason(dtype) or why_not("triton", device)
    if _forced == "triton":
        if reason is not None:
            raise RuntimeError(
                f"fastdl.{op}: expected a call that backend 'triton' can serve, got one that it cannot: "
                f"{reason}; use_backend('auto') serves it by the reference"
            )
        return Choice(op, "triton", "chosen by name")
    if reason is not None:
        return Choice(op, "reference", reason)
    if device.type == "cpu":
        return Choice(op, "reference", "interpreted Triton on the CPU is for tests")
    return Choice(op, *_AUTO[op])


@functools.cache
def kernel(backend: str, op: str) -> ModuleType:
    """The module that implements ``op`` for ``backend``: functions ``forward`` and ``backward``."""
    assert backend == "triton", backend
    return importlib.import_module(f"fastdl.kernels.{op}")


def why_not(backend: str, device: torch.device) -> str | None:
    """Why ``backend`` cannot run on ``device``; None if it can."""
    if backend == "reference":
        return None
    return _triton_missing() or _triton_device(device.type, device.index)


def status() -> dict[str, str]:
    """Each backend with "available" or the reason why it is not, on the devices at hand."""
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices.append(torch.device("cuda", torch.cuda.current_device()))
    return {
        f"{backend} ({device.type})": why_not(backend, device) or "available"
        for backend in BACKENDS
        for device in devices
    }


def _check_name(name: str) -> None:
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"fastdl.use_backend: expected auto, {' or '.join(BACKENDS)}, got {name!r}")


def _dtype_reason(dtype: torch.dtype) -> str | None:
    return None if dtype in KERNEL_DTYPES else f"{str(dtype).removeprefix('torch.')} has no kernel"


def _constant(function: Any) -> Any:
    """torch.compiler.assume_constant_result, without its import of all of Dynamo at import time."""
    function._dynamo_marked_constant = True
    return function


@_constant
def _triton_missing() -> str | None:
    return _triton()[1]


@_constant
def _triton_device(kind: str, index: int | None) -> str | None:
    return _triton_on(kind, index)


@functools.cache
def _triton() -> tuple[Any, str | None]:
    """What launchers share, or None and the reason."""
    try:
        return importlib.import_module("fastdl.kernels._runtime"), None
    except Exception as error:  # a broken Triton raises anything: it must not take the reference down
        return None, f"Triton cannot be imported ({type(error).__name__}: {error})"


@functools.cache
def _triton_on(kind: str, index: int | None) -> str | None:
    """Why kernels cannot run on such a device; None if they can."""
    if kind == "cpu":
        interpreted = _triton()[0].INTERPRETED
        return None if interpreted else "Triton has no CPU code; TRITON_INTERPRET=1 interprets it"
    if kind != "cuda":
        return f"no kernel for device {kind!r}"
    if torch.version.hip is None and torch.cuda.get_device_capability(index) < (7, 5):
        return "compute capability 7.5 or later is needed"
    return None
