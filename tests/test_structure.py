"""The arrows between the rooms (docs/design.md) and the one stem that each op has in every room."""

import ast
import re
from pathlib import Path

import pytest

from fastdl.backends import OPS

ROOT = Path(__file__).parent.parent

# A room may import the rooms below it and none above. `backends` reaches the kernels by name, lazily.
ORDER = [
    "cli",
    "demo",
    "experiments",
    "train",
    "bench",
    "parity",
    "data",
    "models",
    "info",
    "warm_up",
    "dynamo",
    "convert",
    "nn",
    "functional",
    "ops",
    "reference",
    "backends",
    "tuned",
    "native",
    "activations",
]
# One room is imported by a neighbour on the same side of the house.
RANK = {room: i for i, room in enumerate(ORDER)} | {"__main__": -1, "__init__": -1}


def imported_rooms(path: Path, package: list[str]) -> set[str]:
    """The rooms of fastdl that the file imports, at the top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [module] if module != "fastdl" else [f"fastdl.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("fastdl.")}
    return found


def files() -> list[Path]:
    return sorted([*(ROOT / "fastdl").rglob("*.py"), *(ROOT / "bench").rglob("*.py")])


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_point_one_way(path):
    relative = path.relative_to(ROOT).with_suffix("").parts
    if relative[0] == "bench":  # installed as fastdl.bench
        relative = ("fastdl", *relative)
    room = relative[1]
    # what the package itself re-exports counts as the room it lives in
    home = {"revert": "convert", "explain": "convert", "use_backend": "backends", "__version__": "backends"}
    for other in imported_rooms(path, list(relative[:-1])):
        other = home.get(other, other)
        if other != room:
            assert RANK[room] < RANK[other], f"{room} must not import {other}"


def test_a_wrong_arrow_is_seen(tmp_path):
    path = tmp_path / "functional.py"
    path.write_text(
        "def f():\n    from .convert.swap import x\n    from . import cli\n    import fastdl.nn\n"
    )
    assert imported_rooms(path, ["fastdl"]) == {"convert", "cli", "nn"}


def kernel_siblings(path: Path) -> set[str]:
    """The modules of kernels/ that the file imports."""
    nodes = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom) and n.level]
    return {name for n in nodes for name in ([n.module] if n.module else [a.name for a in n.names])}


@pytest.mark.parametrize("path", sorted((ROOT / "kernels").glob("*.py")), ids=lambda p: p.name)
def test_kernels_are_leaves(path):
    """kernels/ never imports fastdl proper, nor do an op's files (`<op>.py` and its parts `<op>_*.py`) import
    another op's; the parts do not import the whole."""
    assert imported_rooms(path, ["fastdl", "kernels"]) <= {"kernels"}
    for op in OPS:
        if path.stem == op or path.stem.startswith(f"{op}_"):
            others = kernel_siblings(path) - {"_runtime", "activation"}
            assert all(name.startswith((f"{op}_", "sampling")) for name in others), others


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    "room",
    [
        "csrc/{}.h",
        "csrc/cpu/{}*.cpp",
        "csrc/cuda/{}*.cu",
        "kernels/{}.py",
        "fastdl/ops/{}.py",
        "tests/kernels/test_{}.py",
        "bench/{}.py",
        "docs/ops/{}.md",
    ],
)
def test_same_stem_in_every_room(op, room):
    assert [*ROOT.glob(room.format(op))]


def includes(path: Path) -> list[str]:
    return re.findall(r'^#include [<"](.+)[>"]', path.read_text(), re.MULTILINE)


@pytest.mark.parametrize("path", sorted((ROOT / "csrc").rglob("*.*")), ids=lambda p: str(p.relative_to(ROOT)))
def test_only_the_bindings_know_torch(path):
    """csrc/cpu and csrc/cuda include the standard library, their own folder and csrc/*.h; no op another's."""
    if path.suffix not in (".h", ".cpp", ".cuh", ".cu"):
        return
    found = includes(path)
    if path.stem.startswith(("bindings", "calls")):
        assert {"bindings.h", "calls.h"} & {path.name, *found}
        return
    assert not [name for name in found if name.startswith(("torch/", "ATen/", "c10/", "pybind11/"))]
    other = {"cpu": "cuda/", "cuda": "cpu/"}.get(path.parent.name, "/")
    assert not [name for name in found if other in name.removeprefix("../")]
    op = next((op for op in OPS if path.stem.startswith(op)), None)
    for name in found if op else []:
        assert not [o for o in OPS if o != op and Path(name).stem.startswith(o)], f"{path.name}: {name}"
