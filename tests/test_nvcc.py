"""Every kernel of csrc/cuda compiles for every architecture, without spills and within a block's means."""

import sys
from pathlib import Path

import pytest

CSRC = Path(__file__).parent.parent / "csrc"
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
