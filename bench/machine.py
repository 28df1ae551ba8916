"""What the machine can do at best, measured in the same process: bytes copied and numbers multiplied."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import torch

from . import timers


def copy_rate(device: torch.device, footprint: int) -> float:
    """Bytes per second, read and written, of ``copy_`` between two buffers of ``footprint`` bytes in all."""
    return _copy_rate(device, 1 << max(footprint - 1, 4096).bit_length())


@functools.cache
def _copy_rate(device: torch.device, footprint: int) -> float:
    pairs = min(max(1, -(-rotation(device) // footprint)), 256)
    buffers = [
        [torch.ones(footprint // 8, device=device) for _ in range(2)] for _ in range(pairs)
    ]  # float32: half each

    def copies() -> list[Callable[[], object]]:
        return [functools.partial(to.copy_, source) for source, to in buffers]

    if device.type == "cuda":
        graph = timers.Graph(copies)
        return footprint / min(graph.replay() for _ in range(7))
    return footprint / _best(copies()[0], device)


@functools.cache
def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large square matrix product."""
    n = 8192 if device.type == "cuda" else 1536
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return 2 * n**3 / _best(lambda: torch.mm(a, b), device)


def rotation(device: torch.device) -> int:
    """Bytes that inputs must cover together to be read from memory: four times the GPU's L2 cache."""
    if device.type != "cuda":
        return 0
    return 4 * torch.cuda.get_device_properties(device).L2_cache_size


def _best(call: Callable[[], object], device: torch.device) -> float:
    """Seconds, the best of several: what the machine can do, not what it usually does."""
    found = []
    for _ in range(7):
        wait(device)
        start = time.perf_counter()
        call()
        wait(device)
        found.append(time.perf_counter() - start)
    return min(found[2:])


def wait(device: torch.device) -> None:
    """Until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
