"""Every network of the course in one table: what is converted, how right, how well it learns, how fast.

Behind ``fastdl suite``. A row has three parts: "parity", "score" and "time".
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .. import convert, data, explain, models
from ..bench import EAGER, OURS, keep_heap
from ..bench import models as steps
from ..info import environment
from ..parity import networks
from . import checkpoint, train
from .loop import How, Run, Trainer, fresh
from .recipes import ACCEPTED, RECIPES, VARIANTS, Recipe
from .tasks import TASKS

SCHEMA = "fastdl.suite/1"
PARTS = ("parity", "score", "time")
#: What is timed: stock and converted networks, each as it is and through torch.compile.
TIMED = (EAGER, OURS, "compile", f"{OURS}_compile")

Row = dict[str, Any]


def runs(names: Sequence[str] = ()) -> dict[str, tuple[str, Recipe | None]]:
    """Rows by name: the network, and its recipe where there is one. Of all networks, or of ``names``.

    Raises:
        ValueError: if one of them is none.
    """
    for name in names:
        if name not in models.names():
            raise ValueError(
                f"fastdl.train.suite: expected networks among {', '.join(models.names())}, got {name!r}"
            )
    found: dict[str, tuple[str, Recipe | None]] = {}
    for name in models.names():
        found[name] = name, RECIPES.get(name)
        found |= {title: run for title, run in VARIANTS.items() if run[0] == name}
    return {title: run for title, run in found.items() if not names or run[0] in names}


def measure(
    names: Sequence[str],
    parts: Sequence[str],
    output: Path,
    console: Console,
    device: torch.device,
    seed: int = 0,
    seconds: float = 3.0,
) -> dict[str, Any]:
    """Fill ``output``/suite.json, kept up to date part by part, and return what is in it.

    Args:
        names: of networks; none for all.
        parts: of every row, measured whether they are there or not; none for those that are missing.
        seconds: for the timing of each row, on a CPU.

    Raises:
        ValueError: if a name is none, or the file is of another machine or seed.
    """
    path, rows = output / "suite.json", runs(names)
    report = _begin(path, seed)
    keep_heap()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("suite", total=len(rows))
        for title, (name, recipe) in rows.items():
            row = report["rows"].setdefault(title, {"network": name})
            for part in parts or [p for p in PARTS if p not in row]:
                if recipe is None and part != "parity":
                    continue
                if title != name and part != "score":  # a variant differs in what it learns
                    continue
                progress.update(bar, description=f"{title}: {part}")
                row[part] = _measure(part, title, name, recipe, device, seed, seconds, output)
                report["rows"] = {t: report["rows"][t] for t in runs() if t in report["rows"]}
                text = json.dumps(report, indent=1) + "\n"
                checkpoint.write_atomically(path, lambda p, text=text: p.write_text(text))
            console.print(line(title, row))
            progress.advance(bar)
    return report


def _begin(path: Path, seed: int) -> dict[str, Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = {"schema": SCHEMA, "environment": environment(), "seed": seed, "rows": {}}
    if not path.exists():
        return new
    found = json.loads(path.read_text())
    facts = [{**r.get("environment", {}), "threads": None} for r in (found, new)]
    if facts[0] != facts[1] or any(found.get(key) != new[key] for key in ("schema", "seed")):
        raise ValueError(
            f"fastdl.train.suite: expected {path} to be of this machine, its versions and seed {seed}, "
            "to go on with; it is not: name another folder"
        )
    return found


def _measure(
    part: str,
    title: str,
    name: str,
    recipe: Recipe | None,
    device: torch.device,
    seed: int,
    seconds: float,
    output: Path,
) -> Any:
    if part == "parity":
        return parity(name, device)
    recipe = recipe.changed(seed=seed)
    if part == "score":
        return score(title, name, recipe, device, output / title.replace(", ", "-").replace(" ", "-"))
    return time(title, name, recipe, device, seconds)


def parity(name: str, device: torch.device) -> Row:
    """Parameters; calls that our ops take, and what a run of them chooses; tensors within the rule."""
    with torch.device("meta"):
        parameters = sum(p.numel() for p in models.create(name).parameters())
    calls = networks.calls(name)
    trained, batches = networks.make(name, device=device)
    inputs, targets = (networks.cast(tensors, device, torch.float32) for tensors in batches[0])
    chosen: dict[str, int] = {}
    for (_, backend, _), number in explain(convert(trained), inputs, targets).calls.items():
        chosen[backend] = chosen.get(backend, 0) + number
    verdicts = networks.compare(name, device=device)
    return {
        "parameters": parameters,
        "calls": calls.taken + len(calls.left),
        "taken": calls.taken,
        "chosen": chosen,
        "tensors": len(verdicts),
        "failed": {key: v.failure for key, v in verdicts.items() if v.failure},
    }


def score(title: str, name: str, recipe: Recipe, device: torch.device, folder: Path) -> Row:
    """A stock and a converted network by the recipe, on the same batches: each metric beside its bound."""
    resume = (folder / "last.pt").exists()
    how = How(device, runs=("stock", "converted"))
    report = train(name, None if resume else recipe, how, folder, resume=resume)
    task = TASKS[recipe.task]
    bounds = {a.metric: a for a in ACCEPTED.get(title, ())}
    metrics = {}
    for metric in dict.fromkeys((task.label, *task.further, *bounds)):
        key = {task.label: "test_score", "test loss": "test_loss"}.get(metric)
        values = {r["run"]: r[key] if key else r["further"][metric] for r in report["results"]}
        metrics[metric] = {kind: float(f"{value:.5g}") for kind, value in values.items()}
        if metric in bounds:
            accepted = bounds[metric]
            metrics[metric] |= {"at most" if accepted.at_most else "at least": accepted.bound}
            metrics[metric]["met"] = accepted.met(values["converted"])
    return {"data": recipe.data, "epochs": report["epochs"], "metrics": metrics}


def time(title: str, name: str, recipe: Recipe, device: torch.device, seconds: float) -> Row:
    """A training step of the recipe (forward, loss, backward, clipping, optimiser) on one batch, in turn."""
    how = How(device)
    trainer = Trainer(name, recipe, how, None, data.load(recipe.data))
    batch = next(iter(trainer.batches(1)))
    torch._dynamo.reset()  # its limit of recompilations is per function
    model = fresh(name, recipe)

    def once(implementation: str) -> Callable[[], object]:
        kind = "converted" if implementation.startswith(OURS) else "stock"
        compiled = how._replace(compile=implementation.endswith("compile"))
        run = Run(kind, name, copy.deepcopy(model), recipe, compiled)
        return lambda: run.step(*batch)

    rows = steps.against(title, once, TIMED, device, seconds)
    return {"threads": torch.get_num_threads(), "rows": [row.plain() for row in rows.values()]}


def line(title: str, row: Row) -> str:
    """A row in words, for the console."""
    said = [f"[bold]{title}[/]"]
    if "parity" in row:
        p = row["parity"]
        right = p["tensors"] - len(p["failed"])
        said.append(f"{p['taken']} of {p['calls']} calls, {right} of {p['tensors']} tensors within the rule")
    for metric, values in row.get("score", {"metrics": {}})["metrics"].items():
        colour = {True: "green", False: "red", None: "white"}[values.get("met")]
        said.append(f"{metric} [{colour}]{values['converted']:.4g}[/] (stock {values['stock']:.4g})")
    times = [r for r in row.get("time", {"rows": ()})["rows"] if r["status"] == "measured"]
    said += [f"{r['implementation']} {r['median_ms']:.3g} ms" for r in times]
    return "; ".join(said)


def missed(report: dict[str, Any]) -> list[str]:
    """The rows outside the tolerance rule, or short of what the course accepts."""
    return [
        title
        for title, row in report["rows"].items()
        if row.get("parity", {}).get("failed")
        or any(m.get("met") is False for m in row.get("score", {"metrics": {}})["metrics"].values())
    ]
