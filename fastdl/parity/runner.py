"""Running one case on one backend, dtype, layout and direction, and judging what comes out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import backends, functional
from .cases import CASES, Case
from .tolerance import Verdict, judge

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LAYOUTS = ("contiguous", "channels_last", "strided")
DIRECTIONS = ("forward", "backward")


@dataclass(frozen=True)
class Result:
    """One line of the report; ``verdict`` is "pass", "fail" or "skip", ``note`` says why it did not pass."""

    op: str
    case: str
    backend: str
    device: str
    dtype: str
    layout: str
    direction: str
    error: float
    torch_error: float
    verdict: str
    note: str = ""


class Run(NamedTuple):
    """What to run: a case by its op and name, on a backend, in a dtype and layout, on a device.

    Plain data, so that it can travel to another process. ``missing`` says why the backend is not there.
    """

    op: str
    name: str
    backend: str
    dtype: torch.dtype
    layout: str
    device: str
    missing: str | None = None

    @property
    def case(self) -> Case:
        return next(case for case in CASES if (case.op, case.name) == (self.op, self.name))


def execute(run: Run) -> list[Result]:
    """Both directions of the case: outputs and updated statistics forward, gradients backward.

    An exception of our op is a failed result, not the end of the run; a missing backend is a skipped one.
    """
    case, backend, dtype, layout = run.case, run.backend, run.dtype, run.layout
    device = torch.device(run.device)

    def result(direction: str, error: float, torch_error: float, verdict: str, note: str = "") -> Result:
        name = str(dtype).removeprefix("torch.")
        return Result(
            case.op,
            case.name,
            backend,
            device.type,
            name,
            layout,
            direction,
            error,
            torch_error,
            verdict,
            note,
        )

    if run.missing is not None:
        return [result(direction, 0.0, 0.0, "skip", run.missing) for direction in _directions(case)]
    inputs = {name: _prepare(case, name, t, dtype, layout) for name, t in case.draw().items()}
    with _exact_torch():
        torchs = _execute(case, inputs, "reference", device)
        oracle = _execute(case, {n: _double(t) for n, t in inputs.items()}, "reference", torch.device("cpu"))
        try:
            ours = _execute(case, inputs, backend, device)
        except Exception as error:
            note = f"{type(error).__name__}: {error}"
            return [result(d, float("inf"), 0.0, "fail", note) for d in _directions(case)]
    results = []
    for direction in _directions(case):
        verdicts = {
            name: judge(tensor, torchs[direction][name], oracle[direction][name])
            if tensor.is_floating_point()
            else _same(tensor, torchs[direction][name])
            for name, tensor in ours[direction].items()
        }
        failures = [f"{name}: {v.failure}" for name, v in verdicts.items() if v.failure]
        worst = max(verdicts.values(), key=lambda v: (bool(v.failure), v.error))
        results.append(
            result(
                direction, worst.error, worst.torch_error, "fail" if failures else "pass", "; ".join(failures)
            )
        )
    return results


def plan(
    ops: Sequence[str] = (),
    names: Sequence[str] = (),
    device: str = "cpu",
    dtypes: Sequence[torch.dtype] = DTYPES,
    layouts: Sequence[str] = LAYOUTS,
) -> list[Run]:
    """The runs asked for; an empty ``ops`` or ``names`` (of backends) means all of them.

    The reference is torch itself: where it is not asked for by name, one dtype and layout show that its
    arguments arrive.
    """
    everywhere = [b for b in backends.BACKENDS if b != "cpu" or torch.device(device).type == "cpu"]
    missing = {backend: backends.why_not(backend, torch.device(device)) for backend in names or everywhere}
    return [
        Run(case.op, case.name, backend, dtype, layout, device, why)
        for case in CASES
        if not ops or case.op in ops
        for backend, why in missing.items()
        for dtype in (dtypes if names or backend != "reference" else dtypes[:1])
        for layout in _layouts(case, layouts if names or backend != "reference" else layouts[:1])
    ]


def report(results: list[Result]) -> dict[str, Any]:
    """The JSON form: how many cases, failures and skips, and every result."""
    return {
        "summary": {
            "cases": len(results),
            "failed": sum(r.verdict == "fail" for r in results),
            "skipped": sum(r.verdict == "skip" for r in results),
        },
        "cases": [asdict(r) for r in results],
    }


def _directions(case: Case) -> tuple[str, ...]:
    return DIRECTIONS if case.grads else DIRECTIONS[:1]


def _layouts(case: Case, layouts: Sequence[str]) -> list[str]:
    """The layouts that differ for this case: channels_last needs a 4- or 5-D input."""
    dims = max(t.dim() for name, t in case.draw().items() if name in case.image and t is not None)
    return [layout for layout in layouts if layout != "channels_last" or dims in (4, 5)]


def _prepare(case: Case, name: str, tensor: Tensor | None, dtype: torch.dtype, layout: str) -> Tensor | None:
    if tensor is None:
        return None
    if tensor.is_floating_point() and name not in case.keep:
        tensor = tensor.to(dtype)
    if name in case.image:
        tensor = lay_out(tensor, layout)
    return tensor


def lay_out(tensor: Tensor, layout: str) -> Tensor:
    """The same values in another memory layout; "strided" is every second element at an odd offset."""
    if layout == "channels_last" and tensor.dim() == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout == "channels_last" and tensor.dim() == 5:
        return tensor.contiguous(memory_format=torch.channels_last_3d)
    if layout == "strided" and tensor.dim() > 0:
        hole = float("nan") if tensor.is_floating_point() else 77
        wide = tensor.new_full((*tensor.shape[:-1], 2 * tensor.shape[-1] + 1), hole)
        wide[..., 1::2] = tensor
        return wide[..., 1::2]
    return tensor


def _double(tensor: Tensor | None) -> Tensor | None:
    return tensor.double() if tensor is not None and tensor.is_floating_point() else tensor


def _same(ours: Tensor, torchs: Tensor) -> Verdict:
    """Integer results are equal or wrong."""
    equal = ours.dtype == torchs.dtype and torch.equal(ours.cpu(), torchs.cpu())
    return Verdict(0.0, 0.0, "" if equal else "differs from torch's")


def _execute(
    case: Case, inputs: dict[str, Tensor | None], backend: str, device: torch.device
) -> dict[str, dict[str, Tensor]]:
    """Results by direction and name. The gradient that comes in is the same random one for every backend."""
    arguments = {}
    for name, tensor in inputs.items():
        if tensor is not None:
            # copies, layout kept: statistics are updated in place, and leaves must not be shared
            tensor = _copy(tensor, device).requires_grad_(name in case.grads)
        arguments[name] = tensor
    with backends.use_backend(backend):
        out = getattr(functional, case.op)(**arguments, **case.options)
    outputs = out if isinstance(out, tuple) else (out,)
    forward = {f"output {i}" if i else "output": t for i, t in enumerate(outputs)}
    forward |= {name: arguments[name] for name in case.updated}
    results = {"forward": forward}
    if case.grads:
        generator = torch.Generator().manual_seed(1)
        grad_out = torch.randn(outputs[0].shape, generator=generator)
        # rounded once to the lowest precision, so that all see the same values
        grad_out = grad_out.bfloat16().to(device, outputs[0].dtype)
        grads = torch.autograd.grad(outputs[0], [arguments[name] for name in case.grads], grad_out)
        results["backward"] = {f"grad {name}": g for name, g in zip(case.grads, grads, strict=True)}
    return results


def _copy(tensor: Tensor, device: torch.device) -> Tensor:
    storage = torch.empty(tensor.untyped_storage().nbytes() // tensor.element_size(), dtype=tensor.dtype)
    storage.fill_(float("nan") if tensor.is_floating_point() else 0)
    copy = storage.to(device).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
    return copy.copy_(tensor).detach()


@contextlib.contextmanager
def _exact_torch() -> Iterator[None]:
    """No TF32 anywhere: parity is about full float32."""
    backends_to_set = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)
    before = [b.fp32_precision for b in backends_to_set]
    for b in backends_to_set:
        b.fp32_precision = "ieee"
    try:
        yield
    finally:
        for b, precision in zip(backends_to_set, before, strict=True):
            b.fp32_precision = precision
