"""The compiled part of the package: what is built, what is loaded, and what happens where it cannot be."""

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_backends import python

from fastdl import backends, native

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "csrc"))  # its tools are scripts

import build as kernels  # noqa: E402  csrc/build.py

BUILT = native.library("cpu")[0] is not None

needs_kernels = pytest.mark.skipif(not BUILT, reason="installed without the C++ kernels")


def entries() -> set[str]:
    """The functions that csrc/*.h declare."""
    names = set()
    for header in (ROOT / "csrc").glob("*.h"):
        names |= set(re.findall(r"^FASTDL_EXPORT .*?(fastdl_\w+)\(", header.read_text(), re.MULTILINE))
    return names


@needs_kernels
@pytest.mark.parametrize("capability", native.CAPABILITIES)
def test_every_library_exports_every_function(capability):
    path = native.HERE / f"libfastdl_cpu_{capability}.so"
    if not path.exists():
        pytest.skip("not an x86-64 machine")
    library = ctypes.CDLL(str(path))
    names = entries()
    assert "fastdl_max_pool2d_forward" in names
    assert [name for name in sorted(names) if not hasattr(library, name)] == []


@needs_kernels
@pytest.mark.parametrize("capability", native.CAPABILITIES)
def test_the_capability_can_be_chosen(capability):
    out = python(
        """
        import torch, fastdl
        from fastdl import native
        x = torch.randn(2, 3, 9, 9)
        assert torch.equal(fastdl.functional.max_pool2d(x, 2), torch.nn.functional.max_pool2d(x, 2))
        print(native.capability(), native.describe()["cpu"])
        """,
        FASTDL_CPU_CAPABILITY=capability,
    )
    used, *said = out.split()
    assert said == ["cpu", used]
    best = torch.backends.cpu.get_cpu_capability().lower()
    order = native.CAPABILITIES
    assert used == order[min(order.index(capability), order.index(best) if best in order else 0)]


def test_an_unknown_capability_is_refused():
    out = python(
        """
        import torch, fastdl
        try:
            fastdl.functional.max_pool2d(torch.randn(1, 1, 4, 4), 2)
        except ValueError as error:
            print(error)
        """,
        FASTDL_CPU_CAPABILITY="sse9",
    )
    assert out in (
        "FASTDL_CPU_CAPABILITY: expected one of default, avx2, avx512, got 'sse9'",
        "" if not BUILT else None,
    )


def in_its_place(tmp_path, monkeypatch, **note) -> None:
    """fastdl/native as if it had been built so."""
    (tmp_path / "build.json").write_text(json.dumps(note))
    monkeypatch.setattr(native, "HERE", tmp_path)
    for function in (native._bindings, native.library, native.kernel, backends._missing, backends._picked):
        function.cache_clear()


@pytest.fixture
def clean_caches():
    yield
    for function in (native._bindings, native.library, native.kernel, backends._missing, backends._picked):
        function.cache_clear()
    backends._short_way.cache_clear()


def test_built_for_another_torch(tmp_path, clean_caches):
    """It is neither imported nor a crash: the reference serves, and the reason says what to do."""
    with pytest.MonkeyPatch.context() as patch:
        in_its_place(tmp_path, patch, torch="1.13.1")
        reason = backends.why_not("cpu", torch.device("cpu"))
        assert "built for torch 1.13.1" in reason and "install fastdl again" in reason
        choice = backends.choose("max_pool2d", torch.device("cpu"), torch.float32)
        assert choice.backend == "reference" and "1.13.1" in choice.reason


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"torch": '])
def test_a_note_that_cannot_be_read(tmp_path, clean_caches, text):
    """An interrupted installation: named, not a crash."""
    with pytest.MonkeyPatch.context() as patch:
        in_its_place(tmp_path, patch)
        (tmp_path / "build.json").write_text(text)
        assert "install fastdl again" in backends.why_not("cpu", torch.device("cpu"))


def test_not_built_at_all(tmp_path, clean_caches):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "HERE", tmp_path)
        for function in (native._bindings, native.library, backends._missing, backends._picked):
            function.cache_clear()
        assert "without its C++ kernels" in backends.why_not("cpu", torch.device("cpu"))


@needs_kernels
def test_a_library_that_is_none_is_refused(tmp_path):
    from fastdl import _C

    (tmp_path / "text.so").write_text("no library")
    with pytest.raises(RuntimeError, match=r"invalid ELF header|file too short|not a mach-o"):
        _C.Library(str(tmp_path / "text.so"))


@needs_kernels
def test_a_library_of_another_version_is_refused(tmp_path):
    from fastdl import _C

    source = tmp_path / "old.c"
    source.write_text('int fastdl_version() { return 0; }\nconst char* fastdl_describe() { return ""; }\n')
    library = tmp_path / "old.so"
    subprocess.run(["cc", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    with pytest.raises(RuntimeError, match=r"has version 0 of the kernels' interface.*build fastdl again"):
        _C.Library(str(library))


def setup(*arguments: str, **environment: str) -> str:
    env = {k: v for k, v in os.environ.items() if not k.startswith("FASTDL_")} | environment
    done = subprocess.run(
        [sys.executable, "setup.py", *arguments], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def refused(path: Path) -> list[str]:
    """What every entry of the library says where there is no device."""
    return python(
        f"""
        import torch
        from fastdl import _C

        library = _C.Library({str(path)!r})
        x, w, one, scalar = torch.randn(2, 4, 8, 8), torch.randn(4, 4, 3, 3), torch.randn(4), torch.zeros(())
        pooled, offsets = torch.empty(2, 4, 4, 4), torch.zeros(2, 4, 4, 4, dtype=torch.uint8)
        theta, logits = torch.randn(2, 2, 3), torch.randn(2, 5, 3)
        spline, controls = torch.randn(2, 2, 7), torch.randn(4, 2)
        target = torch.zeros(2, 3, dtype=torch.long)
        act = dict(activation="relu", activation_param=0.0)
        pool = dict(kernel_size=(2, 2), stride=(2, 2), padding=(0, 0), dilation=(1, 1))
        norm = dict(training=True, **act)
        loss = dict(ignore_index=-100, label_smoothing=0.0, reduction="mean")
        grid = dict(mode="bilinear", padding_mode="zeros", align_corners=False)
        conv = dict(stride=(1, 1), padding=(1, 1), dilation=(1, 1), groups=1)
        after = dict(pool_kernel_size=(2, 2), pool_stride=(2, 2))
        l, y = library, torch.empty_like(x)
        calls = [
            lambda: l.max_pool2d_forward(x, pooled, offsets, **pool),
            lambda: l.max_pool2d_backward(pooled, offsets, y, **pool),
            lambda: l.batch_norm_forward(
                x, one, one, None, None, None, y, one, one, None, momentum=0.1, eps=1e-5, **norm
            ),
            lambda: l.batch_norm_backward(x, x, one, one, None, one, one, None, y, one, one, None, **norm),
            lambda: l.cross_entropy_forward(logits, target, None, scalar, logits[:, 0], scalar, **loss),
            lambda: l.cross_entropy_backward(
                scalar, logits, target, None, logits[:, 0], scalar, logits, **loss
            ),
            lambda: l.cross_entropy_scale(one, scalar),
            lambda: l.affine_grid_sample_forward(x, theta, y, **grid),
            lambda: l.affine_grid_sample_backward(y, x, theta, x, theta, **grid),
            lambda: l.tps_grid_sample_forward(x, spline, controls, y, **grid),
            lambda: l.tps_grid_sample_backward(y, x, spline, controls, x, spline, **grid),
            lambda: l.conv2d_forward(x, w, one, y, **conv, **act),
            lambda: l.conv2d_backward(y, x, w, None, w, **conv),
            lambda: l.conv2d_max_pool2d(x, w, one, pooled, offsets, **conv, **act, **after),
            lambda: l.conv2d_epilogue(y, one, **act),
            lambda: l.conv2d_epilogue_backward(y, y, x, one, **act),
        ]
        print(library.describe())
        for call in calls:
            try:
                call()
                print("no error")
            except RuntimeError as error:
                print(error)
        """,
        CUDA_VISIBLE_DEVICES="",
    ).splitlines()


@needs_kernels
@pytest.mark.slow
@pytest.mark.skipif(kernels.nvcc() is None, reason="needs nvcc")
def test_cuda_library_without_a_gpu(tmp_path):
    """As nvcc builds it, for one architecture: whole, and where there is no device an error and no crash."""
    ninja = kernels.Ninja()
    kernels.add_cuda(ninja, ["9.0"])
    (path,) = ninja.run(tmp_path)
    library = ctypes.CDLL(str(path))
    assert [name for name in sorted(entries()) if not hasattr(library, name)] == []
    about, *errors = refused(path)
    assert about == "cuda 9.0"
    assert len(errors) == sum("covers" not in name for name in entries()) - 2  # version, describe
    assert all(re.match(r"fastdl\.\w+: .*(CUDA driver|CUDA-capable device)", e) for e in errors), errors


@pytest.mark.slow
def test_without_cpp_it_is_plain_python(tmp_path):
    target, source = tmp_path / "site", tmp_path / "source"
    built = shutil.ignore_patterns(".venv", ".git", "build", "*.so", "build.json", "*.egg-info")
    shutil.copytree(ROOT, source, ignore=built)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps"]
    subprocess.run(
        [*command, "--target", str(target), str(source)], check=True, env=os.environ | {"FASTDL_NATIVE": "0"}
    )
    assert not list(target.rglob("*.so"))
    code = f"""
        import torch, fastdl
        assert fastdl.__file__.startswith("{target}"), fastdl.__file__
        assert fastdl.functional.max_pool2d(torch.ones(1, 1, 4, 4), 2).shape == (1, 1, 2, 2)
        print(fastdl.backends.why_not("cpu", torch.device("cpu")))
    """
    assert python(code, PYTHONPATH=str(target)) == "fastdl was installed without its C++ kernels"


@pytest.mark.slow
def test_two_builds_at_once():
    """They take turns: neither breaks the other, and what they leave works."""
    commands = [
        subprocess.Popen([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=ROOT)
        for _ in range(2)
    ]
    assert [command.wait() for command in commands] == [0, 0]
    python("""
        import torch, fastdl
        with fastdl.use_backend("cpu"):
            fastdl.functional.max_pool2d(torch.randn(1, 1, 4, 4), 2)
    """)
