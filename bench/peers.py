"""Who is measured: PyTorch in its forms, each of our backends, other packages where they are installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._functorch import config as functorch

import fastdl.functional
from fastdl import backends

from .case import Case

Function = Callable[..., Tensor]
EAGER, OURS = "eager", "fastdl"
#: What is ours: its errors fail the command, and what ``--compare`` watches.
OWN = (OURS, "fastdl_graph", *(name for name in backends.BACKENDS if name != "reference"))


@dataclass(frozen=True)
class Peer:
    """One implementation.

    Attributes:
        name: on the command line and in results.
        about: a line for ``fastdl bench --list``.
        why_not: why it does not serve ``(case, direction, device)``; None if it does.
        make: a function of the case's inputs and options by name.
    """

    name: str
    about: str
    why_not: Callable[[Case, str, torch.device], str | None]
    make: Callable[[Case], Function]


def ours(case: Case) -> Function:
    return getattr(fastdl.functional, case.function or case.op)


def _by_backend(name: str) -> Peer:
    def why_not(case: Case, direction: str, device: torch.device) -> str | None:
        emulated = device.type == "cpu" and name in ("cuda", "triton")
        return "for GPUs" if emulated else backends.why_not(name, device)

    def make(case: Case) -> Function:
        function = ours(case)

        def call(**arguments: object) -> Tensor:
            with backends.use_backend(name):
                return function(**arguments)

        return call

    return Peer(name, f"fastdl's backend {name!r} alone", why_not, make)


def _compiled(name: str, mode: str | None, gpu_only: bool = False) -> Peer:
    def why_not(case: Case, direction: str, device: torch.device) -> str | None:
        return "for GPUs" if gpu_only and device.type != "cuda" else None

    def make(case: Case) -> Function:
        functorch.donated_buffer = False  # the gradients alone are timed over one graph that is kept
        return torch.compile(case.eager, dynamic=False, mode=mode)

    return Peer(name, f"torch.compile of the same{f', mode {mode}' if mode else ''}", why_not, make)


def _package(name: str, module: str, op: str, call: Callable[[object], Function], about: str) -> Peer:
    """A peer out of an optional package, for one op on a GPU."""

    def why_not(case: Case, direction: str, device: torch.device) -> str | None:
        if case.op != op:
            return f"has no {case.op}"
        if device.type != "cuda":
            return "for GPUs"
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever a broken package raises
            return f"cannot be imported ({type(error).__name__}: {error})"
        return None

    return Peer(name, about, why_not, lambda case: call(importlib.import_module(module)))


def _cudnn_fused() -> Peer:
    def why_not(case: Case, direction: str, device: torch.device) -> str | None:
        if case.op != "conv2d" or "pool_kernel_size" in case.options:
            return f"has no {case.function or case.op}"
        if device.type != "cuda" or not torch.backends.cudnn.is_available():
            return "for GPUs with cuDNN"
        return None if direction == "forward" else "has no gradient"

    def make(case: Case) -> Function:
        def call(
            input: Tensor,
            weight: Tensor,
            bias: Tensor,
            activation: str,
            stride: int = 1,
            padding: int = 0,
            groups: int = 1,
        ) -> Tensor:
            window = [stride] * 2, [padding] * 2, [1, 1], groups
            return torch.cudnn_convolution_relu(input, weight, bias, *window)

        return call

    return Peer("cudnn_relu", "torch.cudnn_convolution_relu", why_not, make)


def _cublaslt_relu() -> Peer:
    """A 1x1 convolution of channels_last images as a matrix product with bias and relu in its epilogue."""

    def product(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        rows = input.permute(0, 2, 3, 1)
        out = torch._addmm_activation(bias, rows.flatten(0, 2), weight.flatten(1).t())
        return out.unflatten(0, rows.shape[:3]).permute(0, 3, 1, 2)

    def why_not(case: Case, direction: str, device: torch.device) -> str | None:
        plain = (
            case.op == "conv2d" and case.options == {"activation": "relu"} and case.layout == "channels_last"
        )
        if not plain or not case.name.startswith("1x1"):
            return "for 1x1 convolutions with relu in channels_last"
        if device.type != "cuda":
            return "for GPUs"
        if direction != "forward":
            return "has no gradient"
        x = torch.ones(2, 64, 56, 56, device=device).to(memory_format=torch.channels_last)
        x[0, 0, 0, 0] = float("nan")
        out = product(x, torch.ones(256, 64, 1, 1, device=device), torch.ones(256, device=device))
        return None if out[0, :, 0, 0].isnan().all() else "turns NaN into 0"

    def make(case: Case) -> Function:
        return lambda input, weight, bias, activation: product(input, weight, bias)

    return Peer("cublaslt_relu", "torch._addmm_activation", why_not, make)


def _flag_gems(module: object) -> Function:
    def call(input: Tensor, target: Tensor) -> Tensor:
        with module.use_gems():  # type: ignore[attr-defined]
            return torch.nn.functional.cross_entropy(input, target)

    return call


PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer(EAGER, "PyTorch, op by op", lambda *_: None, lambda case: case.eager),
        Peer(OURS, "fastdl, its own choice of backend", lambda *_: None, ours),
        *(_by_backend(name) for name in backends.BACKENDS),
        _compiled("compile", None),
        _compiled("compile_max_autotune", "max-autotune-no-cudagraphs"),
        _compiled("compile_reduce_overhead", "reduce-overhead", gpu_only=True),
        _cudnn_fused(),
        _cublaslt_relu(),
        _package(
            "liger",
            "liger_kernel.transformers.functional",
            "cross_entropy",
            lambda module: module.liger_cross_entropy,  # type: ignore[attr-defined]
            "Liger Kernel's cross-entropy",
        ),
        _package(
            "quack",
            "quack.cross_entropy",
            "cross_entropy",
            lambda module: lambda input, target: module.cross_entropy(input, target, reduction="mean"),  # type: ignore[attr-defined]
            "quack's cross-entropy",
        ),
        _package("flag_gems", "flag_gems", "cross_entropy", _flag_gems, "FlagGems' cross-entropy"),
    )
}

#: Measured unless ``--peers`` says otherwise.
DEFAULT = {
    "cpu": (EAGER, OURS),
    "cuda": (EAGER, "compile", OURS, "cuda", "triton", "cudnn_relu", "cublaslt_relu", "liger"),
}
