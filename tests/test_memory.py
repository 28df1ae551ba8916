"""A thousand steps leave no memory behind."""

import ctypes
import gc

import pytest
import torch
from calls import CALLS, leaves
from support import DEVICE, KERNEL_BACKENDS

from fastdl import backends

mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
known = pytest.mark.skipif(DEVICE == "cpu" and mallinfo is None, reason="needs a glibc that counts its heap")
#: Those fast enough: neither interpreted nor emulated.
FAST = [kernel for kernel in KERNEL_BACKENDS if DEVICE == "cuda" or kernel == "cpu"]
ALLOWED = 64 << 10  # bytes: one tensor of 64 kept at each step would be more


class Heap(ctypes.Structure):
    """glibc's mallinfo2."""

    names = ("arena", "chunks", "small", "maps", "mapped", "most", "fast", "used", "free", "top")
    _fields_ = [(name, ctypes.c_size_t) for name in names]


def held(device: torch.device) -> int:
    """Bytes that this process has of the GPU's memory or of its heap."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()
    mallinfo.restype = Heap
    heap = mallinfo()
    return heap.used + heap.mapped


def steps(step, count: int, device: torch.device) -> tuple[int, int]:
    """What is held after ``count`` steps: bytes, and objects that Python's collector knows."""
    for _ in range(count):
        step()
    return held(device), len(gc.get_objects())


@pytest.fixture
def one_thread():
    """No threads that wait for each other on a machine that runs other tests as well."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@known
@pytest.mark.parametrize("kernel", FAST)
@pytest.mark.parametrize("name", CALLS)
def test_flat_over_a_thousand_steps(name, kernel, device, one_thread):
    call = CALLS[name]
    inputs = leaves(call, device)
    wanted = [inputs[i] for i in call.grads]

    def step():
        torch.autograd.grad(call.function(*inputs).sum(), wanted)

    with backends.use_backend(kernel):
        steps(step, 300, device)  # pools and caches fill
        before, after = (steps(step, count, device) for count in (1, 1000))
    assert after[0] - before[0] < ALLOWED
    assert after[1] - before[1] < 100


@known
def test_a_leak_is_seen(device):
    kept = []
    before, after = (steps(lambda: kept.append(torch.ones(64, device=device)), n, device) for n in (1, 1000))
    assert after[0] - before[0] > ALLOWED and after[1] - before[1] > 100
