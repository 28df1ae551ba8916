"""Which implementations exist on this machine, why the others do not, and which one serves a call.

Backends:
    reference   plain torch operators, on any device; serves whatever no kernel covers.
    cpu         the C++ kernels of csrc/cpu: CPU tensors.
    cuda        the CUDA C++ kernels of csrc/cuda: CUDA tensors, or CPU tensors under emulation
                (``FASTDL_CUDA_EMULATION``; exact but slow, meant for tests).
    triton      the kernels of ``fastdl.kernels``: CUDA (or ROCm) tensors, or CPU tensors under Triton's
                interpreter (``TRITON_INTERPRET=1`` before the first use; exact but slow, meant for tests).

``auto`` (the default) never measures at call time: it reads the table of measurements in force for the device
(``fastdl.tuned``) and, for what that does not know, ``_AUTO`` below. A backend that is named explicitly, by
``use_backend`` or the environment variable ``FASTDL_BACKEND``, serves the call or raises; only a call on an
empty tensor, where there is nothing to compute, always goes to the reference.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import tuned

OPS = ("conv2d", "batch_norm", "cross_entropy", "max_pool2d", "affine_grid_sample", "tps_grid_sample")
BACKENDS = ("reference", "cpu", "cuda", "triton")

#: The dtypes that kernels serve; they accumulate in float32.
KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

#: What ``auto`` picks where no table knows better, the first that is there, and on what evidence: on the CPU,
#: then on a GPU. What is built for a GPU but runs on the CPU (emulated, interpreted) is for tests, and
#: ``auto`` passes over it. conv2d_max_pool2d is the one function that an op of its own does not stand behind.
_MEASURED = "measured: bench/results/cpu/bench.json"
_COMPUTED = "computed, not yet measured"
_AUTO: dict[str, dict[str, tuple[tuple[str, str], ...]]] = {
    "cpu": {
        **{op: (("cpu", _MEASURED),) for op in (*OPS, "conv2d_max_pool2d")},
        "conv2d": (("cpu", f"few channels and depthwise, else torch ({_MEASURED})"),),
    },
    "cuda": {
        "conv2d": (("cuda", f"cuDNN with bias and activation in one pass behind it ({_COMPUTED})"),),
        "conv2d_max_pool2d": (("cuda", f"the image between is never in memory ({_COMPUTED})"),),
        "batch_norm": (
            ("cuda", f"2 or 3 passes over the data against 5 to 8 unfused ({_COMPUTED})"),
            ("triton", f"3 passes over the data against 5 to 8 unfused ({_COMPUTED})"),
        ),
        "cross_entropy": (
            ("cuda", f"3 passes over the logits against 6 to 7, in 2 launches ({_COMPUTED})"),
            ("triton", f"3 passes over the logits against 6 to 7 ({_COMPUTED})"),
        ),
        "max_pool2d": (
            ("cuda", f"1 byte saved per output against 8 ({_COMPUTED})"),
            ("triton", f"1 byte saved per output against 8 ({_COMPUTED})"),
        ),
        **{
            op: (
                ("cuda", f"no grid in memory, no atomics ({_COMPUTED})"),
                ("triton", f"no grid in memory, no atomics ({_COMPUTED})"),
            )
            for op in ("affine_grid_sample", "tps_grid_sample")
        },
    },
}


class Choice(NamedTuple):
    """Which backend serves a call of ``op``, and why not a kernel where it is the reference."""

    op: str
    backend: str
    reason: str


# One plain global, process-wide like torch.backends' flags: torch.compile guards on it.
_forced: str = os.environ.get("FASTDL_BACKEND", "auto")
_recorded: list[Choice] | None = None
_tables = True

#: FASTDL_CHECK=1: also check class targets on the GPU, at the price of a synchronisation.
CHECK: bool = os.environ.get("FASTDL_CHECK", "0") == "1"


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Serve every call inside by backend ``name`` ("auto" or one of ``BACKENDS``), or raise.

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
    tensors: tuple[Tensor, ...] = (),
) -> Choice:
    """The backend for a call of ``op`` on tensors of this device and dtype.

    ``unsupported`` says why kernels in general do not cover the call (None: they do), ``empty`` that there
    is nothing to compute; ``tensors`` are the input and, of a convolution, the weight, for where a table
    tells calls apart. torch.compile takes what is best for most calls: it traces for more than one size.

    Raises:
        RuntimeError: if the backend in force was named explicitly and cannot serve the call.
    """
    choice = _choose(op, device, dtype, unsupported, empty, tensors)
    note(choice)
    return choice


def note(choice: Choice) -> None:
    """Have ``choice`` recorded."""
    if _recorded is not None:
        _recorded.append(choice)


def automatic() -> bool:
    """Whether no backend was asked for by name."""
    return _forced == "auto"


def serves(op: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether an ordinary call of ``op`` on such tensors would run a kernel of ours."""
    return serving(op, device, dtype).backend != "reference"


def serving(op: str, device: torch.device, dtype: torch.dtype, tensors: tuple[Tensor, ...] = ()) -> Choice:
    """The choice for an ordinary call of ``op`` on such tensors; not recorded."""
    return _choose(op, device, dtype, None, False, tensors)


def _choose(
    op: str,
    device: torch.device,
    dtype: torch.dtype,
    unsupported: str | None,
    empty: bool,
    tensors: tuple[Tensor, ...],
) -> Choice:
    if empty:
        return Choice(op, "reference", "nothing to compute")
    call, shape = (op, _forced, device.type, device.index, dtype), None
    if tensors and not torch.compiler.is_compiling() and _varies(*call):
        shape = tuned.classify(op, *tensors)
    backend, reason = _pick(*call, shape)
    if backend != "reference" and unsupported is not None:
        backend, reason = ("reference", unsupported) if _forced == "auto" else ("", unsupported)
    if not backend:
        _check_name(_forced)
        raise RuntimeError(
            f"fastdl.{op}: expected a call that backend {_forced!r} can serve, got one that it cannot: "
            f"{reason}; use_backend('auto') serves it by the reference"
        )
    return Choice(op, backend, reason)


def constant(function: Any) -> Any:
    """torch.compiler.assume_constant_result, without its import of all of Dynamo at import time."""
    function._dynamo_marked_constant = True
    return function


@constant
def _pick(
    op: str, forced: str, kind: str, index: int | None, dtype: torch.dtype, shape: tuned.Class | None
) -> tuple[str, str]:
    """The backend of an ordinary call and the reason, "" for a backend named that cannot serve it."""
    return _picked(op, forced, kind, index, dtype, shape)


@functools.cache
def _picked(
    op: str, forced: str, kind: str, index: int | None, dtype: torch.dtype, shape: tuned.Class | None = None
) -> tuple[str, str]:
    if forced == "reference":
        return "reference", "chosen by name"
    unserved = None if dtype in KERNEL_DTYPES else f"{str(dtype).removeprefix('torch.')} has no kernel"
    if forced != "auto":
        reason = unserved or (_missing(forced, kind, index) if forced in BACKENDS else "there is none")
        return ("", reason) if reason else (forced, "chosen by name")
    if unserved:
        return "reference", unserved
    reasons = []
    for backend, evidence in order(op, kind, dtype, shape, table(kind, index)):
        reason = _missing(backend, kind, index)
        if reason is None:
            return backend, evidence
        reasons.append(f"{backend}: {reason}")
    return "reference", "; ".join(reasons) or f"no kernel for device {kind!r}"


def order(
    op: str, kind: str, dtype: torch.dtype, shape: tuned.Class | None, known: tuned.Table | None
) -> list[tuple[str, str]]:
    """What ``auto`` prefers, the first first, with the evidence: what the table says, then ``_AUTO``."""
    measured = []
    if known is not None:
        how = "measured" if shape or not known.varies(op, dtype) else "measured, the best of most shapes"
        measured = [(backend, f"{how}: {known.path}") for backend in known.ranking(op, dtype, shape)]
    return [*measured, *_AUTO.get(kind, {}).get(op, ())]


def table(kind: str, index: int | None) -> tuned.Table | None:
    """The table in force for a device."""
    return tuned.table(kind, index) if _tables else None


@functools.cache
def _varies(op: str, forced: str, kind: str, index: int | None, dtype: torch.dtype) -> bool:
    """Whether the table tells calls apart; mostly it does not, and then no call is looked at."""
    known = table(kind, index) if forced == "auto" else None
    return known is not None and known.varies(op, dtype)


@contextlib.contextmanager
def untuned() -> Iterator[None]:
    """Whatever tables there are, ``auto`` goes by ``_AUTO`` inside: what is tuned is measured so."""
    global _tables
    before, _tables = _tables, False
    forget()
    try:
        yield
    finally:
        _tables = before
        forget()


def forget() -> None:
    """Have the tables read anew, by the next call of each op."""
    for cache in (tuned.table, _varies, _picked, _short_way):
        cache.cache_clear()


@functools.cache
def kernel(backend: str, op: str) -> Any:
    """What implements ``op`` for ``backend``: an object with functions ``forward`` and ``backward``."""
    if backend == "triton":
        return importlib.import_module(f"fastdl.kernels.{op}")
    from . import native

    return native.kernel(backend, op)


def short_way(op: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """The C++ function that serves a plain call of ``op`` whole, and its library; else (None, None)."""
    if _recorded is not None:  # a call that is looked at goes the long way, which records it
        return None, None
    return _short_way(op, _forced, device, dtype)


@functools.cache
def _short_way(op: str, forced: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    kind, index = device.type, device.index  # here, as torch takes its time to say what a type is called
    by_shape = _varies(op, forced, kind, index, dtype)
    if by_shape:
        backend = "cpu" if kind == "cpu" else "cuda"
    else:
        backend = _picked(op, forced, kind, index, dtype)[0]
    if backend not in ("cpu", "cuda") or (kind == "cuda" and CHECK) or _missing(backend, kind, index):
        return None, None
    from . import native

    call, library = native.call(op), native.library(backend)[0]
    if not by_shape:
        return call, library

    def where_it_is_best(library: Any, *args: Any) -> Any:
        shape = tuned.classify(op, *args)
        return call(library, *args) if _picked(op, forced, kind, index, dtype, shape)[0] == backend else None

    return where_it_is_best, library


def why_not(backend: str, device: torch.device) -> str | None:
    """Why ``backend`` cannot run on ``device``; None if it can."""
    return _missing(backend, device.type, device.index)


@functools.cache
def _missing(backend: str, kind: str, index: int | None) -> str | None:
    if backend == "reference":
        return None
    if backend == "triton":
        return _triton()[1] or _triton_on(kind, index)
    from . import native

    return native.missing(backend, kind)


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
        raise ValueError(f"fastdl.use_backend: expected one of auto, {', '.join(BACKENDS)}, got {name!r}")


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
