"""triton#11494, #8437, #5893: threads that start together meet a cold cache, and mix up arguments."""

import threading
import time

import pytest
import torch
from calls import CALLS, leaves
from support import KERNEL_BACKENDS

from fastdl import backends

THREADS = 8


def check(call, device):
    """Eight threads at once on inputs of their own."""
    together = [[t.detach() for t in leaves(call, torch.device(device))] for _ in range(THREADS)]
    found, start = [None] * THREADS, threading.Barrier(THREADS)

    def work(i):
        start.wait()
        found[i] = call.function(*together[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for inputs, got in zip(together, found, strict=True):
        assert got is not None and torch.equal(got, call.function(*inputs))


class Shared:
    """Keeps the arguments of the call in itself on the way."""

    def __call__(self, x):
        self.argument = x
        time.sleep(0.01)
        return torch.relu(self.argument)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("kernel", KERNEL_BACKENDS)
def test_eight_threads_on_a_cold_start(name, kernel, device):
    if kernel == "triton" and device.type == "cpu":
        pytest.skip("Triton's interpreter keeps the program's position in one global")
    for cache in (backends._picked, backends._short_way, backends.kernel):
        cache.cache_clear()
    with backends.use_backend(kernel):
        check(CALLS[name], device)


def test_seen():
    with pytest.raises(AssertionError):
        check(CALLS["max_pool2d"]._replace(function=Shared()), "cpu")
