"""The tables and pictures of the pages, out of the committed results: ``python -m fastdl.bench.tables``
writes them anew.

A page has ``<!-- results: NAME FILE -->`` and ``<!-- end of results -->`` around each; ``--check`` changes
nothing and fails where a page does not say what the results say.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from . import picture
from .peers import EAGER, OURS
from .report import KEY, Result, headline, reached, read

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/benchmarking.md", "docs/models.md")
#: Pictures, the results that each shows, and what draws it.
PICTURES = {
    "docs/speedups.svg": ("bench/results/cpu/bench.json", picture.speedups),
    "docs/scaling.svg": ("bench/results/cpu/sweep.json", picture.scaling),
}
_BLOCK = re.compile(r"(<!-- results: (\w+) (\S+) -->\n).*?(<!-- end of results -->)", re.DOTALL)


def renewed(text: str) -> str:
    """A page's text with its tables made anew."""
    return _BLOCK.sub(lambda m: f"{m[1]}{_TABLES[m[2]](ROOT / m[3])}\n{m[4]}", text)


def up_to_date(name: str) -> bool:
    """Whether one of PICTURES shows what its results say."""
    path = ROOT / name
    numbers = picture.numbers(read(ROOT / PICTURES[name][0])["results"])
    return path.exists() and f">{numbers}<" in path.read_text()


def ranges(path: Path) -> str:
    """A line per op and direction: the least and the greatest ratio over its cases."""
    report = read(path)
    groups: dict[tuple[str, str], list[Result]] = {}
    for r in headline(report["results"]):
        groups.setdefault((r["op"], r["direction"]), []).append(r)
    lines = [
        "| op | direction | cases | eager / fastdl | torch.compile / fastdl |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for (op, direction), some in groups.items():
        spans = [
            _span([r[f"speedup_vs_{w}"] for r in some if f"speedup_vs_{w}" in r])
            for w in ("eager", "compile")
        ]
        lines.append(f"| {op} | {direction} | {len(some)} | {spans[0]} | {spans[1]} |")
    return "\n".join(["", *lines, "", _where(report, path), ""])


def cases(path: Path) -> str:
    """A line per case; a goal that is missed is marked."""
    report = read(path)
    times = {tuple(r[k] for k in KEY): r["median_ms"] for r in report["results"] if r["status"] == "measured"}
    columns = ["op", "case", "layout", "direction", "eager, ms", "fastdl, ms", "eager / fastdl", "goal"]
    columns += ["torch.compile / fastdl"]
    lines = [f"| {' | '.join(columns)} |", "| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: |"]
    for r in headline(report["results"]):
        eager = times[(*(r[k] for k in KEY[:-1]), EAGER)]
        goal = f"{r['goal_vs_eager']:.1f}" if "goal_vs_eager" in r else ""
        mark = " (missed)" if reached(r, "vs_eager") is False else ""
        compiled = f"{r['speedup_vs_compile']:.2f}" if "speedup_vs_compile" in r else ""
        named = " | ".join(str(r[k]) for k in ("op", "case", "layout", "direction"))
        times_ms = f"{eager:.3g} | {r['median_ms']:.3g}"
        lines.append(f"| {named} | {times_ms} | {r['speedup_vs_eager']:.2f} | {goal}{mark} | {compiled} |")
    return "\n".join(["", *lines, "", _where(report, path), ""])


def suite(path: Path, root: Path | None = None) -> str:
    """A line per network and variant of what ``fastdl suite`` found; a bound that is missed is marked."""
    report = json.loads(path.read_text())
    timed = any("time" in row for row in report["rows"].values())
    columns = ["network", "parameters", "calls taken", "by kernels", "within the rule", "score", "stock"]
    columns += ["converted", "accepted"]
    columns += ["stock, ms", "converted, ms", "compiled, ms", "both, ms"] if timed else []
    lines = [f"| {' | '.join(columns)} |", f"| --- {'| ---: ' * 4}| --- {'| ---: ' * (len(columns) - 6)}|"]
    for title, row in report["rows"].items():
        cells = [title, *_parity(row.get("parity")), *_score(row.get("score"))]
        cells += _times(row.get("time")) if timed else []
        lines.append(f"| {' | '.join(cells)} |")
    facts = report["environment"]
    machine = f"{facts['gpu'] if facts['gpu'] != 'none' else facts['cpu']}, torch {facts['torch']}"
    where = (
        _where(_timed(report), path, root)
        if timed
        else f"{machine}, from `{path.relative_to(root or ROOT)}`."
    )
    return "\n".join(["", *lines, "", where, ""])


def _parity(part: dict | None) -> list[str]:
    if part is None:
        return [""] * 4
    ran = sum(part["chosen"].values())
    shares = [
        (part["taken"], part["calls"]),
        (ran - part["chosen"].get("reference", 0), ran),
        (part["tensors"] - len(part["failed"]), part["tensors"]),
    ]
    return [f"{part['parameters']:,}", *(f"{some} of {all_}" if all_ else "none" for some, all_ in shares)]


def _score(part: dict | None) -> list[str]:
    """Metrics under each other, each with its bound."""
    if part is None:
        return [""] * 4
    cells: list[list[str]] = [[], [], [], []]
    for metric, values in part["metrics"].items():
        bounds = [f"{how} {_score_text(values[how])}" for how in ("at least", "at most") if how in values]
        bound = "".join(bounds) + (" (missed)" if values.get("met") is False else "")
        both = (_score_text(values[kind]) for kind in ("stock", "converted"))
        for cell, text in zip(cells, (metric, *both, bound), strict=True):
            cell.append(text)
    return ["<br>".join(cell) for cell in cells]


def _score_text(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.2f}"


def _times(part: dict | None) -> list[str]:
    times = {r["implementation"]: r for r in part["rows"]} if part else {}
    names = (EAGER, OURS, "compile", f"{OURS}_compile")
    return [f"{times[n]['median_ms']:.3g}" if "median_ms" in times.get(n, ()) else "" for n in names]


def _timed(report: dict) -> dict:
    """The times alone, as a report of ``fastdl bench``."""
    parts = [row["time"] for row in report["rows"].values() if "time" in row]
    threads = " or ".join(str(n) for n in sorted({part["threads"] for part in parts}))
    return {
        "environment": {**report["environment"], "threads": threads},
        "results": [r for part in parts for r in part["rows"]],
    }


_TABLES = {"ranges": ranges, "cases": cases, "suite": suite}


def _span(ratios: list[float]) -> str:
    if not ratios:
        return ""
    least, most = min(ratios), max(ratios)
    return f"{least:.2f}" if len(ratios) == 1 else f"{least:.2f} to {most:.2f}"


def _where(report: dict, path: Path, root: Path | None = None) -> str:
    facts = report["environment"]
    gpu = facts["gpu"] != "none"
    machine = facts["gpu"] if gpu else f"{facts['cpu']}, {facts['threads']} threads"
    dtypes = ", ".join(dict.fromkeys(r["dtype"] for r in report["results"]))
    how = f"torch {facts['torch']}, {dtypes}; medians of interleaved runs"
    return f"{machine}, {how}, from `{path.relative_to(root or ROOT)}`."


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 where a page is stale")
    check = parser.parse_args().check
    stale = []
    for page in (ROOT / name for name in PAGES):
        text = page.read_text()
        new = renewed(text)
        if new != text:
            stale.append(page.name)
            if not check:
                page.write_text(new)
    for name, (file, draw) in PICTURES.items():
        if not up_to_date(name):
            stale.append(name)
            if not check:
                results = read(ROOT / file)["results"]
                (ROOT / name).write_text(picture.svg(draw(results), picture.numbers(results)))
    if stale:
        print(f"{'stale' if check else 'renewed'}: {', '.join(stale)}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
