"""What every launcher shares: the launch itself, the index width, the number of programs to aim for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from triton import knobs

#: True when this process runs kernels through Triton's interpreter (on CPU tensors, program by program).
INTERPRETED: bool = knobs.runtime.interpret

#: The same for kernels. The interpreter computes bfloat16 on its bit patterns, so kernels cast to
#: float32 right after a load, also in front of ``tl.dot`` where this constant is set.
INTERPRET = tl.constexpr(INTERPRETED)

_INT32_MAX = 2**31 - 1


class Launch(NamedTuple):
    """One kernel launch as it was asked for: what ``record`` collects and ``aot`` compiles."""

    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    constexprs: dict[str, Any]
    num_warps: int
    num_stages: int


_recording: list[Launch] | None = None
_force_wide = False


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    *args: Any,
    num_warps: int = 4,
    num_stages: int = 2,
    **constexprs: Any,
) -> None:
    """Launch ``kernel`` over ``grid`` on the device of ``args[0]``; an empty grid launches nothing.

    ``args`` are the runtime arguments in the kernel's order (``args[0]`` is a tensor), ``constexprs``
    its compile-time ones by name.
    """
    if _recording is not None:
        _recording.append(Launch(kernel, grid, args, constexprs, num_warps, num_stages))
        return
    if 0 in grid:
        return
    device = args[0].device
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[grid](*args, num_warps=num_warps, num_stages=num_stages, **constexprs)
    else:
        kernel[grid](*args, num_warps=num_warps, num_stages=num_stages, **constexprs)


@contextlib.contextmanager
def record() -> Iterator[list[Launch]]:
    """Collect the launches made inside instead of running them; tensors may be on ``meta``."""
    global _recording
    before, _recording = _recording, []
    try:
        yield _recording
    finally:
        _recording = before


@contextlib.contextmanager
def force_wide() -> Iterator[None]:
    """Make every launcher take its 64-bit offsets, so that tests can compare them with the 32-bit ones."""
    global _force_wide
    before, _force_wide = _force_wide, True
    try:
        yield
    finally:
        _force_wide = before


def wide(*tensors: torch.Tensor | None) -> bool:
    """Whether an element of one of ``tensors`` lies 2**31 or more elements from its start."""
    return _force_wide or any(
        sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True)) > _INT32_MAX
        for t in tensors
        if t is not None and t.numel()
    )


def program_target(tensor: torch.Tensor) -> int:
    """How many programs fill the device of ``tensor``: four per multiprocessor.

    Interpreted programs run one after another, so there a handful is enough to cross every seam.
    """
    if tensor.device.type == "cuda":
        return 4 * torch.cuda.get_device_properties(tensor.device).multi_processor_count
    return 4 if tensor.device.type == "cpu" else 4 * 132


def tensor_cores(tensor: torch.Tensor) -> bool:
    """Whether ``tl.dot`` finds matrix units for 16-bit operands on the device of ``tensor``.

    Triton has none for Turing (compute capability 7.5), and the interpreter multiplies bfloat16 by its bit
    patterns: kernels cast such operands to float32 there. ``aot`` answers for recorded launches.
    """
    if tensor.device.type == "cuda":
        return torch.cuda.get_device_capability(tensor.device) >= (8, 0)
    return not INTERPRETED


def cdiv(a: int, b: int) -> int:
    """a / b rounded up."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least ``n`` (and at least 1)."""
    return triton.next_power_of_2(max(n, 1))


@triton.jit
def index(i, WIDE: tl.constexpr):
    """``i`` as an offset: 64 bits where an offset may pass 2**31 (a sum: loop counters are Python ints
    under the interpreter and have no ``to``)."""
    return i + tl.full([], 0, tl.int64) if WIDE else i


@triton.jit
def narrow(value, pointer):
    """``value`` (float32) in the element type of ``pointer``, to nearest even; the interpreter truncates."""
    if INTERPRET:
        if pointer.dtype.element_ty == tl.bfloat16:
            bits = value.to(tl.int32, bitcast=True)
            rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).to(tl.float32, bitcast=True)
            value = tl.where(value == value, rounded, value)
    return value.to(pointer.dtype.element_ty)
