"""What the pages show runs: every Python block, in a namespace per page; every link leads somewhere."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [
    page
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
    if page.is_file()
]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_blocks_run(page, capsys):
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    for number, block in enumerate(blocks):
        exec(compile(block, f"{name(page)}, block {number + 1}", "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert link.startswith("https://") or (page.parent / link).exists(), link


@pytest.mark.parametrize("spills, shared, status", [(16, 0, 0), (20, 0, 1), (0, 1 << 20, 1)])
def test_a_kernel_over_a_limit_fails_the_compilation(monkeypatch, capsys, spills, shared, status):
    """`python -m fastdl.kernels.aot` exits with 1, as docs/testing.md says."""
    aot = pytest.importorskip("fastdl.kernels.aot", reason="needs Triton")
    resources = aot.Resources("k", "90", 64, spills, shared, "", 0)
    launch = SimpleNamespace(kernel=SimpleNamespace(__name__="k"))
    row = aot.Row(aot.Case("conv2d", "a case", launch), {"90": resources})
    monkeypatch.setattr(aot, "default_launches", lambda *ops: [])
    monkeypatch.setattr(aot, "compile_cases", lambda *_: [row])
    assert aot.main(["--arch", "90"]) == status
    assert ("conv2d k (a case) on 90: " in capsys.readouterr().out) is bool(status)


def test_the_counts_in_the_readme():
    from fastdl import parity

    assert f"a table of {len(parity.CASES)} cases" in (ROOT / "README.md").read_text()
