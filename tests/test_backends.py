"""Which backend serves a call, on machines that lack some; and what importing fastdl does not do."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from support import DEVICE

import fastdl
import fastdl.functional as F
from fastdl import backends


def python(code: str, **environment: str) -> str:
    """Run ``code`` in a fresh interpreter outside the source tree; its output, or the failure."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("TRITON_", "FASTDL_"))} | environment
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=env, cwd="/", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_is_light():
    """No Triton, no Dynamo, no CUDA context, nothing printed, the environment as it was."""
    out = python("""
        import os, sys
        before = dict(os.environ)
        import torch
        import fastdl
        heavy = [m for m in ("triton", "torch._dynamo", "typer", "matplotlib", "sklearn") if m in sys.modules]
        assert not heavy, heavy
        assert not torch.cuda.is_initialized()
        assert dict(os.environ) == before
    """)
    assert out == ""


@pytest.mark.parametrize(
    "how",
    ["sys.modules['triton'] = None", "sys.modules['triton.language'] = None"],
    ids=["absent", "broken"],
)
def test_without_triton_the_reference_serves(how):
    out = python(f"""
        import sys
        {how}
        import torch, fastdl
        x = torch.randn(1, 2, 4, 4)
        assert torch.equal(fastdl.functional.max_pool2d(x, 2), torch.nn.functional.max_pool2d(x, 2))
        try:
            with fastdl.use_backend("triton"):
                fastdl.functional.max_pool2d(x, 2)
        except RuntimeError as error:
            print(error)
    """)
    assert out.startswith("fastdl.max_pool2d: expected a call that backend 'triton' can serve")
    assert "Triton cannot be imported" in out


def test_without_a_gpu_triton_needs_its_interpreter():
    code = """
        import torch, fastdl
        print(fastdl.backends.why_not("triton", torch.device("cpu")))
    """
    assert "TRITON_INTERPRET=1" in python(code)
    assert python(code, TRITON_INTERPRET="1") == "None"


def test_backend_from_the_environment():
    code = """
        import torch, fastdl
        with fastdl.backends.record() as choices:
            try:
                fastdl.functional.max_pool2d(torch.randn(1, 2, 4, 4), 2)
            except (ValueError, RuntimeError) as error:
                print(error)
        print([c.backend for c in choices])
    """
    assert python(code, FASTDL_BACKEND="triton", TRITON_INTERPRET="1") == "['triton']"
    assert python(code, FASTDL_BACKEND="reference") == "['reference']"
    assert "expected one of auto, reference, cpu, cuda, triton, got 'cudnn'" in python(
        code, FASTDL_BACKEND="cudnn"
    )


def test_use_backend_nests_and_restores():
    x = torch.randn(1, 2, 4, 4, device=DEVICE)
    with backends.record() as choices, fastdl.use_backend("reference"):
        with fastdl.use_backend("triton"):
            F.max_pool2d(x, 2)
        F.max_pool2d(x, 2)
        with pytest.raises(ZeroDivisionError), fastdl.use_backend("triton"):
            raise ZeroDivisionError
        F.max_pool2d(x, 2)
    assert [c.backend for c in choices] == ["triton", "reference", "reference"]


def test_auto_never_interprets_or_emulates_on_the_cpu():
    built = backends.why_not("cpu", torch.device("cpu")) is None
    with fastdl.use_backend("auto"), backends.record() as choices:
        F.max_pool2d(torch.randn(1, 2, 4, 4), 2)
    assert choices[0].backend == ("cpu" if built else "reference")


def test_backward_uses_the_backend_of_its_forward(device):
    x = torch.randn(1, 2, 4, 4, device=device, requires_grad=True)
    with fastdl.use_backend("triton"):
        out = F.max_pool2d(x, 2)
    with fastdl.use_backend("reference"):
        (grad,) = torch.autograd.grad(out.sum(), x)
    (expected,) = torch.autograd.grad(torch.nn.functional.max_pool2d(x, 2).sum(), x)
    assert torch.equal(grad, expected)


def test_source_tree_without_installation_says_so(tmp_path):
    """Only the fastdl folder on the path: kernels cannot be found, and the error tells what to run."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    os.symlink(os.path.join(root, "fastdl"), tmp_path / "fastdl")
    (tmp_path / "kernels").mkdir()
    out = python(f"""
        import sys
        sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in str(f).lower()]
        sys.path.insert(0, {str(tmp_path)!r})
        sys.path[:] = [p for p in sys.path if "__editable__" not in p]
        try:
            import fastdl
        except ImportError as error:
            print(error)
    """)
    assert "pip install --no-build-isolation -e ." in out
