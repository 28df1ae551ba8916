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
