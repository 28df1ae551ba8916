"""The ``fastdl`` command: info, parity, bench, warm-up, demo, models, train, suite, experiment(s)."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import typer
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from . import backends
from .info import environment

if TYPE_CHECKING:
    from .parity import Result, Run

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
console = Console()
if not console.is_terminal:
    console.width = max(console.width, 120)  # a log folds nothing


@app.callback()
def _about() -> None:
    """Fused kernels for the layers that image networks are made of."""


@app.command()
def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Say what is there to run on: versions, devices, backends, and why the rest is not."""
    facts = environment()
    if as_json:
        print(json.dumps(facts, indent=2))
    else:
        console.print(info_table())


def info_table() -> Table:
    """The environment as a table."""
    table = Table("", "", title="fastdl info", show_header=False)
    for name, value in environment().items():
        if isinstance(value, dict):
            for key, status in value.items():
                table.add_row(key, f"[green]{status}[/]" if status == "available" else status)
        else:
            table.add_row(name, str(value))
    return table


@app.command()
def parity(
    op: Annotated[
        list[str] | None, typer.Option(help=f"One of {', '.join(backends.OPS)}; repeatable.")
    ] = None,
    backend: Annotated[
        list[str] | None, typer.Option(help=f"One of {', '.join(backends.BACKENDS)}; repeatable.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto: cuda where there is one.")] = "auto",
    dtype: Annotated[list[str] | None, typer.Option(help="float32, float16 or bfloat16; repeatable.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every result there.")] = None,
    verbose: Annotated[bool, typer.Option(help="One line per case instead of one per group.")] = False,
) -> None:
    """Hold every op against PyTorch on this machine: outputs and gradients, dtypes, layouts, backends.

    Without a GPU, Triton's kernels run through its interpreter. Exit status 1 if any case fails.
    """
    device = _device(device)
    from . import parity as p

    _check_choice("--op", op, backends.OPS)
    _check_choice("--backend", backend, backends.BACKENDS)
    names = {str(d).removeprefix("torch."): d for d in p.DTYPES}
    _check_choice("--dtype", dtype, names)

    runs = p.plan(op or (), backend or (), device, [names[d] for d in dtype] if dtype else p.DTYPES)
    results: list[Result] = []
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("parity", total=len(runs))
        for some in _map(p.execute, runs):
            results += some
            progress.advance(task)
    console.print(_parity_table(results, verbose))
    report = p.report(results)
    console.print("{cases} cases, {failed} failed, {skipped} skipped".format(**report["summary"]))
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps({"environment": environment(), **report}, indent=1) + "\n")
    raise typer.Exit(1 if report["summary"]["failed"] else 0)


def _map(execute: Callable[[Run], list[Result]], runs: list[Run]) -> Iterator[list[Result]]:
    """Results in order, by one process per core: interpreted kernels use one, and so does compiling them."""
    if len(runs) < 8:
        yield from map(execute, runs)
        return
    # spawned, not forked: a fork of a process whose thread pool has run can hang
    context = multiprocessing.get_context("spawn")
    workers = min(os.cpu_count() or 1, 16)  # each on a GPU keeps a context in its memory
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        yield from pool.map(execute, runs, chunksize=4)


def _start_worker() -> None:
    torch.set_num_threads(1)
    # NumPy comments on every infinity that the interpreter computes with
    warnings.filterwarnings("ignore", message=".*encountered in", category=RuntimeWarning)


def _parity_table(results: list[Result], verbose: bool) -> Table:
    """One row per op, backend, dtype, layout and direction, or per case; what did not pass says why."""
    columns = ("op", "backend", "dtype", "layout", "direction", "case" if verbose else "cases")
    table = Table(*columns, "our error", "torch's", "verdict", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    groups: dict[tuple[str, ...], list[Result]] = {}
    for r in results:
        key = (r.op, r.backend, r.dtype, r.layout, r.direction)
        groups.setdefault((*key, r.case) if verbose else key, []).append(r)
    for key, members in groups.items():
        worst = max(members, key=lambda r: (r.verdict == "fail", r.error))
        colour = {"pass": "green", "fail": "red", "skip": "yellow"}[worst.verdict]
        errors = ("", "") if worst.verdict == "skip" else (f"{worst.error:.1e}", f"{worst.torch_error:.1e}")
        note = {"pass": "", "fail": f" {worst.case}: {worst.note}", "skip": f" {worst.note}"}[worst.verdict]
        table.add_row(
            *key[:5], key[5] if verbose else str(len(members)), *errors, f"[{colour}]{worst.verdict}[/]{note}"
        )
    return table


def _device(name: str) -> str:
    """The device asked for; where it is the CPU, Triton's kernels are to be interpreted."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError:
        kind = ""
    if kind not in ("cpu", "cuda") or (kind == "cuda" and not torch.cuda.is_available()):
        raise typer.BadParameter(f"no such device here: {name}", param_hint="--device")
    if kind == "cpu" and "triton" not in sys.modules:
        os.environ.setdefault("TRITON_INTERPRET", "1")  # read by Triton when it is first imported
    return name


def _check_choice(option: str, given: list[str] | None, known: Iterable[str]) -> None:
    for name in given or ():
        if name not in known:
            raise typer.BadParameter(f"expected one of {', '.join(known)}, got {name!r}", param_hint=option)


@app.command()
def bench(
    ops: Annotated[
        list[str] | None, typer.Argument(help=f"Of {', '.join(backends.OPS)}; all without one.")
    ] = None,
    case: Annotated[
        list[str] | None, typer.Option(help="Only cases whose name contains this; repeatable.")
    ] = None,
    direction: Annotated[
        list[str] | None, typer.Option(help="forward, backward or both; repeatable.")
    ] = None,
    layout: Annotated[list[str] | None, typer.Option(help="contiguous or channels_last; repeatable.")] = None,
    models: Annotated[bool, typer.Option("--models", help="Training steps of networks as well.")] = False,
    only_models: Annotated[bool, typer.Option("--only-models", help="Training steps alone.")] = False,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="How cost grows with batch, channels, image, classes, instead.")
    ] = False,
    goals: Annotated[
        bool, typer.Option("--goals", help="Only cases and directions that the project has a goal for.")
    ] = False,
    peers: Annotated[
        str | None, typer.Option(help="Who is measured, comma-separated (`--list` names them), or all.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto: cuda where there is one.")] = "auto",
    dtype: Annotated[
        str | None, typer.Option(help="float32 (default on a CPU), float16 or bfloat16.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Per case and direction, on a CPU.", min=0.0)] = 1.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every result there.")] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write a page there: tables and pictures, all in one file.")
    ] = None,
    show: Annotated[
        list[Path] | None, typer.Option(help="Measure nothing: show these files of results; repeatable.")
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(help="Measure nothing: what got slower from one file to the other?"),
    ] = None,
    listing: Annotated[
        bool, typer.Option("--list", help="Measure nothing: name the cases and the peers.")
    ] = False,
    tune: Annotated[
        bool, typer.Option("--tune", help="Measure the backends and have `auto` go by what was fastest.")
    ] = False,
    source: Annotated[
        Path | None, typer.Option("--from", help="With --tune: measure nothing, take this file of results.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="With --tune: the table's file instead of the device's own.")
    ] = None,
) -> None:
    """Time every op against PyTorch and others on this machine; each result is checked before it is timed.

    Exit status 1 if fastdl or one of its backends by name fails or is wrong, or with --compare if one of
    them got slower beyond noise.
    """
    device = _device(device)
    named = {"--case": case, "--direction": direction, "--layout": layout, "--models": models}
    named |= {"--only-models": only_models, "--sweep": sweep, "--goals": goals, "--peers": peers}
    named |= {"--show": show, "--compare": compare, "--list": listing, "--html": html}
    named |= {"--json": json_file} if source else {}
    _check_tuning(tune, {"--from": source, "--output": output}, named)
    from . import bench as b
    from .bench import command

    if compare is not None:
        try:
            raise typer.Exit(0 if command.compare(*compare, console) else 1)
        except (OSError, b.SchemaError) as error:
            raise typer.BadParameter(str(error), param_hint="--compare") from None
    if listing:
        for table in command.listing(torch.device(device)):
            console.print(table)
        return
    if show:
        try:
            reports = [b.read(path) for path in show]
        except (OSError, b.SchemaError) as error:
            raise typer.BadParameter(str(error), param_hint="--show") from None
        for report in reports:
            console.print(command.overview(report["results"]))
            console.print(b.summary(report["results"]))
        if html is not None:
            b.write_page(html, reports)
        return
    dtype = dtype or ("float32" if device == "cpu" else "bfloat16")
    named = (
        list(b.PEERS)
        if peers == "all"
        else peers.split(",")
        if peers
        else (command.tune.PEERS if tune else b.DEFAULT)[torch.device(device).type]
    )
    _check_choice("OPS", ops, backends.OPS)
    _check_choice("--direction", direction, b.DIRECTIONS)
    _check_choice("--layout", layout, b.LAYOUTS)
    _check_choice("--peers", named, (*b.PEERS, *command.IMPLEMENTATIONS))
    dtypes = {str(d).removeprefix("torch."): d for d in backends.KERNEL_DTYPES}
    _check_choice("--dtype", [dtype], dtypes)
    plan = command.Plan(
        torch.device(device),
        () if only_models else ops or backends.OPS,
        case or (),
        direction or b.DIRECTIONS,
        layout or tuple(b.LAYOUTS),
        dtypes[dtype],
        named,
        models or only_models,
        sweep,
        goals,
        seconds,
    )
    if tune:
        try:
            raise typer.Exit(0 if command.tuning(plan, console, json_file, source, output) else 1)
        except (OSError, b.SchemaError) as error:
            raise typer.BadParameter(str(error), param_hint="--from" if source else "--tune") from None
    if not list(plan.jobs()):
        words = [("", ops), ("--case", case), ("--direction", direction), ("--layout", layout)]
        asked = [f"{flag} {word!r}".strip() for flag, given in words for word in given or ()]
        switches = {"--models": models, "--only-models": only_models, "--sweep": sweep, "--goals": goals}
        asked += [flag for flag, on in switches.items() if on]
        raise typer.BadParameter(f"nothing on {device} is left by {', '.join(asked)}", param_hint="filters")
    results = command.run(plan, console, json_file)
    console.print(b.summary(results))
    if html is not None:
        b.write_page(html, [{"environment": environment(), "results": results}])
    wrong = any(r["implementation"] in b.OWN and r["status"] in ("wrong", "failed") for r in results)
    raise typer.Exit(1 if wrong else 0)


def _check_tuning(tune: bool, needs: dict[str, object], excludes: dict[str, object]) -> None:
    if not tune:
        for option in (option for option, given in needs.items() if given):
            raise typer.BadParameter("expected --tune beside it", param_hint=option)
        return
    given = [option for option, value in excludes.items() if value]
    if given:
        raise typer.BadParameter(
            f"expected no {' and no '.join(given)} beside it: a table is made of all cases of an op",
            param_hint="--tune",
        )
    if not backends.automatic():
        raise typer.BadParameter(
            "expected no FASTDL_BACKEND: it is to choose between the backends", param_hint="--tune"
        )


@app.command()
def demo(
    epochs: Annotated[int, typer.Option(help="Passes over the 4,000 training digits.", min=1)] = 12,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto: cuda where there is one.")] = "auto",
    output: Annotated[Path, typer.Option(help="Folder for the JSON and the pictures.")] = Path("demo_output"),
    seed: Annotated[int, typer.Option(help="Of the weights and the distortions.")] = 0,
) -> None:
    """Convert a spatial transformer network, check it against the stock one, train both on real digits."""
    device = _device(device)
    from .demo import run

    console.print(info_table())
    run(epochs, torch.device(device), output, seed, console)


@app.command()
def train(
    name: Annotated[str, typer.Argument(help="A network; `fastdl models` lists them.")],
    data: Annotated[
        str | None, typer.Option(help="Another data set than the recipe's; docs/models.md lists them.")
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of IDX files for mnist and fashion.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training samples.", min=1)] = None,
    batch: Annotated[int | None, typer.Option(help="Samples a step, of all processes.", min=2)] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="sgd, momentum, nesterov, adagrad, rmsprop, adam or adamw.")
    ] = None,
    schedule: Annotated[str | None, typer.Option(help="constant, cosine, step, warmup or one_cycle.")] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="L2 penalty of all parameters; adamw's own decay.", min=0)
    ] = None,
    clip: Annotated[float | None, typer.Option(help="Largest norm of the gradients; 0: any.", min=0)] = None,
    patience: Annotated[int | None, typer.Option(help="Stop after that many epochs without gain.")] = None,
    validation: Annotated[float | None, typer.Option(help="Part of the training samples held out.")] = None,
    augment: Annotated[
        list[str] | None, typer.Option(help="flip, crop, colour or jitter; repeatable.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="Of the network, as dropout=0.3; repeatable.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, batches and whatever else is drawn.")] = None,
    compare: Annotated[bool, typer.Option(help="Train a stock network beside the converted one.")] = False,
    stock: Annotated[bool, typer.Option(help="Train a stock network instead of a converted one.")] = False,
    amp: Annotated[bool, typer.Option(help="Half precision where torch's autocast has it.")] = False,
    compile: Annotated[bool, typer.Option(help="Through torch.compile.")] = False,
    cuda_graphs: Annotated[bool, typer.Option(help="Capture each step's forward and backward.")] = False,
    workers: Annotated[int, typer.Option(help="Processes that fetch batches.", min=0)] = 0,
    resume: Annotated[bool, typer.Option(help="Go on from the output folder's last.pt.")] = False,
    backbone: Annotated[
        Path | None, typer.Option(help="Begin with this checkpoint's weights, but for the last layer's.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto: cuda where there is one.")] = "auto",
    output: Annotated[Path | None, typer.Option(help="Folder; by default train_output/NAME.")] = None,
) -> None:
    """Train a network of the course by its recipe; under torchrun, in several processes."""
    from . import train as t
    from .train import distributed

    output = output or Path("train_output") / name
    kinds = ("stock", "converted") if compare else ("stock",) if stock else ("converted",)
    how = t.How(torch.device(_device(device)), kinds, amp, compile, cuda_graphs, workers)
    out = Console(quiet=True) if int(os.environ.get("RANK", "0")) > 0 else console
    changes = {
        "data": data,
        "batch": batch,
        "lr": lr,
        "optimizer": optimizer,
        "schedule": schedule,
        "weight_decay": weight_decay,
        "clip": clip,
        "patience": patience,
        "validation": validation,
        "augment": tuple(augment) if augment else None,
        "option": dict(map(_assignment, option)) if option else None,
        "seed": seed,
    }
    if resume:
        given = {**changes, "backbone": backbone}
        given = [f"--{key.replace('_', '-')}" for key, value in given.items() if value is not None]
        if given:
            raise typer.BadParameter(
                f"expected no {' and no '.join(given)} beside it: the checkpoint's recipe goes on, and only "
                "--epochs may change",
                param_hint="--resume",
            )
    try:
        recipe = t.recipe(name)
        changes["options"] = {**recipe.options, **(changes.pop("option") or {})}
        recipe = None if resume else recipe.changed(**changes)
        t.train(name, recipe, how, output, out, root, resume, backbone, epochs)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except (ValueError, TypeError, FileNotFoundError, ModuleNotFoundError) as error:
        if not str(error).startswith("fastdl."):
            raise
        raise typer.BadParameter(str(error)) from None
    finally:
        distributed.end()


def _assignment(text: str) -> tuple[str, object]:
    """``name=value``, the value read as JSON where it is JSON."""
    name, sign, value = text.partition("=")
    if not sign:
        raise typer.BadParameter(f"expected NAME=VALUE, got {text!r}", param_hint="--option")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


@app.command()
def models() -> None:
    """List the networks of the course: parameters, and what each is trained on."""
    from . import models as m
    from .train import RECIPES

    table = Table("network", "parameters", "data", "optimiser", "epochs", title="fastdl models")
    for name in m.names():
        with torch.device("meta"):
            count = sum(p.numel() for p in m.create(name).parameters())
        r = RECIPES.get(name)
        row = (r.data, f"{r.optimizer} {r.lr:g}", str(r.epochs)) if r else ("-", "-", "-")
        table.add_row(name, f"{count:,}", *row)
    console.print(table)


@app.command()
def warm_up(
    name: Annotated[str, typer.Argument(help="A network; `fastdl models` lists them.")],
    batch: Annotated[int, typer.Option(help="Samples a call.", min=2)] = 64,
    amp: Annotated[bool, typer.Option(help="Half precision where torch's autocast has it.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto: cuda where there is one.")] = "auto",
) -> None:
    """Compile what a network of the course needs, forward and backward, and say how long that took.

    Triton keeps what it compiles in TRITON_CACHE_DIR (~/.triton/cache): an empty folder there shows what the
    first run costs, another process then what it costs to load.
    """
    device = _device(device)
    from . import convert, models
    from . import warm_up as run

    try:
        model, loss = models.create(name), models.create_loss(name)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    parts = [t.to(device) for t in (*models.example_inputs(name), *models.example_targets(name))]
    number = len(models.example_inputs(name))
    parts = [_repeated(t, batch, len(parts[0])) for t in parts]
    model, loss = (convert(module.to(device)) for module in (model, loss))

    def criterion(out: object) -> torch.Tensor:
        return loss(*(out if isinstance(out, tuple) else (out,)), *parts[number:])

    for which in ("first", "second"):
        start = time.perf_counter()
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=amp):
            run(model, *parts[:number], loss=criterion)
        if device != "cpu":
            torch.cuda.synchronize()
        console.print(f"{which} run: {time.perf_counter() - start:.3f} s")


def _repeated(t: torch.Tensor, batch: int, number: int) -> torch.Tensor:
    """``t`` of ``number`` samples over and over, until there are ``batch``; a square is of pairs of them."""
    chosen = torch.arange(batch, device=t.device) % number
    return t[chosen][:, chosen] if t.shape == (number, number) else t[chosen]


@app.command()
def suite(
    names: Annotated[
        list[str] | None, typer.Argument(help="Networks; all without one. `fastdl models` lists them.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for suite.json and the runs.")] = Path("suite_output"),
    part: Annotated[
        list[str] | None,
        typer.Option(help="parity, score or time, anew; repeatable. Without one: what suite.json lacks."),
    ] = None,
    seconds: Annotated[float, typer.Option(help="For the times of a network, on a CPU.", min=0.0)] = 3.0,
    seed: Annotated[int, typer.Option(help="Of weights, batches and whatever else is drawn.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto: cuda where there is one.")] = "auto",
) -> None:
    """Every network of the course: calls that kernels take, parity, the score of its recipe, times of a step.

    Exit status 1 if a network is outside the tolerance rule or misses what the course accepts.
    """
    device = torch.device(_device(device))
    from .train import suite as s

    _check_choice("--part", part, s.PARTS)
    try:
        report = s.measure(names or (), part or (), output, console, device, seed, seconds)
    except (ValueError, ModuleNotFoundError) as error:
        if not str(error).startswith("fastdl."):
            raise
        raise typer.BadParameter(str(error)) from None
    console.print(f"wrote {output / 'suite.json'}")
    raise typer.Exit(1 if s.missed(report) else 0)


@app.command()
def experiment(
    name: Annotated[str, typer.Argument(help="Which; `fastdl experiments` lists them.")],
    output: Annotated[Path, typer.Option(help="Folder for the figure and the JSON.")] = Path("experiments"),
    epochs: Annotated[float, typer.Option(help="A factor on the epochs of the course.", min=0.01)] = 1.0,
    seed: Annotated[int, typer.Option(help="Of weights, batches and whatever else is drawn.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto: cuda where there is one.")] = "auto",
) -> None:
    """Run an experiment of the course: a figure and a JSON of what came out."""
    from . import experiments as e

    try:
        report = e.run(name, output, console, epochs, torch.device(_device(device)), seed)
    except (ValueError, ModuleNotFoundError) as error:
        if not str(error).startswith("fastdl."):
            raise
        raise typer.BadParameter(str(error)) from None
    console.print_json(data=report["results"])


@app.command()
def experiments() -> None:
    """List the experiments of the course."""
    from .experiments import EXPERIMENTS

    table = Table("experiment", "question")
    for name, one in EXPERIMENTS.items():
        table.add_row(name, one.question)
    console.print(table)


def main() -> None:
    """Entry point of the ``fastdl`` command."""
    app()
