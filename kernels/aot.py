"""Ahead-of-time compilation: what every kernel costs on every GPU, found out without one.

``python -m fastdl.kernels.aot`` compiles each op's default configurations (``default_launches``) for
every architecture and prints registers, shared memory and the matrix instructions used. Exit status 1 if
a kernel does not compile, spills more than ``SPILL_LIMIT`` or wants more shared memory than there is.
A launcher run on meta tensors under ``_runtime.record`` yields the launches; Triton's own binder turns
a launch into signature, constants and alignment hints, so what is compiled here is what a GPU would run.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from . import _runtime

#: Architectures by name: Turing, Ampere (A100, RTX 30), Ada, Hopper, Blackwell (B200, RTX 50).
TARGETS = {str(cc): GPUTarget("cuda", cc, 32) for cc in (75, 80, 86, 89, 90, 100, 120)}
#: AMD's CDNA 3 and 2: compiled on request (``--arch gfx942``), never run so far.
AMD_TARGETS = {arch: GPUTarget("hip", arch, 64) for arch in ("gfx942", "gfx90a")}

#: Shared memory that one block may ask for, in bytes.
SHARED_LIMIT = {
    "75": 64 << 10, "80": 163 << 10, "86": 99 << 10, "89": 99 << 10, "90": 227 << 10, "100": 227 << 10,
    "120": 99 << 10, "gfx942": 64 << 10, "gfx90a": 64 << 10,
}  # fmt: skip

#: Bytes of spills per thread that are no fault of a kernel's: ptxas parks a word or two, with registers to
#: spare, when that lets one more block onto the multiprocessor.
SPILL_LIMIT = 16

OPS = ("conv2d", "batch_norm", "cross_entropy", "max_pool2d", "affine_grid_sample", "tps_grid_sample")


@dataclasses.dataclass(frozen=True)
class Resources:
    """What one compiled kernel takes."""

    kernel: str
    target: str
    registers: int  # per thread
    spills: int  # bytes of local memory per thread; 0 when everything fits in registers
    shared: int  # bytes per block
    matrix: str  # the matrix instruction: "wgmma", "mma.sync", "tcgen05", "mfma", or "" for none
    matrix_count: int  # how often it stands in the code


class Case(NamedTuple):
    """A launch of an op's default configuration and the call that made it."""

    op: str
    label: str
    launch: _runtime.Launch


class _Source(NamedTuple):
    """A launch as the compiler sees it."""

    kernel: JITFunction
    signature: dict[str, str]
    constexprs: dict[tuple[int, ...], Any]
    attrs: dict[tuple[int, ...], Any]
    options: dict[str, Any]

    def key(self) -> str:
        return repr((self.kernel.__module__, self.kernel.__name__, *self[1:]))


def _source(launch: _runtime.Launch, target: GPUTarget) -> _Source:
    if not isinstance(launch.kernel, JITFunction):
        raise RuntimeError(
            "fastdl.kernels.aot: kernels were imported for Triton's interpreter, which has no code to "
            "compile; run without TRITON_INTERPRET in the environment"
        )
    constexprs = dict(launch.constexprs)
    if "TENSOR_CORES" in constexprs:  # the one that launchers read off the device (_runtime.tensor_cores)
        constexprs["TENSOR_CORES"] = target.arch != 75
    bind, backend = _binder(launch.kernel, target)
    bound, specialization, options = bind(
        *launch.args, num_warps=launch.num_warps, num_stages=launch.num_stages, **constexprs
    )
    _, *parts = launch.kernel._pack_args(backend, options, bound, specialization, options)
    return _Source(launch.kernel, *parts, options)


@functools.cache
def _binder(kernel: JITFunction, target: GPUTarget) -> tuple[Callable[..., Any], Any]:
    """The function with which Triton's launcher derives dtypes, ``== 1`` and ``% 16 == 0`` from arguments.

    An internal of Triton, as is ``_pack_args``; both are the same in 3.6 and 3.7.
    """
    backend = make_backend(target)
    return create_function_from_signature(kernel.signature, kernel.params, backend), backend


def _compile(source: _Source, target: GPUTarget) -> Resources:
    """Compile for ``target`` and read what the kernel takes off the binary."""
    ast = ASTSource(source.kernel, source.signature, source.constexprs, source.attrs)
    compiled = triton.compile(ast, target=target, options=source.options)
    if target.backend == "cuda":
        text = compiled.asm["ptx"]
        usage = _cubin_usage(compiled.asm["cubin"])
        registers, spills = int(_find(r"REG:(\d+)", usage)), int(_find(r"STACK:(\d+)", usage))
    else:
        text = compiled.asm["amdgcn"]
        registers = int(_find(r"\.vgpr_count:\s*(\d+)", text))
        spills = int(_find(r"\.private_segment_fixed_size:\s*(\d+)", text))
    found = re.findall(r"tcgen05(?=\.mma)|wgmma(?=\.mma_async)|mma\.sync(?=\.)|(?<=v_)mfma", text)
    return Resources(
        kernel=source.kernel.__name__,
        target=str(target.arch),
        registers=registers,
        spills=spills,
        shared=compiled.metadata.shared,
        matrix=found[0] if found else "",
        matrix_count=len(found),
    )


def _cubin_usage(cubin: bytes) -> str:
    """The resource line of the one function in ``cubin``, by the cuobjdump that comes with Triton."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _find(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"fastdl.kernels.aot: no {pattern!r} in the compiler's output")
    return found[1]


class Row(NamedTuple):
    """A distinct kernel, the case that first asked for it, and its cost (or failure) per architecture."""

    case: Case
    results: dict[str, Resources | Exception]


def compile_cases(cases: Iterable[Case], targets: Iterable[GPUTarget]) -> list[Row]:
    """Compile each distinct kernel once per target, on all cores.

    Threads serve, since Triton drops the interpreter lock in its passes and in ptxas. Binaries are cached
    on disk as everywhere in Triton (TRITON_CACHE_DIR).
    """
    targets = list(targets)
    distinct: dict[tuple[str, ...], tuple[Case, list[_Source]]] = {}
    for case in cases:
        sources = [_source(case.launch, target) for target in targets]
        distinct.setdefault(tuple(source.key() for source in sources), (case, sources))

    def attempt(source: _Source, target: GPUTarget) -> Resources | Exception:
        try:
            return _compile(source, target)
        except Exception as error:
            return error

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        pending = [
            (case, [pool.submit(attempt, *job) for job in zip(sources, targets, strict=True)])
            for case, sources in distinct.values()
        ]
        names = [str(target.arch) for target in targets]
        return [
            Row(case, dict(zip(names, (future.result() for future in futures), strict=True)))
            for case, futures in pending
        ]


def default_launches(*ops: str) -> list[Case]:
    """The launches of every op's (or of the named ones') default configurations, forward and backward."""
    cases = []
    for op in ops or OPS:
        module = importlib.import_module(f".{op}", __package__)
        for label, call in _CALLS[op](module):
            with _runtime.record() as launches:
                call()
            cases += [Case(op, label, launch) for launch in launches]
    return cases


# The tables below call each launcher with the shapes of the networks in fastdl.models, on meta tensors.

_Calls = Iterator[tuple[str, Callable[[], None]]]


def _empty(*shape: int, dtype: torch.dtype = torch.float32, nhwc: bool = False) -> torch.Tensor:
    memory_format = torch.channels_last if nhwc else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device="meta", memory_format=memory_format)


def _name(dtype: torch.dtype, nhwc: bool = False) -> str:
    short = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]
    return f"{short} {'NHWC' if nhwc else 'NCHW'}"


def _conv2d(op: Any) -> _Calls:
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    for label, (n, c, size), (k, r), stride, groups, dtype, nhwc, tf32 in [
        ("ResNet 3x3", (64, 64, 56), (64, 3), 1, 1, bf16, True, True),
        ("ResNet 3x3", (64, 64, 56), (64, 3), 1, 1, bf16, False, True),
        ("ResNet 3x3", (64, 64, 56), (64, 3), 1, 1, fp16, False, True),
        ("ResNet 3x3", (64, 64, 56), (64, 3), 1, 1, fp32, False, False),
        ("ResNet 3x3 TF32", (64, 64, 56), (64, 3), 1, 1, fp32, False, True),
        ("ResNet 3x3 s2", (64, 128, 56), (128, 3), 2, 1, bf16, True, True),
        ("ResNet 1x1", (64, 64, 56), (256, 1), 1, 1, bf16, True, True),
        ("ResNet 1x1", (64, 64, 56), (256, 1), 1, 1, fp32, False, False),
        ("stem 7x7", (64, 3, 224), (64, 7), 2, 1, bf16, True, True),
        ("stem 7x7", (64, 3, 224), (64, 7), 2, 1, fp32, False, False),
        ("LeNet 5x5", (256, 1, 28), (6, 5), 1, 1, fp32, False, False),
        ("LeNet 5x5", (256, 1, 28), (6, 5), 1, 1, bf16, False, True),
        ("depthwise 3x3", (64, 144, 56), (144, 3), 1, 144, bf16, True, True),
        ("depthwise 3x3", (64, 144, 56), (144, 3), 1, 144, fp32, False, False),
        ("grouped 3x3", (64, 128, 28), (128, 3), 1, 32, bf16, True, True),
        ("grouped 3x3", (64, 128, 28), (128, 3), 1, 32, fp32, False, False),
    ]:
        padding = r // 2
        out_size = (size + 2 * padding - r) // stride + 1
        x = _empty(n, c, size, size, dtype=dtype, nhwc=nhwc)
        weight = _empty(k, c // groups, r, r, dtype=dtype, nhwc=nhwc)
        bias = _empty(k, dtype=dtype)
        out = _empty(n, k, out_size, out_size, dtype=dtype, nhwc=nhwc)
        options = {
            "stride": (stride, stride),
            "padding": (padding, padding),
            "dilation": (1, 1),
            "groups": groups,
            "activation": "relu",
            "activation_param": 0.0,
            "allow_tf32": tf32,
        }
        label = f"{label} {_name(dtype, nhwc)}"
        yield f"{label} forward", partial(op.forward, x, weight, bias, out, **options)
        gradients = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias)
        yield f"{label} backward", partial(op.backward, out, x, weight, out, *gradients, **options)


def _batch_norm(op: Any) -> _Calls:
    shape = (64, 64, 56, 56)
    for dtype, nhwc in [
        (torch.bfloat16, True),
        (torch.bfloat16, False),
        (torch.float32, False),
        (torch.float16, True),
    ]:
        x = _empty(*shape, dtype=dtype, nhwc=nhwc)
        weight, bias, running_mean, running_var, mean, invstd = (_empty(shape[1]) for _ in range(6))
        bits = _empty(x.numel() // 8, dtype=torch.uint8)
        for label, training, activation, residual, mask in [
            ("train", True, "", None, None),
            ("train+relu", True, "relu", None, None),
            ("train+add+relu", True, "relu", x, bits),
            ("eval+relu", False, "relu", None, None),
        ]:
            label = f"{label} {_name(dtype, nhwc)}"
            options = {"training": training, "activation": activation, "activation_param": 0.0}
            yield (
                f"{label} forward",
                partial(
                    op.forward, x, weight, bias, residual, running_mean, running_var, x, mean, invstd, mask,
                    momentum=0.1, eps=1e-5, **options,
                ),
            )  # fmt: skip
            yield (
                f"{label} backward",
                partial(
                    op.backward, x, x, weight, bias, None, mean, invstd, mask, x, weight, bias, residual,
                    **options,
                ),
            )  # fmt: skip


def _cross_entropy(op: Any) -> _Calls:
    scalar = _empty()
    for label, (n, c, d), dtype, probabilities, smoothing in [
        ("LLM", (8192, 32000, 1), torch.bfloat16, False, 0.0),
        ("ImageNet", (8192, 1000, 1), torch.bfloat16, False, 0.0),
        ("ImageNet", (8192, 1000, 1), torch.float32, False, 0.1),
        ("MNIST", (64, 10, 1), torch.float32, False, 0.0),
        ("probabilities", (8192, 1000, 1), torch.float32, True, 0.0),
        ("segmentation", (16, 21, 65536), torch.float32, False, 0.0),
    ]:
        logits = _empty(n, c, d, dtype=dtype)
        target = _empty(n, c, d) if probabilities else _empty(n, d, dtype=torch.int64)
        lse = _empty(n, d)
        for reduction, weight in [("mean", None), ("none", _empty(c))]:
            loss = lse if reduction == "none" else scalar
            options = {"ignore_index": -100, "label_smoothing": smoothing, "reduction": reduction}
            name = f"{label} {n}x{c}x{d} {_name(dtype).split()[0]} {reduction}"
            yield (
                f"{name} forward",
                partial(op.forward, logits, target, weight, loss, lse, scalar, **options),
            )
            yield (
                f"{name} backward",
                partial(op.backward, loss, logits, target, weight, lse, scalar, logits, **options),
            )
    for dtype in (torch.float32, torch.bfloat16):
        yield f"{_name(dtype).split()[0]} scale", partial(op.scale, _empty(1 << 24, dtype=dtype), scalar)


def _max_pool2d(op: Any) -> _Calls:
    for label, shape, kernel, stride, padding, layouts in [
        ("3x3 s2 p1", (64, 64, 112, 112), (3, 3), (2, 2), (1, 1), (False, True)),
        ("2x2 s2", (64, 64, 112, 112), (2, 2), (2, 2), (0, 0), (False, True)),
        ("1024x1", (32, 1024, 1024, 1), (1024, 1), (1024, 1), (0, 0), (False,)),
    ]:
        n, c, *size = shape
        out_size = [
            (i + 2 * p - k) // s + 1 for i, k, s, p in zip(size, kernel, stride, padding, strict=True)
        ]
        cells = kernel[0] * kernel[1]
        options = {"kernel_size": kernel, "stride": stride, "padding": padding, "dilation": (1, 1)}
        for nhwc in layouts:
            for dtype in (torch.bfloat16, torch.float32):
                x = _empty(*shape, dtype=dtype, nhwc=nhwc)
                out = _empty(n, c, *out_size, dtype=dtype, nhwc=nhwc)
                offsets = torch.empty_like(out, dtype=torch.uint8 if cells <= 256 else torch.int16)
                name = f"{label} {_name(dtype, nhwc)}"
                yield f"{name} forward", partial(op.forward, x, out, offsets, **options)
                yield f"{name} inference", partial(op.forward, x, out, None, **options)
                yield f"{name} backward", partial(op.backward, out, offsets, x, **options)


def _affine_grid_sample(op: Any) -> _Calls:
    for shape, dtype, nhwc in [
        ((256, 1, 28, 28), torch.float32, False),
        ((64, 3, 224, 224), torch.float32, False),
        ((64, 3, 224, 224), torch.bfloat16, True),
    ]:
        x, theta = _empty(*shape, dtype=dtype, nhwc=nhwc), _empty(shape[0], 2, 3)
        for mode in ("bilinear", "nearest"):
            for padding_mode in ("zeros", "border", "reflection"):
                options = {"mode": mode, "padding_mode": padding_mode, "align_corners": False}
                name = f"{shape[2]}x{shape[3]}x{shape[1]} {_name(dtype, nhwc)} {mode} {padding_mode}"
                yield f"{name} forward", partial(op.forward, x, theta, x, **options)
                yield f"{name} backward", partial(op.backward, x, x, theta, x, theta, **options)
                yield f"{name} dtheta", partial(op.backward, x, x, theta, None, theta, **options)


def _tps_grid_sample(op: Any) -> _Calls:
    for shape, count, dtype, nhwc in [
        ((256, 1, 28, 28), 9, torch.float32, False),
        ((64, 3, 224, 224), 9, torch.float32, False),
        ((64, 3, 224, 224), 256, torch.float32, False),
        ((64, 3, 224, 224), 25, torch.bfloat16, True),
        ((32, 64, 56, 56), 9, torch.bfloat16, True),
    ]:
        x = _empty(*shape, dtype=dtype, nhwc=nhwc)
        theta, controls = _empty(shape[0], 2, 3 + count), _empty(count, 2)
        for mode in ("bilinear", "nearest"):
            for padding_mode in ("zeros", "border", "reflection"):
                options = {"mode": mode, "padding_mode": padding_mode, "align_corners": False}
                size = f"{shape[2]}x{shape[3]}x{shape[1]}, {count} points"
                name = f"{size} {_name(dtype, nhwc)} {mode} {padding_mode}"
                yield f"{name} forward", partial(op.forward, x, theta, controls, x, **options)
                yield f"{name} backward", partial(op.backward, x, x, theta, controls, x, theta, **options)


_CALLS: dict[str, Callable[[Any], _Calls]] = {
    "conv2d": _conv2d,
    "batch_norm": _batch_norm,
    "cross_entropy": _cross_entropy,
    "max_pool2d": _max_pool2d,
    "affine_grid_sample": _affine_grid_sample,
    "tps_grid_sample": _tps_grid_sample,
}


def problems(resources: Resources) -> list[str]:
    """What is wrong with a compiled kernel, in words; empty when nothing is."""
    found = []
    if resources.spills > SPILL_LIMIT:
        found.append(f"spills {resources.spills} B")
    if resources.shared > SHARED_LIMIT[resources.target]:
        found.append(f"wants {resources.shared >> 10} KB shared memory")
    return found


def summary(rows: Iterable[Row]) -> str:
    """The versions and, for each op and architecture, the worst of its kernels, as JSON of one line each."""
    groups: dict[tuple[str, str], list[Resources | Exception]] = {}
    for case, results in rows:
        for arch, result in results.items():
            groups.setdefault((case.op, arch), []).append(result)
    lines = []
    for (op, arch), group in groups.items():
        compiled = [result for result in group if isinstance(result, Resources)]
        line = {"op": op, "target": arch, "kernels": len(compiled), "failed": len(group) - len(compiled)}
        for name in ("registers", "spills", "shared"):
            line[name] = max((getattr(result, name) for result in compiled), default=None)
        line["matrix"] = Counter(result.matrix for result in compiled if result.matrix)
        lines.append(json.dumps(line))
    tools = {tool: getattr(knobs.nvidia, tool).version for tool in ("ptxas", "ptxas_blackwell")}
    versions = json.dumps({"triton": triton.__version__, "torch": torch.__version__, **tools})
    about = (
        "per op and architecture, of the kernels of its default configurations: how many there are, the most "
        "registers per thread, bytes of spills per thread and bytes of shared memory per block, and how many "
        "use which matrix instruction"
    )
    head = f'{{\n"about": "{about}",\n"versions": {versions},\n"worst": [\n'
    return head + ",\n".join(lines) + "\n]\n}\n"


def _cell(result: Resources | Exception) -> str:
    if isinstance(result, Exception):
        return f"[red]{type(result).__name__}[/]"
    matrix = f" {result.matrix} x{result.matrix_count}" if result.matrix else ""
    wrong = "".join(f"\n[red]{problem}[/]" for problem in problems(result))
    return f"{result.registers}r {_runtime.cdiv(result.shared, 1024)}K{matrix}{wrong}"


def main(argv: list[str] | None = None) -> int:
    every = TARGETS | AMD_TARGETS
    parser = argparse.ArgumentParser(prog="python -m fastdl.kernels.aot", description=__doc__.splitlines()[0])
    parser.add_argument("--arch", action="append", choices=every, help="repeatable; default: all of NVIDIA")
    parser.add_argument("--op", action="append", choices=OPS, help="repeatable; default: all")
    parser.add_argument("--json", metavar="FILE", help="also write the rows there")
    parser.add_argument("--summary", metavar="FILE", help="also write a line per op and architecture there")
    arguments = parser.parse_args(argv)

    from rich.console import Console
    from rich.table import Table

    archs = arguments.arch or list(TARGETS)
    rows = compile_cases(default_launches(*arguments.op or ()), [every[arch] for arch in archs])
    table = Table(
        "op", "kernel", "first used by", *archs, title="registers per thread, shared memory per block"
    )
    for case, results in rows:
        table.add_row(case.op, case.launch.kernel.__name__, case.label, *map(_cell, results.values()))
    console = Console(width=None if sys.stdout.isatty() else 75 + 24 * len(archs))
    console.print(table)
    failed = 0
    for case, results in rows:
        for arch, result in results.items():
            wrong = [result] if isinstance(result, Exception) else problems(result)
            for one in wrong:
                failed = 1
                name = f"{case.launch.kernel.__name__} ({case.label})"
                console.print(f"{case.op} {name} on {arch}: {one}", markup=False)
    if arguments.json:
        records = [
            {"op": case.op, "case": case.label, **dataclasses.asdict(result)}
            for case, results in rows
            for result in results.values()
            if isinstance(result, Resources)
        ]
        with open(arguments.json, "w") as file:
            json.dump(records, file, indent=1)
    if arguments.summary:
        with open(arguments.summary, "w") as file:
            file.write(summary(rows))
    return failed


if __name__ == "__main__":
    sys.exit(main())
