"""The source distribution has all sources and nothing built."""

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("bench", "csrc", "docs", "fastdl", "kernels", "tests")
AT_THE_ROOT = {
    *("setup.py", "pyproject.toml", "requirements.txt", "requirements-extras.txt", "Makefile", "mkdocs.yml"),
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in"),
    *(".clang-format", ".pre-commit-config.yaml"),
}
BUILT = {".so", ".pyc", ".o"}


def sources() -> set[str]:
    paths = [p for room in ROOMS for p in (ROOT / room).rglob("*") if p.is_file()]
    own = {str(p.relative_to(ROOT)) for p in paths if p.suffix not in BUILT and "__pycache__" not in p.parts}
    return {p for p in own if p != "fastdl/native/build.json" and not p.startswith("bench/results/local/")}


@pytest.mark.slow
def test_the_source_distribution(tmp_path):
    command = [sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (archive,) = tmp_path.glob("fastdl-*.tar.gz")
    with tarfile.open(archive) as packed:
        files = {name.partition("/")[2] for name in packed.getnames()}
    assert not sources() - files
    assert not {name for name in files if Path(name).suffix in BUILT or name.endswith("build.json")}
    assert not AT_THE_ROOT - files
