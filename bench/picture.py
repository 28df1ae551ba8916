"""Pictures of the pages, from results files: how many times as fast each op is, and how its cost grows."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from .report import Result, headline
from .sweep import fits

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = {"eager": "#2563a8", "compile": "#d9822b"}
_NAMES = {"eager": "PyTorch", "compile": "torch.compile"}
_DIRECTIONS = {"both": "forward + backward", "step": ""}


def svg(figure: Figure, numbers: str) -> str:
    """The picture as text, with the numbers it is made of in it."""
    import matplotlib

    text = io.StringIO()
    # paths for letters: no font is asked for; a salt: the same text from the same results
    with matplotlib.rc_context({"svg.hashsalt": "fastdl", "svg.fonttype": "path"}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Description": numbers})
    return "".join(line.rstrip() + "\n" for line in text.getvalue().splitlines())


def numbers(results: list[Result]) -> str:
    """What pictures of ``results`` are made of, in one line."""
    return " ".join(f"{r['median_ms']:.4g}" for r in results if r["status"] == "measured")


def speedups(results: list[Result]) -> Figure:
    """A line per op and direction, a dot per case."""
    from matplotlib.figure import Figure

    groups: dict[str, list[Result]] = {}
    for r in headline(results):
        kind = "training step" if r["op"] == "step" else r["op"]
        name = ", ".join(filter(None, (kind, _DIRECTIONS.get(r["direction"], r["direction"]))))
        groups.setdefault(name, []).append(r)
    figure = Figure(figsize=(9, 0.6 + 0.28 * len(groups)), layout="tight")
    _draw(figure.subplots(), groups)
    return figure


def _draw(ax: Any, groups: dict[str, list[Result]]) -> None:
    for peer, colour in _COLOURS.items():
        places = [
            (r[f"speedup_vs_{peer}"], y + (0.17 if peer == "compile" else -0.17))
            for y, some in enumerate(groups.values())
            for r in some
            if f"speedup_vs_{peer}" in r
        ]
        if places:
            ax.plot(*zip(*places, strict=True), "o", color=colour, alpha=0.75, markersize=5, mew=0)
            ax.plot([], [], "o", color=colour, label=f"as {_NAMES[peer]}")
    ax.axvline(1, color="#444444", linewidth=1)
    ax.set_xscale("log")
    times_ticks(ax)
    ax.set_yticks(range(len(groups)), list(groups))
    ax.set_ylim(len(groups) - 0.5, -0.5)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.set_title("Times as fast, a dot per case", fontsize=11, loc="left")
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, handletextpad=0, borderpad=0)


def times_ticks(ax: Any) -> None:
    """How many times as fast: powers of two in words, on a logarithmic axis."""
    low, high = ax.get_xlim()
    ticks = [t for t in (0.125, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64) if low <= t <= high]
    ax.set_xticks(ticks, [f"{t:g}x" for t in ticks])
    ax.minorticks_off()
    ax.grid(axis="x", color="#dddddd", linewidth=0.7)
    ax.set_axisbelow(True)


def scaling(results: list[Result]) -> Figure | None:
    """A small plot per sweep and direction: time against size, with the line that fits; None without any."""
    from matplotlib.figure import Figure

    some = [r for r in results if r.get("sweep") and r.get("gb_per_s")]
    names = list(dict.fromkeys((r["op"], r["sweep"], r["direction"], r["timer"]) for r in some))
    if not names:
        return None
    columns, rows = 3, -(-len(names) // 3)
    figure = Figure(figsize=(12, 2.8 * rows), layout="tight")
    axes = figure.subplots(rows, columns, squeeze=False)
    lines = fits(results)
    for ax, name in zip(axes.flat, names, strict=False):
        mine = [r for r in some if (r["op"], r["sweep"], r["direction"], r["timer"]) == name]
        for i, peer in enumerate(dict.fromkeys(r["implementation"] for r in mine)):
            of = [r for r in mine if r["implementation"] == peer]
            x = [r["gb_per_s"] * r["median_ms"] for r in of]
            ax.plot(x, [r["median_ms"] for r in of], "o", color=f"C{i}", label=peer, markersize=3)
            line = lines.get((*name, peer))
            if line is not None:
                fitted = [line.overhead_us / 1e3 + b / line.gb_per_s for b in x]
                ax.plot(x, fitted, "-", color=f"C{i}", linewidth=0.7)
        ax.set(xscale="log", yscale="log")
        ax.set_title(", ".join(name[:3]), fontsize=8)
        ax.tick_params(labelsize=7)
        ax.legend(fontsize=7)
    for ax in axes.flat[len(names) :]:
        ax.axis("off")
    figure.supxlabel("least bytes, MB")
    figure.supylabel("milliseconds")
    return figure
