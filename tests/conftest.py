"""Fixtures of all tests. Kernels run on the GPU where there is one, interpreted on the CPU elsewhere."""

import json

import pytest
import torch
from support import DEVICE, executable_backends

from fastdl import backends, tuned


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)
            if "slow_interpreted" in item.keywords and "triton" in item.callspec.params.values():
                item.add_marker(pytest.mark.slow)


def pytest_generate_tests(metafunc):
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", executable_backends())


@pytest.fixture
def device() -> torch.device:
    """Where kernels run on this machine."""
    return torch.device(DEVICE)


@pytest.fixture
def on(backend):
    """Serve the calls of the test by ``backend``."""
    with backends.use_backend(backend):
        yield backend


@pytest.fixture(autouse=True)
def _reproducible():
    """The same numbers every time, no TF32."""
    torch.manual_seed(0)
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    torch.backends.cuda.matmul.fp32_precision = "ieee"


@pytest.fixture(autouse=True)
def _plain_torch_on_a_cpu(request):
    """Tests of convert compare to the bit: what is fused, not how kernels round. On a CPU torch serves."""
    if "convert" not in request.node.path.name and request.node.path.parent.name != "convert":
        yield
        return
    with backends.use_backend("reference" if DEVICE == "cpu" else "auto"):
        yield


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where tables of measurements are looked for: the user's in `cache`, what fastdl brings in `brought`."""
    monkeypatch.setenv("FASTDL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(tuned, "HERE", tmp_path / "brought")
    for name in ("cache", "brought"):
        (tmp_path / name).mkdir()
    backends.forget()
    yield tmp_path
    backends.forget()


@pytest.fixture
def own(folder):
    """Puts a table (or any text) where the user's own for the CPU is looked for."""

    def put(table):
        path = tuned.user_path(*tuned.device("cpu", None))
        path.write_text(table if isinstance(table, str) else json.dumps(table))
        backends.forget()
        return path

    return put
