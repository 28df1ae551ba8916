"""Any shapes, arguments, dtypes, layouts and values, on every backend, against torch.

    FASTDL_FUZZ=20000 .venv/bin/python -m pytest -m slow tests/fuzz -k "cpu and conv2d"

draws that many new examples; without it the number per backend below, the same in every run. Each backend has
a file of its own, as a file is what pytest-xdist gives to a worker.
"""

import os

import pytest
from fuzz.examples import EXAMPLES, draw
from fuzz.kinks import crashes_torch, near_a_kink
from fuzz.running import check
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture import providers
from support import KERNEL_BACKENDS

ASKED = int(os.environ.get("FASTDL_FUZZ", "0"))
#: What emulation and interpretation leave time for.
SHARE = {"cpu": 2000, "cuda": 300, "triton": 20}


def needs(kernel: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(kernel not in KERNEL_BACKENDS, reason=f"{kernel} does not run here")


def any_call(op: str, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # else it draws, now and then, numbers that it found in whatever modules are loaded
    monkeypatch.setattr(providers, "_get_local_constants", providers.Constants)

    # the seed is a hash of these lines: reworded, they draw other examples
    @settings(
        max_examples=ASKED or SHARE[kernel],
        derandomize=not ASKED,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(EXAMPLES[op], st.integers(0, 1000))
    def run(example, seed):
        assume(not crashes_torch(example))
        assume(not near_a_kink(example, draw(example, seed)))
        check(example, kernel, seed)

    run()
