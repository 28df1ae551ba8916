"""What is there to run on, and why the rest is not: behind ``fastdl info`` and every JSON report."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

import torch

from . import __version__, backends, native, tuned


def environment() -> dict[str, Any]:
    """Versions, processor, GPU and backends, as plain data."""
    cuda = torch.cuda.is_available()
    properties = torch.cuda.get_device_properties(torch.cuda.current_device()) if cuda else None
    return {
        "fastdl": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "cuda": torch.version.cuda or torch.version.hip or "none",
        "platform": platform.platform(),
        "cpu": tuned.cpu_name(),
        "threads": torch.get_num_threads(),
        "gpu": properties.name if properties else "none",
        "compute_capability": f"{properties.major}.{properties.minor}" if properties else "none",
        "gpu_memory_gib": round(properties.total_memory / 2**30, 1) if properties else 0.0,
        "FASTDL_BACKEND": os.environ.get("FASTDL_BACKEND", "auto"),
        "TRITON_INTERPRET": os.environ.get("TRITON_INTERPRET", "0"),
        "native": native.describe(),
        "backends": backends.status(),
        "tables": _tables(),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _tables() -> dict[str, str]:
    """The table of measurements that ``auto`` goes by, per device."""
    kinds = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    found = {
        kind: backends.table(kind, torch.cuda.current_device() if kind == "cuda" else None) for kind in kinds
    }
    return {
        f"table ({kind})": "none: the order in fastdl.backends" if known is None else str(known.path)
        for kind, known in found.items()
    }
