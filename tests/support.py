"""What conftest.py and the tests share: which device and which backends there are to test."""

import os
import shutil
from pathlib import Path

import torch

# what this machine was tuned to is no concern of the tests
os.environ["FASTDL_CACHE_DIR"] = str(Path(__file__).parent / "no tables")
# pytest-xdist's workers inherit it: their threads, more than there are cores, shall sleep while they wait
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports Triton
    if "FASTDL_CUDA_EMULATION" not in os.environ and shutil.which(os.environ.get("CXX", "g++")):
        from emulation.build import build  # the CUDA kernels run too, compiled for the CPU

        os.environ["FASTDL_CUDA_EMULATION"] = str(build("plain"))

from fastdl import backends

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def executable_backends() -> list[str]:
    """The backends that this machine can run, each of which every contract test runs on."""
    device = torch.device(DEVICE, 0 if DEVICE == "cuda" else None)
    return [backend for backend in backends.BACKENDS if backends.why_not(backend, device) is None]


#: The ones that run our kernels.
KERNEL_BACKENDS = [backend for backend in executable_backends() if backend != "reference"]

#: Of these the ones of csrc/, which have calls served whole in C++.
NATIVE_BACKENDS = [backend for backend in KERNEL_BACKENDS if backend in ("cpu", "cuda")]
