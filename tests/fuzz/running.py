"""Running an example on a backend and holding what comes out against torch."""

from collections.abc import Callable
from typing import Any

import torch
from fuzz.examples import Example, double, draw, lay_out
from fuzz.kinks import near_a_kink
from namesakes import NAMESAKES, float32_batch_norm
from torch import Tensor

import fastdl.functional as F
from fastdl import backends, parity

NUDGES = 16  # of a draw that disagrees
ROUNDING = torch.finfo(torch.float32).eps


def check(example: Example, backend: str, seed: int) -> None:
    """AssertionError unless ours does what torch does: the same results, or the same kind of exception.

    A single draw of few numbers says little about rounding: torch may be exact by luck. So where the rule
    fails, the draw and others next to it, with other gradients coming in, are judged as one. (Not any
    others: the worst conditioned of them would decide alone.)
    """
    tensors = draw(example, seed)
    try:
        torchs = by_torch(example, tensors, backend)
    except Exception as error:
        rejected(example, tensors, backend, type(error))
        return
    with backends.use_backend(backend):
        before = {name: t.clone() for name, t in tensors.items() if name not in example.updated}
        ours = by_us(example, tensors)
        for name, tensor in before.items():
            assert same(tensor, tensors[name]), f"{name} was modified"
    oracle = by_torch(example, double(tensors))
    assert ours.keys() == torchs.keys()
    for name, got in ours.items():
        if not got.is_floating_point():
            assert same(got, torchs[name]), name
        elif cancelled(got, oracle[name]):
            continue
        elif failure := parity.judge(got, torchs[name], oracle[name]).failure:
            again = [
                parity.judge(*nudged(example, backend, seed, name, contiguous)).failure
                for contiguous in layouts_of_torch(example, backend)
            ]
            assert not all(again), f"{name}: {again} (without its neighbours: {failure})"


def cancelled(got: Tensor, oracle: Tensor) -> bool:
    """Whether all terms cancel, to a rounding: torch's order of adding them may happen to give 0 itself."""
    rounded = got.where(~(got.abs() < ROUNDING), 0.0)
    return not oracle.nan_to_num(0.0).any() and same(rounded, oracle.to(got.dtype))


def rejected(example: Example, tensors: dict[str, Tensor], backend: str, expected: type) -> None:
    with backends.use_backend(backend):
        try:
            by_us(example, tensors)
        except Exception as error:
            assert type(error) is expected, f"{type(error).__name__} where torch has {expected.__name__}"
        else:
            raise AssertionError(f"served where torch raises {expected.__name__}")


def nudged(
    example: Example, backend: str, seed: int, name: str, contiguous: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """``name`` of a draw and others next to it by us, by torch and by the oracle, all in one."""
    results: tuple[list, list, list] = ([], [], [])
    for nudge in (None, *range(20 * NUDGES)):
        if len(results[0]) > NUDGES:
            break
        tensors = draw(example, seed, nudge)
        if near_a_kink(example, tensors):
            continue
        with backends.use_backend(backend):
            results[0].append(by_us(example, tensors, nudge)[name])
        results[1].append(by_torch(example, tensors, backend, nudge, contiguous)[name])
        results[2].append(by_torch(example, double(tensors), nudge=nudge)[name])
    return tuple(torch.stack(result) for result in results)


def by_us(example: Example, tensors: dict[str, Tensor], nudge: int | None = None) -> dict[str, Tensor]:
    return run(example, tensors, getattr(F, example.op), lambda grad: lay_out(grad, example.incoming), nudge)


def by_torch(
    example: Example,
    tensors: dict[str, Tensor],
    backend: str = "cpu",
    nudge: int | None = None,
    contiguous: bool | None = None,
) -> dict[str, Tensor]:
    """As torch does on the kind of device that ``backend`` is for, with everything contiguous or as it is."""
    if contiguous is None:
        contiguous = layouts_of_torch(example, backend)[0]
    on_gpu = backend in ("cuda", "triton")
    function = float32_batch_norm if on_gpu and example.op == "batch_norm" else NAMESAKES[example.op]
    if contiguous:
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}

    def incoming(grad: Tensor) -> Tensor:
        grad = lay_out(grad, example.incoming)
        return grad.contiguous() if contiguous else grad

    return run(example, tensors, function, incoming, nudge)


def layouts_of_torch(example: Example, backend: str) -> list[bool]:
    """Whether torch gets everything contiguous: a choice of layouts, of which one is to be met.

    Batch norm does, where torch 2.13 takes one layout of [1, C, 1, W] for the other. So does what is held
    against a GPU's backends, which torch's choice of a CPU kernel by the layout does not concern; but where
    they leave a convolution's gradient to torch, it gets the layout given.
    """
    if backend not in ("cuda", "triton"):
        return [example.op == "batch_norm"]
    return [True, False] if example.op == "conv2d" else [True]


def run(
    example: Example,
    tensors: dict[str, Tensor],
    function: Any,
    laid_out: Callable[[Tensor], Tensor],
    nudge: int | None,
) -> dict[str, Tensor]:
    """Outputs, updated statistics and gradients by name. What is updated is a copy."""
    arguments = {}
    for name, tensor in tensors.items():
        wants = example.inputs[name].grad and tensor.is_floating_point()
        arguments[name] = (
            (tensor.clone() if name in example.updated else tensor).detach().requires_grad_(wants)
        )
    if example.op == "batch_norm":
        arguments = {"running_mean": None, "running_var": None} | arguments
    out = function(**arguments, **example.options)
    outputs = out if isinstance(out, tuple) else (out,)
    generator = torch.Generator().manual_seed(-1 if nudge is None else nudge)
    grad_out = torch.randn(outputs[0].shape, generator=generator).bfloat16().to(outputs[0].dtype)
    asked = {name: t for name, t in arguments.items() if t is not None and t.requires_grad}
    grads = torch.autograd.grad(outputs[0], list(asked.values()), laid_out(grad_out))
    return (
        {f"output {i}": t.detach() for i, t in enumerate(outputs)}
        | {name: arguments[name] for name in example.updated}
        | {f"grad {name}": grad for name, grad in zip(asked, grads, strict=True)}
    )


def same(a: Tensor, b: Tensor) -> bool:
    """Bit for bit, NaN being NaN."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(7), b.nan_to_num(7))
