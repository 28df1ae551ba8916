"""Every kernel of csrc/cuda compiles for every architecture, without spills and within a block's means."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CSRC, RESULTS = ROOT / "csrc", ROOT / "bench" / "results" / "nvcc"
sys.path.insert(0, str(CSRC))  # its tools are scripts

import resources  # noqa: E402

needs_nvcc = pytest.mark.skipif(resources.nvcc() is None, reason="needs nvcc")

SAID = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN6fastdl4copyIfEEvPKT_PS1_' for 'sm_90'
ptxas info    : Function properties for _ZN6fastdl4copyIfEEvPKT_PS1_
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 39 registers, used 1 barriers, 16 bytes cumulative stack size, 128 bytes smem
ptxas info    : Compile time = 18.727 ms
ptxas info    : Compiling entry function '_ZN6fastdl4fillEv' for 'sm_90a'
ptxas info    : Function properties for _ZN6fastdl4fillEv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers
"""


def test_reads_what_ptxas_says():
    copy, fill = resources.parse("batch_norm_forward", SAID)
    assert (copy.registers, copy.spills, copy.stack, copy.shared) == (39, 8, 16, 128)
    assert (fill.target, fill.registers, fill.spills, fill.shared) == ("90", 8, 0, 0)
    assert copy.op == "batch_norm"
    assert resources.problems(copy) == ["spills 8 bytes"] and not resources.problems(fill)
    assert resources.demangle([copy.kernel])[copy.kernel] == "copy<float>"


def test_what_was_compiled_goes_with_what_it_includes():
    names = {path.name for path in resources._included(CSRC / "cuda" / "batch_norm_forward.cu")}
    assert {
        "batch_norm_forward.cu",
        "batch_norm_cut.cuh",
        "runtime.cuh",
        "batch_norm.h",
        "library.h",
    } <= names
    assert "conv2d.h" not in names


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_kept_summaries(path):
    """Every op on every architecture, nothing spilled. `stack` may be more: an array indexed at run time."""
    rows = json.loads(path.read_text())["worst"]
    expected = {(op, arch) for op in resources.OPS for arch in resources.ARCHITECTURES}
    assert {(row["op"], row["target"]) for row in rows if row["op"]} == expected
    for row in rows:
        assert row["spills"] == 0 and row["registers"] <= resources.REGISTER_LIMIT
        assert row["shared"] <= resources.SHARED_LIMIT


@needs_nvcc
def test_library_compiles():
    assert resources.compile_file(CSRC / "cuda" / "library.cu", "90") == []


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("arch", resources.ARCHITECTURES)
@pytest.mark.parametrize("source", sorted((CSRC / "cuda").glob("*.cu")), ids=lambda path: path.stem)
def test_compiles(source, arch):
    rows = resources.compile_file(source, arch)
    assert rows or "__global__" not in source.read_text()
    found = [f"{row.kernel} {problem}" for row in rows for problem in resources.problems(row)]
    assert not found, "\n".join(found)
