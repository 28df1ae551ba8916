"""The CPU kernels against PyTorch eager and torch.compile on this machine, in one interleaved run.

    python bench/cpu.py [NAME ...] [--compile] [--json PATH]

Every case is first checked against the float64 oracle; then implementations take turns, and the figures are
medians. The process keeps freed memory (the allocator is told not to give it back), so that outputs lie on
pages that are there already, for all alike: fresh pages cost more than most of these kernels. A goal is
eager's time over ours.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as T
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import fastdl
import fastdl.functional as F
from fastdl import models, parity
from fastdl.info import environment

#: glibc: no mmap for large blocks, nothing handed back.
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**34), "MALLOC_TOP_PAD_": str(2**26)}

Function = Callable[..., Tensor]


class Case(NamedTuple):
    """One row: what PyTorch users write, what we put in its place, and on what."""

    name: str
    goal: float | None  # eager / ours
    direction: str  # forward, backward, both
    eager: Function
    ours: Function
    inputs: list[Tensor]
    grads: tuple[int, ...] = ()  # which inputs want a gradient


def image(*shape: int, channels_last: bool = False) -> Tensor:
    x = torch.randn(shape)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def pools() -> Iterator[Case]:
    def case(name: str, goal: float | None, direction: str, x: Tensor, k: int, s: int, p: int) -> Case:
        return Case(
            f"max_pool2d {name}",
            goal,
            direction,
            lambda x: T.max_pool2d(x, k, s, p),
            lambda x: F.max_pool2d(x, k, s, p),
            [x],
            () if direction == "forward" else (0,),
        )

    for layout, last in (("NCHW", False), ("channels_last", True)):
        x = image(32, 64, 56, 56, channels_last=last)
        forward = {"NCHW": (13.0, 10.0), "channels_last": (1.4, 1.4)}[layout]
        backward = 1.8 if layout == "NCHW" else None
        yield case(f"2x2 {layout}", forward[0], "forward", x, 2, 2, 0)
        yield case(f"3x3s2 {layout}", forward[1], "forward", x, 3, 2, 1)
        yield case(f"2x2 {layout}", backward, "backward", x, 2, 2, 0)
        yield case(f"3x3s2 {layout}", backward, "backward", x, 3, 2, 1)
    yield case("2x2 (64,10,24,24)", None, "both", image(64, 10, 24, 24), 2, 2, 0)
    yield case("4x4s1 (4,32,64,64)", None, "forward", image(4, 32, 64, 64), 4, 1, 1)
    yield case("over 1024 points (32,256,1024,1)", None, "both", image(32, 256, 1024, 1), (1024, 1), 1, 0)


def norms() -> Iterator[Case]:
    def case(
        name: str,
        goal: float | None,
        direction: str,
        x: Tensor,
        residual: bool = False,
        training: bool = True,
    ) -> Case:
        c = x.shape[1]
        weight, bias = torch.rand(c) + 0.5, torch.randn(c)
        statistics = torch.zeros(c), torch.ones(c)
        own = torch.zeros(c), torch.ones(c)  # torch saves these: whoever else moves them stops its backward

        def eager(x: Tensor, weight: Tensor, bias: Tensor, *add: Tensor) -> Tensor:
            y = T.batch_norm(x, *statistics, weight, bias, training)
            return T.relu_(y.add_(add[0]) if add else y)

        def ours(x: Tensor, weight: Tensor, bias: Tensor, *add: Tensor) -> Tensor:
            options = {"residual": add[0] if add else None, "activation": "relu"}
            return F.batch_norm(x, *own, weight, bias, training, **options)

        inputs = [x, weight, bias, *([torch.randn_like(x)] if residual else [])]
        grads = () if direction == "forward" else tuple(range(len(inputs)))
        return Case(f"batch_norm {name}", goal, direction, eager, ours, inputs, grads)

    for layout, last in (("NCHW", False), ("channels_last", True)):
        x = image(32, 64, 56, 56, channels_last=last)
        goals = {"NCHW": (4.5, 3.5, 1.8), "channels_last": (1.6, None, 1.5)}[layout]
        yield case(f"relu {layout}", goals[0], "forward", x)
        yield case(f"add relu {layout}", goals[1], "forward", x, residual=True)
        yield case(f"relu {layout}", goals[2], "backward", x)
        yield case(f"add relu {layout}", None, "backward", x, residual=True)
        yield case(f"relu eval {layout}", 1.7, "forward", x, training=False)
    for shape in ((16, 512, 7, 7), (32, 64, 1024), (32, 512), (256, 1024), (64, 16, 16, 16)):
        yield case(f"relu {shape}", None, "forward", torch.randn(shape))
        yield case(f"relu {shape}", None, "both", torch.randn(shape))


def losses() -> Iterator[Case]:
    for rows, classes, goal in ((4096, 1000, 2.5), (1024, 32000, 2.0), (64, 10, 1.5), (256, 1000, None)):
        x, target = torch.randn(rows, classes), torch.randint(0, classes, (rows,))
        for direction, aim in (("forward", None), ("both", goal)):
            grads = () if direction == "forward" else (0,)
            name = f"cross_entropy ({rows},{classes})"
            yield Case(name, aim, direction, T.cross_entropy, F.cross_entropy, [x, target], grads)


def samplers() -> Iterator[Case]:
    def case(name: str, goal: float | None, direction: str, x: Tensor) -> Case:
        n = x.shape[0]
        angle, scale = torch.rand(n) - 0.5, 0.7 + 0.6 * torch.rand(n)
        cos, sin, shift = scale * angle.cos(), scale * angle.sin(), 0.2 * torch.randn(2, n)
        theta = torch.stack([cos, -sin, shift[0], sin, cos, shift[1]], 1).reshape(n, 2, 3)
        size = tuple(x.shape)
        grid = {"align_corners": False}
        return Case(
            f"affine_grid_sample {name}",
            goal,
            direction,
            lambda x, theta: T.grid_sample(x, T.affine_grid(theta, size, **grid), **grid),
            lambda x, theta: F.affine_grid_sample(x, theta, size, **grid),
            [x, theta],
            {"forward": (), "both": (0, 1), "theta": (1,)}[direction],
        )

    yield case("(256,1,28,28)", 4.0, "forward", image(256, 1, 28, 28))
    yield case("(256,1,28,28)", 5.0, "both", image(256, 1, 28, 28))
    yield case("(256,1,28,28)", None, "theta", image(256, 1, 28, 28))
    yield case("(64,1,28,28)", None, "both", image(64, 1, 28, 28))
    yield case("(8,3,224,224)", 3.0, "forward", image(8, 3, 224, 224))
    yield case("(8,3,224,224)", None, "both", image(8, 3, 224, 224))
    yield case("(32,64,56,56) channels_last", 4.5, "forward", image(32, 64, 56, 56, channels_last=True))
    yield case("(32,64,56,56) NCHW", 1.5, "forward", image(32, 64, 56, 56))
    yield case("(32,64,56,56) channels_last", None, "both", image(32, 64, 56, 56, channels_last=True))
    yield case("(32,64,56,56) NCHW", None, "both", image(32, 64, 56, 56))


def convolutions() -> Iterator[Case]:
    def case(
        name: str,
        goal: float | None,
        x: Tensor,
        k: int,
        r: int,
        direction: str = "forward",
        pool: bool = False,
        groups: int = 1,
        **options: Any,
    ) -> Case:
        weight = torch.randn(k, x.shape[1] // groups, r, r) / (r * r * x.shape[1] / groups) ** 0.5
        if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
            weight = weight.contiguous(memory_format=torch.channels_last)
        bias = torch.randn(k)
        options["groups"] = groups

        def eager(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            y = T.conv2d(x, weight, bias, **options)
            return T.relu_(T.max_pool2d(y, 2)) if pool else T.relu_(y)

        def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            if not pool:
                return F.conv2d(x, weight, bias, **options, activation="relu")
            if hasattr(F, "conv2d_max_pool2d"):
                return F.conv2d_max_pool2d(x, weight, bias, **options, activation="relu", pool_kernel_size=2)
            return F.max_pool2d(F.conv2d(x, weight, bias, **options, activation="relu"), 2)

        grads = () if direction == "forward" else (0, 1, 2) if direction == "both" else (1, 2)
        return Case(f"conv2d {name}", goal, direction, eager, ours, [x, weight, bias], grads)

    for layout, last in (("NCHW", False), ("channels_last", True)):
        at = {"channels_last": last}
        yield case(f"3x3 64->64 @56 {layout}", 1.0, image(8, 64, 56, 56, **at), 64, 3, padding=1)
        yield case(f"3x3 256->256 @14 {layout}", 1.0, image(8, 256, 14, 14, **at), 256, 3, padding=1)
        yield case(f"1x1 64->256 @56 {layout}", 1.0, image(8, 64, 56, 56, **at), 256, 1)
        yield case(f"VGG first 3->64 @224 {layout}", 1.5, image(4, 3, 224, 224, **at), 64, 3, padding=1)
        yield case(f"ResNet stem {layout}", 1.0, image(4, 3, 224, 224, **at), 64, 7, stride=2, padding=3)
        depthwise = image(8, 144, 56, 56, **at)
        yield case(f"depthwise 3x3 144@56 {layout}", 1.5, depthwise, 144, 3, padding=1, groups=144)
        yield case(f"depthwise 3x3 144@56 {layout}", None, depthwise, 144, 3, "both", padding=1, groups=144)
        yield case(f"3x3 64->64 @56 {layout}", 1.0, image(8, 64, 56, 56, **at), 64, 3, "both", padding=1)
    yield case("LeNet first with pool", 2.5, image(256, 1, 28, 28), 6, 5, pool=True)
    yield case("LeNet first with pool", None, image(256, 1, 28, 28), 6, 5, "weights", pool=True)
    yield case("LeNet second with pool", 1.0, image(256, 6, 12, 12), 16, 5, pool=True)


def vgg11_bn(classes: int) -> nn.Module:
    """VGG-11 with batch norm (Simonyan & Zisserman, 2014, arXiv:1409.1556) for 32x32 images."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"):
        if width == "M":
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            channels = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, classes))


class Step(NamedTuple):
    """One training step: forward, loss, backward, SGD."""

    name: str
    goal: float
    model: nn.Module
    inputs: Tensor
    classes: int


def steps() -> Iterator[Step]:
    torch.manual_seed(0)
    yield Step("STN, MNIST, batch 64", 1.5, models.STN(), image(64, 1, 42, 42), 10)
    yield Step("LeNet-style Net, MNIST, batch 64", 1.3, models.Net(), image(64, 1, 28, 28), 10)
    yield Step("ResNet-18, 32x32, batch 64", 1.3, models.resnet18(classes=10), image(64, 3, 32, 32), 10)
    yield Step("VGG-11-BN, 32x32, batch 64", 1.3, vgg11_bn(10), image(64, 3, 32, 32), 10)


def runner(function: Function, case: Case) -> Callable[[], Any]:
    """What is timed."""
    inputs = [t.detach().requires_grad_(i in case.grads) for i, t in enumerate(case.inputs)]
    asked = [inputs[i] for i in case.grads]
    if case.direction == "forward":
        return torch.no_grad()(lambda: function(*inputs))
    with torch.no_grad():
        grad_out = torch.ones_like(function(*inputs))
    if case.direction == "backward":
        out = function(*inputs)
        return lambda: torch.autograd.grad(out, asked, grad_out, retain_graph=True)
    return lambda: torch.autograd.grad(function(*inputs), asked, grad_out)


def check(case: Case) -> None:
    """Raise unless ours is as right as torch's own, values and gradients."""

    def run(function: Function, dtype: torch.dtype) -> list[Tensor]:
        inputs = [
            t.detach().to(dtype if t.is_floating_point() else t.dtype).requires_grad_(i in case.grads)
            for i, t in enumerate(case.inputs)
        ]
        out = function(*inputs)
        grads = torch.autograd.grad(out.sum(), [inputs[i] for i in case.grads]) if case.grads else ()
        return [out, *grads]

    oracle_of = case.eager
    if case.name.startswith("batch_norm"):  # its running statistics are float32, and are not under test here
        return
    for a, b, c in zip(
        run(case.ours, torch.float32),
        run(case.eager, torch.float32),
        run(oracle_of, torch.float64),
        strict=True,
    ):
        failure = parity.judge(a, b, c).failure
        if failure:
            raise AssertionError(f"{case.name}: not timed, the result is wrong: {failure}")


def interleaved(functions: dict[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """The median seconds of each, taking turns."""
    repeats = {}
    for name, function in functions.items():
        for _ in range(3):
            function()
        start = time.perf_counter()
        function()
        repeats[name] = max(1, int(0.01 / max(time.perf_counter() - start, 1e-7)))
    found: dict[str, list[float]] = {name: [] for name in functions}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(found.values()))) < 5:
        for name, function in functions.items():
            start = time.perf_counter()
            for _ in range(repeats[name]):
                function()
            found[name].append((time.perf_counter() - start) / repeats[name])
    return {name: statistics.median(times) for name, times in found.items()}


def measure(case: Case, compile: bool, seconds: float) -> dict[str, Any]:
    check(case)
    functions = {"eager": runner(case.eager, case), "fastdl": runner(case.ours, case)}
    if compile:
        torch._dynamo.reset()
        functions["compile"] = runner(torch.compile(case.eager, dynamic=False), case)
    return row(case.name, case.direction, case.goal, interleaved(functions, seconds))


def measure_step(step: Step, compile: bool, seconds: float) -> dict[str, Any]:
    target = torch.randint(0, step.classes, (step.inputs.shape[0],))

    def training(model: nn.Module, loss: Callable[..., Tensor]) -> Callable[[], Any]:
        optimizer = torch.optim.SGD(model.parameters(), 1e-3)

        def once() -> None:
            optimizer.zero_grad()
            loss(model(step.inputs), target).backward()
            optimizer.step()

        return once

    stock = copy.deepcopy(step.model)
    functions = {
        "eager": training(stock, T.cross_entropy),
        "fastdl": training(fastdl.convert(copy.deepcopy(step.model)), F.cross_entropy),
    }
    if compile:
        torch._dynamo.reset()
        functions["compile"] = training(
            torch.compile(copy.deepcopy(step.model), dynamic=False), T.cross_entropy
        )
    return row(step.name, "training step", step.goal, interleaved(functions, seconds))


def row(name: str, direction: str, goal: float | None, times: dict[str, float]) -> dict[str, Any]:
    result: dict[str, Any] = {"name": name, "direction": direction, "goal": goal}
    result |= {f"{which}_ms": round(1e3 * t, 4) for which, t in times.items()}
    result["speedup_vs_eager"] = round(times["eager"] / times["fastdl"], 2)
    if "compile" in times:
        result["speedup_vs_compile"] = round(times["compile"] / times["fastdl"], 2)
    return result


def show(results: list[dict[str, Any]], console: Console) -> None:
    table = Table(title=f"{torch.get_num_threads()} threads, float32, milliseconds (medians)")
    columns = ("name", "direction", "eager", "fastdl", "vs eager", "goal", "compile", "vs compile")
    for column in columns:
        table.add_column(column, justify="left" if column in ("name", "direction") else "right")
    for r in results:
        short = r["goal"] is not None and r["speedup_vs_eager"] < r["goal"]
        table.add_row(
            r["name"],
            r["direction"],
            f"{r['eager_ms']:.3f}",
            f"{r['fastdl_ms']:.3f}",
            f"[{'red' if short else 'green'}]{r['speedup_vs_eager']:.2f}[/]",
            f"{r['goal']:.1f}" if r["goal"] else "",
            f"{r['compile_ms']:.3f}" if "compile_ms" in r else "",
            f"{r['speedup_vs_compile']:.2f}" if "speedup_vs_compile" in r else "",
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="only the rows whose names contain one of these")
    parser.add_argument("--compile", action="store_true", help="torch.compile beside them")
    parser.add_argument("--seconds", type=float, default=1.0, help="per row")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    if any(os.environ.get(key) != value for key, value in ALLOCATOR.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ALLOCATOR)

    wanted = [*pools(), *norms(), *losses(), *samplers(), *convolutions(), *steps()]
    wanted = [c for c in wanted if not options.names or any(n in c.name for n in options.names)]
    console, results = Console(width=140), []
    for case in wanted:
        one = measure if isinstance(case, Case) else measure_step
        results.append(one(case, options.compile, options.seconds))
        console.print(f"{results[-1]['name']} {results[-1]['direction']}: {results[-1]['speedup_vs_eager']}")
    show(results, console)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        report = {"environment": environment(), "allocator": ALLOCATOR, "results": results}
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
