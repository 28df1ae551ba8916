"""What ``auto`` picks, from measurements: the tables that ``fastdl bench --tune`` writes.

A table is of one device and says, per op and dtype, which backend was fastest for each *class* of calls. The
user's own for this device, in ``cache_folder()``, goes before one that fastdl brings for the architecture,
``ARCHITECTURE.json`` in this folder. What the one in force does not know, ``fastdl.backends`` orders itself.

    {"schema": "fastdl.tuned/1", "kind": "cpu", "environment": {...},
     "ops": {"conv2d": {"float32": {"contiguous 2^16 few":
        {"backend": "cpu", "ratios": {"reference": 2.3, "cpu": 1.0}, "cases": 2}}}}}

``ratios`` are times over the fastest's, the evidence; ``cases`` how many benchmarks they are the mean of.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import re
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

SCHEMA = "fastdl.tuned/1"
HERE = Path(__file__).parent

#: The backends on a kind of device, the simplest first, which is the one to take where it makes no odds: the
#: reference is torch's own code, the C++ kernels are compiled before they are called, Triton's when they are.
SIMPLEST = {"cpu": ("reference", "cpu"), "cuda": ("reference", "cuda", "triton")}

#: At most as many channels a group is few: what the direct convolutions are made for.
FEW = 8


class Class(NamedTuple):
    """Calls of an op and dtype that are taken to be alike: from 2**size to 2**(size + 4) input elements."""

    layout: str  # contiguous or channels_last
    size: int  # a multiple of 4
    kind: str = ""  # of a convolution: depthwise, few (input channels), 1x1, dense

    def __str__(self) -> str:
        return f"{self.layout} 2^{self.size} {self.kind}".strip()

    @classmethod
    def parse(cls, text: str) -> Class:
        """What ``str`` made."""
        layout, size, *kind = text.split()
        return cls(layout, int(size.removeprefix("2^")), *kind)


def classify(op: str, input: Tensor, *others: Any) -> Class | None:
    """The class of a call; None where the size is a symbol: a question about it would become a guard."""
    number = input.numel()
    if type(number) is not int or number == 0:
        return None
    last = input.dim() == 4 and not input.is_contiguous()
    last = last and input.is_contiguous(memory_format=torch.channels_last)
    kind = _convolution(input, others[0]) if op.startswith("conv2d") else ""
    return Class("channels_last" if last else "contiguous", (number.bit_length() - 1) // 4 * 4, kind)


def _convolution(input: Tensor, weight: Any) -> str:
    if not isinstance(weight, Tensor) or weight.dim() != 4 or input.dim() < 3:  # somebody else complains
        return "dense"
    channels = weight.shape[1]
    if channels == 1 and input.shape[-3] > 1:
        return "depthwise"
    if channels <= FEW:
        return "few"
    return "1x1" if weight.shape[2] == weight.shape[3] == 1 else "dense"


class Entry(NamedTuple):
    """What was measured of a class."""

    backend: str  # the one to take
    ratios: dict[str, float]
    cases: int

    def ranking(self) -> tuple[str, ...]:
        """All that were measured, the one to take first, then by time."""
        return self.backend, *sorted(self.ratios.keys() - {self.backend}, key=self.ratios.__getitem__)


class Table:
    """A table that was read."""

    def __init__(self, path: Path, kind: str, ops: dict[str, dict[str, dict[Class, Entry]]]) -> None:
        self.path, self.kind, self.ops = path, kind, ops

    def _entries(self, op: str, dtype: torch.dtype) -> dict[Class, Entry]:
        return self.ops.get(op, {}).get(str(dtype).removeprefix("torch."), {})

    def varies(self, op: str, dtype: torch.dtype) -> bool:
        """Whether it has more than one answer for such calls."""
        return len({entry.backend for entry in self._entries(op, dtype).values()}) > 1

    def ranking(self, op: str, dtype: torch.dtype, shape: Class | None = None) -> tuple[str, ...]:
        """Backends from the best: of the nearest class, or, without one, of most; () if nothing is known."""
        entries = self._entries(op, dtype)
        if not entries:
            return ()
        if shape is not None:
            return entries[min(entries, key=lambda known: _distance(known, shape))].ranking()
        votes: Counter[tuple[str, ...]] = Counter()
        for entry in entries.values():
            votes[entry.ranking()] += entry.cases
        return max(votes, key=lambda r: (votes[r], -SIMPLEST[self.kind].index(r[0])))


def _distance(a: Class, b: Class) -> tuple[bool, bool, int, int]:
    """Another convolution is further than another layout, and that further than any size."""
    return a.kind != b.kind, a.layout != b.layout, abs(a.size - b.size), a.size


def read(path: Path) -> Table:
    """A table's file.

    Raises:
        ValueError: if it is another file, or says what no table says.
        OSError: if it cannot be read.
    """
    try:
        found = json.loads(path.read_text())
        if found["schema"] != SCHEMA:
            raise ValueError(f"expected schema {SCHEMA!r}, got {found['schema']!r}")
        known = SIMPLEST[found["kind"]]
        ops = {
            op: {
                dtype: {Class.parse(text): _entry(entry, known) for text, entry in classes.items()}
                for dtype, classes in dtypes.items()
            }
            for op, dtypes in found["ops"].items()
        }
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is no table of fastdl bench --tune: {error!r}") from None
    return Table(path, found["kind"], ops)


def _entry(entry: dict[str, Any], known: tuple[str, ...]) -> Entry:
    ratios = {name: float(ratio) for name, ratio in entry["ratios"].items()}
    if entry["backend"] not in ratios or not ratios.keys() <= set(known):
        raise ValueError(f"expected backends among {', '.join(known)}, got {entry}")
    return Entry(entry["backend"], ratios, int(entry["cases"]))


@functools.cache
def table(kind: str, index: int | None) -> Table | None:
    """The table in force for a device, read once; None where there is none.

    A file that is none is passed over with a warning.
    """
    for path in paths(kind, index):
        try:
            found = read(path)
            if found.kind != kind:
                raise ValueError(f"{path} is a table for {found.kind}, not {kind}")
            return found
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            warnings.warn(f"fastdl: a table is ignored: {error}", stacklevel=2)
    return None


def paths(kind: str, index: int | None) -> tuple[Path, ...]:
    """Where a table for the device may be, the first that is there in force: the user's, then ours."""
    found = device(kind, index)
    return () if found is None else (user_path(*found), HERE / f"{found[1]}.json")


def user_path(name: str, architecture: str) -> Path:
    """The file of the user's own table for a device."""
    slug = re.sub(r"[^a-z0-9]+", "-", f"{name} {architecture}".lower()).strip("-")
    return cache_folder() / f"{slug}.json"


def cache_folder() -> Path:
    """``FASTDL_CACHE_DIR``, else the fastdl folder of ``XDG_CACHE_HOME``, else ``~/.cache/fastdl``."""
    own = os.environ.get("FASTDL_CACHE_DIR")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "fastdl"


def device(kind: str, index: int | None) -> tuple[str, str] | None:
    """The name and the architecture of a device; None where there is none or no kernel for its kind."""
    if kind == "cpu":
        return cpu_name(), "cpu"
    if kind != "cuda" or not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(torch.cuda.current_device() if index is None else index)
    if torch.version.hip is not None:
        return properties.name, properties.gcnArchName.split(":")[0]
    return properties.name, f"sm_{properties.major}{properties.minor}"


@functools.cache
def cpu_name() -> str:
    """The processor as the system calls it."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
