"""csrc/cuda/batch_norm*: each way a call can go, on the device that makes it go there.

How many blocks share a channel, and whether its elements stay on chip, follows from the tensor's size and
from the device. On a CPU the emulated device takes both from the environment, once per process: so these
cases run in a process for each device. On a GPU they all run on the one there is.
"""

import json
import math
import os
import subprocess
import sys

import pytest
import torch

if __name__ == "__main__":
    sys.path[:0] = [os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]

from support import DEVICE, NATIVE_BACKENDS

if "cuda" not in NATIVE_BACKENDS:
    pytest.skip("no CUDA kernels here", allow_module_level=True)

EMULATED = DEVICE == "cpu"
#: Capability, multiprocessors: clusters; a small card without; one on which these tensors do not fit.
DEVICES = ["90 4", "80 4", "75 1"] if EMULATED else [""]

SHAPES = [  # shape, channels-last
    ((4, 3, 16, 16), False),  # vectors
    ((3, 5, 14, 14), False),  # 196: of 4 elements
    ((5, 3, 7, 7), False),  # 49: of one
    ((40, 24, 4, 4), True),  # vectors, lanes that have no channel
    ((65, 5, 3, 1), True),  # a row's end within a vector
    ((33, 257), False),
    ((257, 1, 3, 2, 2), False),
    ((64, 1, 24, 24), False),  # blocks that meet: a cluster, or through global memory
    ((70, 8, 12, 12), True),
    ((100, 2, 19, 19), False),
    ((9, 1, 56, 56), False),  # and, on the smallest, no room on chip
    ((60, 4, 24, 24), True),
    ((24, 5, 13, 13), True),
    ((81, 2, 15, 15), False),
]
CASES = [
    (*shape, dtype, offset, residual)
    for shape in SHAPES
    for dtype, offset, residual in [
        ("float32", 0, True),
        ("float32", 1, False),
        ("float16", 4, False),
        ("bfloat16", 0, True),
    ]
]


def run(shape, channels_last, dtype, offset, residual):
    """One case in both modes; offset: of the tensors in memory, in elements. Returns what went wrong."""
    import test_batch_norm as table

    from fastdl import native

    table.batch_norm = native.kernel("cuda", "batch_norm")
    dtype = getattr(torch, dtype)
    case = table.tensors(shape, dtype, channels_last, residual=residual)
    for name in ("x", "grad_out", "residual"):
        if case[name] is not None:
            case[name] = shifted(case[name], offset)
    for training in (True, False):
        options = {"training": training, "activation": "relu"}
        ours = table.fill(case, saved="mask" if residual else "recompute", **options)
        again = table.fill(case, saved="mask" if residual else "recompute", **options)
        for name, value in ours.items():
            assert torch.equal(value, again[name]), f"{name} differs from run to run"
        if residual:
            flat = ours["out"].as_strided((ours["out"].numel(),), (1,))
            bits = ours["mask"][:, None] >> torch.arange(8, device=DEVICE, dtype=torch.uint8) & 1
            assert torch.equal(bits.flatten()[: flat.numel()].bool(), ~(flat <= 0)), "mask"
        table.hold(ours, case, **options)


def shifted(t, offset):
    """The same values and strides, `offset` elements into memory that ends where they end."""
    memory = torch.full((t.numel() + offset,), math.nan, dtype=t.dtype, device=t.device)
    view = memory[offset:].as_strided(t.shape, t.stride(), offset)
    return view.copy_(t)


def emulated(device, arguments, **environment):
    """The output of this file run as a program on that device, one line per launch on stderr."""
    capability, multiprocessors = device.split()
    environment |= {
        "FASTDL_EMULATION_CAPABILITY": capability,
        "FASTDL_EMULATION_MULTIPROCESSORS": multiprocessors,
        "FASTDL_EMULATION_TRACE": "1",
    }
    return subprocess.run(
        [sys.executable, __file__, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("part", range(3))
def test_paths(device, part):
    cases = CASES[part::3]
    if not EMULATED:
        for case in cases:
            run(*case)
        return
    done = emulated(device, [json.dumps(cases)])
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.skipif(not EMULATED, reason="counts the launches of the emulation")
@pytest.mark.parametrize(
    ("device", "shape", "dtype", "residual", "launches"),
    [
        # a block alone, a cluster (grid of 8 blocks), blocks that meet, streaming
        ("90 4", (4, 8, 16, 16), "float32", False, ["resident 8", "backward_resident 8"]),
        ("90 4", (64, 1, 24, 24), "float32", False, ["resident 4", "backward_resident 4"]),
        ("80 4", (64, 1, 24, 24), "float32", False, ["resident 4", "backward_resident 4"]),
        ("75 1", (9, 1, 56, 56), "float32", False, ["statistics", "normalise", "gradient_sums", "backward"]),
        (
            "75 1", (81, 2, 15, 15), "float32", True,
            ["statistics", "normalise_flat", "gradient_sums", "backward_flat"],
        ),
        # a mask whose bytes no vector owns is packed from out
        ("90 4", (5, 3, 7, 7), "float32", True, ["resident", "pack_mask", "backward_resident"]),
    ],
)  # fmt: skip
def test_launches(device, shape, dtype, residual, launches):
    done = emulated(device, [json.dumps([[shape, False, dtype, 0, residual]])])
    assert done.returncode == 0, done.stderr[-4000:]
    seen = [line for line in done.stderr.splitlines() if "batch_norm_" in line]
    names = [line.split("batch_norm_", 1)[1].split("<")[0] for line in seen]
    grids = [line.split("grid (")[1].split(",")[0] for line in seen]
    for name, grid, expected in zip(names, grids, launches, strict=False):
        assert name == expected.split()[0], (names, launches)
        if " " in expected:
            assert grid == expected.split()[1], (seen, launches)


if __name__ == "__main__":
    for arguments in json.loads(sys.argv[1]):
        try:
            run(*arguments)
        except Exception:
            print(arguments, file=sys.stderr)
            raise
