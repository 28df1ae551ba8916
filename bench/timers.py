"""Clocks. Implementations take turns in one process, so that what disturbs one disturbs all.

CPU         wall time of as many calls as fill ten milliseconds, in turn, on a heap that keeps its pages.
graph       CUDA: a graph of the call over copies of its inputs that together exceed four times the L2
            cache, replayed in turn: the kernels alone, reading from memory as in a network. The headline.
l2_hot      the same over one copy: what a call costs when its inputs have just been written.
host        wall time per call of many calls in a row: what Python and the launches cost.
"""

from __future__ import annotations

import ctypes
import gc
import platform
import time
from collections.abc import Callable

import torch

Call = Callable[[], object]


def keep_heap() -> None:
    """Tell glibc to hand no memory back: fresh pages cost more than most CPU kernels, for all alike."""
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
    for option, value in ((m_mmap_max, 0), (m_trim_threshold, 2**31 - 1), (m_top_pad, 2**26)):
        mallopt(option, value)


def interleaved(calls: dict[str, Call], seconds: float, at_least: int = 5) -> dict[str, list[float]]:
    """Seconds per call of each, in turns of ten milliseconds."""
    repeats = {}
    for name, call in calls.items():
        for _ in range(3):
            call()
        repeats[name] = max(1, int(0.01 / max(_time(call, 1), 1e-7)))
    found: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    turn = 0
    while turn < at_least or time.perf_counter() < end:
        for name, call in calls.items():
            found[name].append(_time(call, repeats[name]))
        turn += 1
    return found


def host(calls: dict[str, Call], turns: int = 5, repeats: int = 100) -> dict[str, list[float]]:
    """Seconds of wall time per call on a GPU, synchronised once per turn."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(turns + 1):
        for name, call in calls.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(repeats):
                call()
            torch.cuda.synchronize()
            found[name].append((time.perf_counter() - start) / repeats)
    return {name: times[1:] for name, times in found.items()}  # the first turn warms up


def _time(call: Call, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


class Graph:
    """Calls captured in a CUDA graph, one after the other."""

    def __init__(self, make: Callable[[], list[Call]], at_least: int = 20) -> None:
        """``make`` prepares the calls, on the stream that they will be captured on."""
        self.stream = torch.cuda.Stream()
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            self.calls = make()
            for call in self.calls * 2:
                call()
        self.stream.synchronize()
        self.number = len(self.calls) * -(-at_least // len(self.calls))
        self.graph = torch.cuda.CUDAGraph()
        gc.collect()  # a tensor freed by the collector during capture would end it
        with torch.cuda.graph(self.graph, stream=self.stream):
            for i in range(self.number):
                self.calls[i % len(self.calls)]()

    def replay(self) -> float:
        """Seconds per call of one replay."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        self.graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / self.number


def replays(graphs: dict[str, Graph], rounds: int = 5, per_round: int = 6) -> dict[str, list[float]]:
    """Seconds per call of each, replayed in turn; the first round warms up."""
    found: dict[str, list[float]] = {name: [] for name in graphs}
    for turn in range(rounds + 1):
        for name, graph in graphs.items():
            times = [graph.replay() for _ in range(per_round)]
            if turn:
                found[name] += times
    return found
