"""``fastdl bench --html``: one self-contained page of tables and pictures from results files."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import picture
from .peers import EAGER, OURS
from .report import KEY, Result, headline, reached
from .sweep import fits

_STYLE = """
:root { --text: #1d2127; --muted: #5c6470; --line: #d9dde3; --back: #ffffff;
        --good: #18794e; --bad: #c4320a; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); margin: 2rem auto;
       max-width: 84rem; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; margin: 1rem 0; }
.wide { overflow-x: auto; }
th, td { padding: .2rem .35rem; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { position: sticky; top: 0; background: var(--back); } td.n, th.n { text-align: right; }
td:nth-child(2), td[colspan] { white-space: normal; min-width: 9rem; } /* names of cases, notes */
.good { color: var(--good); font-weight: 600; } .bad { color: var(--bad); font-weight: 600; }
.muted { color: var(--muted); } img { max-width: 100%; }
"""


def write(path: Path, reports: list[dict[str, Any]]) -> None:
    """The page of ``reports`` (as ``report.read`` gives them), written in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(page(reports))
    part.replace(path)


def page(reports: list[dict[str, Any]]) -> str:
    """The page as text."""
    body = "\n".join(line for report in reports for line in _report(report))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>fastdl bench</title>\n'
        '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">\n'
        f"<style>{_STYLE}</style></head>\n<body><h1>fastdl bench</h1>\n{body}\n</body></html>\n"
    )


def _report(report: dict[str, Any]) -> Iterator[str]:
    facts, results = report["environment"], report["results"]
    gpu = facts.get("gpu", "none")
    yield f"<h2>{html.escape(gpu if gpu != 'none' else str(facts.get('cpu', 'CPU')))}</h2>"
    plain = ", ".join(f"{k} {v}" for k, v in facts.items() if not isinstance(v, dict))
    yield f'<p class="muted">{html.escape(plain)}</p>'
    single = [r for r in results if not r.get("sweep")]
    if single:
        yield "<h3>Against PyTorch</h3>"
        yield "<p>Medians of interleaved runs. A goal that is missed is red.</p>"
        yield _picture(_speedups(single), "Time of eager PyTorch over ours, case by case")
        yield _overview(single)
        yield _picture(_roofline(single), "Bytes per second against bytes, beside what copying reaches")
        yield "<h3>Everybody</h3>"
        yield _everybody(single)
    if len(single) < len(results):
        yield "<h3>How cost grows</h3>"
        yield _picture(picture.scaling(results), "Time against size, and the line that fits")
        yield _fits(results)


def _table(columns: list[str], rows: list[list[str]], numbers_from: int) -> str:
    """``rows`` under ``columns``; a shorter row ends in a note, as wide as what is left."""

    def cells(tag: str, values: list[str]) -> str:
        kinds = [" class=n" if i >= numbers_from else "" for i in range(len(values))]
        if len(values) < len(columns):
            kinds[-1] = f" colspan={len(columns) - len(values) + 1}"
        return "".join(f"<{tag}{kind}>{v}</{tag}>" for kind, v in zip(kinds, values, strict=True))

    lines = "\n".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<div class=wide><table><thead><tr>{cells('th', columns)}</tr></thead>\n{lines}</table></div>"


def _overview(results: list[Result]) -> str:
    times = {tuple(r[k] for k in KEY): r["median_ms"] for r in results if r["status"] == "measured"}
    rows = []
    for r in results:
        key = tuple(r[k] for k in KEY)
        if r["implementation"] != OURS or key not in times:
            continue
        row = [html.escape(str(r[k])) for k in ("op", "case", "dtype", "layout", "direction", "timer")]
        row += [_number(times.get((*key[:-1], EAGER))), _number(r["median_ms"])]
        for which in ("vs_eager", "vs_compile"):
            ok = reached(r, which)
            kind = "" if ok is None else "good" if ok else "bad"
            row += [
                f'<span class="{kind}">{_number(r.get(f"speedup_{which}"))}</span>',
                _number(r.get(f"goal_{which}")),
            ]
        rows.append(row)
    columns = ["op", "case", "dtype", "layout", "direction", "timer"]
    columns += ["eager, ms", "ours, ms", "vs eager", "goal", "vs compile", "goal"]
    return _table(columns, rows, 6)


def _everybody(results: list[Result]) -> str:
    figures = [
        "median_ms",
        "p20_ms",
        "p80_ms",
        "gb_per_s",
        "percent_of_copy",
        "tflop_per_s",
        "percent_of_matmul",
    ]
    figures += ["speedup_vs_eager", "peak_mb", "error"]
    rows = []
    for r in results:
        if r["status"] == "skipped":
            continue
        row = [html.escape(str(r[k])) for k in KEY]
        if r["status"] == "measured":
            rows.append(row + [_number(r.get(f)) for f in figures])
        else:
            note = html.escape(f"{r['status']}: {r.get('note', '')}")
            rows.append([*row, f'<span class="bad">{note}</span>'])
    names = [
        "ms",
        "p20",
        "p80",
        "GB/s",
        "% of copy",
        "TFLOP/s",
        "% of matmul",
        "vs eager",
        "peak MB",
        "error",
    ]
    return _table([*KEY, *names], rows, len(KEY))


def _fits(results: list[Result]) -> str:
    rows = [
        [*map(html.escape, key), f"{fit.overhead_us:.1f}", f"{fit.gb_per_s:.1f}"]
        for key, fit in fits(results).items()
    ]
    names = ["op", "what grows", "direction", "timer", "implementation", "overhead, us", "rate, GB/s"]
    return _table(names, rows, 5)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _picture(figure: Any, what: str) -> str:
    """A figure as an image in the page."""
    if figure is None:
        return ""
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, bbox_inches="tight")
    plt.close(figure)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(what)}" src="data:image/png;base64,{data}">'


def _axes(*size: float) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=size)


def _speedups(results: list[Result]) -> Any:
    """A bar per case and direction, grouped by op, on a logarithmic axis."""
    some = headline(results)
    if not some:
        return None
    figure, ax = _axes(8, 1 + 0.19 * len(some))
    colours = {op: f"C{i}" for i, op in enumerate(dict.fromkeys(r["op"] for r in some))}
    for i, r in enumerate(some):
        speedup, goal = r["speedup_vs_eager"], r.get("goal_vs_eager") or 1
        ax.barh(i, speedup - 1, left=1, color=colours[r["op"]])
        if goal != 1:
            ax.plot(goal, i, "k|", markersize=8)
        # the number ends the bar, or stands behind a mark that it would lie on
        right = goal if 1 <= goal / speedup < 1.3 else max(speedup, 1)
        ax.annotate(f"{speedup:.2f}", (right, i), (4, 0), textcoords="offset points", va="center", fontsize=7)
    labels = [f"{r['op']} {r['case']}, {r['layout']}, {r['direction']}" for r in some]
    ax.set_yticks(range(len(some)), labels, fontsize=7)
    ax.set_ylim(len(some) - 0.4, -0.6)
    ax.set_xscale("log")
    low, high = ax.get_xlim()
    ax.set_xlim(low, 1.15 * high)  # room for the longest bar's number
    picture.times_ticks(ax)
    ax.axvline(1, color="black", linewidth=0.8)
    ax.set_xlabel("times as fast as eager PyTorch (black mark: goal)")
    return figure


def _roofline(results: list[Result]) -> Any:
    """Least bytes over time against least bytes; the line is a copy of as many bytes."""
    some = [r for r in results if r.get("gb_per_s") and r["timer"] in ("wall", "graph")]
    some = [r for r in some if r["implementation"] in (EAGER, OURS)]
    if not some:
        return None
    figure, ax = _axes(8, 4.5)
    for name, marker in ((EAGER, "x"), (OURS, "o")):
        for i, op in enumerate(dict.fromkeys(r["op"] for r in some)):
            mine = [r for r in some if r["implementation"] == name and r["op"] == op]
            x = [r["gb_per_s"] * r["median_ms"] for r in mine]
            label = op if name == OURS else None
            ax.plot(x, [r["gb_per_s"] for r in mine], marker, color=f"C{i}", label=label, alpha=0.8)
    copies = sorted(
        {(r["gb_per_s"] * r["median_ms"], 100 * r["gb_per_s"] / r["percent_of_copy"]) for r in some}
    )
    ax.plot(*zip(*copies, strict=True), "-", color="black", linewidth=0.8, label="copy")
    ax.set(xscale="log", yscale="log", xlabel="least bytes, MB", ylabel="GB/s (o ours, x eager)")
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)  # beside the points, not on them
    return figure
