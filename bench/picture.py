"""The picture of README.md: how many times as fast as PyTorch each op is, from a results file."""

from __future__ import annotations

import io
from typing import Any

from .report import Result

_COLOURS = {"eager": "#2563a8", "compile": "#d9822b"}
_NAMES = {"eager": "PyTorch", "compile": "torch.compile"}
_DIRECTIONS = {"both": "forward + backward", "step": ""}


def svg(ours: list[Result]) -> str:
    """A line per op and direction, a dot per case; what it shows is in the text as well."""
    import matplotlib
    from matplotlib.figure import Figure

    groups: dict[str, list[Result]] = {}
    for r in ours:
        kind = "training step" if r["op"] == "step" else r["op"]
        name = ", ".join(filter(None, (kind, _DIRECTIONS.get(r["direction"], r["direction"]))))
        groups.setdefault(name, []).append(r)

    # paths for letters: no font is asked for; a salt: the same text from the same results
    with matplotlib.rc_context({"svg.hashsalt": "fastdl", "svg.fonttype": "path"}):
        figure = Figure(figsize=(9, 0.6 + 0.28 * len(groups)), layout="tight")
        _draw(figure.subplots(), groups)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Description": shown(ours)})
    return "".join(line.rstrip() + "\n" for line in text.getvalue().splitlines())


def shown(ours: list[Result]) -> str:
    """The numbers that the picture is made of, in one line."""
    return "; ".join(
        " ".join(
            [
                r["op"],
                r["direction"],
                *(f"{r[f'speedup_vs_{p}']:.3g}" for p in _COLOURS if f"speedup_vs_{p}" in r),
            ]
        )
        for r in ours
    )


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
    ticks = [0.5, 1, 2, 4, 8, 16, 32]
    ax.set_xticks(ticks, [f"{t:g}x" for t in ticks])
    ax.minorticks_off()
    ax.set_yticks(range(len(groups)), list(groups))
    ax.set_ylim(len(groups) - 0.5, -0.5)
    ax.grid(axis="x", color="#dddddd", linewidth=0.7)
    ax.set_axisbelow(True)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.set_title("Times as fast, a dot per case", fontsize=11, loc="left")
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, handletextpad=0, borderpad=0)
