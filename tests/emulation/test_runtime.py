"""The emulated intrinsics do what CUDA's do; what they convert, torch converts alike."""

import ctypes
import subprocess
from pathlib import Path

import pytest
import torch
from emulation import build

SOURCE = Path(__file__).with_name("selfcheck.cu")


@pytest.fixture(scope="module")
def library():
    return ctypes.CDLL(str(build.build("plain", [SOURCE], "selfcheck")))


@pytest.mark.parametrize("order", ["forward", "backward", "random"])
@pytest.mark.parametrize("what", ["warps", "bits", "atomics", "places", "clusters"])
def test_intrinsics(library, what, order, monkeypatch):
    monkeypatch.setenv("FASTDL_EMULATION_ORDER", order)
    check = getattr(library, f"check_{what}")
    check.restype = ctypes.c_char_p
    assert check() is None


def address(tensor):
    return ctypes.c_void_p(tensor.data_ptr())


def test_float_to_half_as_torch(library):
    """Every half, its neighbours, the middles between two halves, and any bits at all."""
    halves = torch.arange(-(1 << 15), 1 << 15).short().view(torch.float16).float()
    tiny = torch.tensor([1 + 2**-12, 1 - 2**-12, 1 + 2**-11, 1 - 2**-11, 1 + 2**-23, 0.5, 2**-24])
    numbers = torch.randint(-(1 << 31), (1 << 31) - 1, (100_000,)).int().view(torch.float32)
    x = torch.cat([halves, *(halves * t for t in tiny), numbers])
    half, bfloat = torch.empty_like(x, dtype=torch.float16), torch.empty_like(x, dtype=torch.bfloat16)
    library.convert(address(x), address(half), address(bfloat), ctypes.c_int64(x.numel()))
    for ours, dtype in ((half, torch.float16), (bfloat, torch.bfloat16)):
        torch.testing.assert_close(ours, x.to(dtype), rtol=0, atol=0, equal_nan=True)


def test_half_to_float_as_torch(library):
    halves = torch.arange(-(1 << 15), 1 << 15).short()
    x = torch.empty(halves.numel())
    library.widen(address(halves), address(x), ctypes.c_int64(x.numel()))
    torch.testing.assert_close(x, halves.view(torch.float16).float(), rtol=0, atol=0, equal_nan=True)


def test_shared_memory_holds_nothing_else():
    """What the host initialises at its first use (a guard variable tells) a launch would overwrite."""
    symbols = subprocess.run(
        ["nm", "-C", str(build.build("plain"))], capture_output=True, text=True, check=True
    )
    lines = [line for line in symbols.stdout.splitlines() if " b " in line.lower()]
    assert any("::" in line for line in lines)
    assert not [line for line in lines if "guard variable" in line]
