"""Running an example on a backend and holding what comes out against torch."""

from collections.abc import Callable
from typing import Any

import torch
from fuzz.examples import Example, lay_out
from namesakes import NAMESAKES, float32_batch_norm
from torch import Tensor

import fastdl.functional as F
from fastdl import backends, parity

DRAWS = 16  # of the same example where one draw disagrees


def check(example: Example, backend: str, seed: int) -> None:
    """AssertionError unless ours does what torch does: the same results, or the same kind of exception.

    A single draw of few numbers says little about rounding: torch may be exact by luck. So where the rule
    fails, the same example is drawn again and all draws are judged as one.
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
        elif failure := parity.judge(got, torchs[name], oracle[name]).failure:
            again = parity.judge(*drawn_again(example, backend, seed, name)).failure
            assert not again, f"{name}: {again} (the first draw: {failure})"


def rejected(example: Example, tensors: dict[str, Tensor], backend: str, expected: type) -> None:
    with backends.use_backend(backend):
        try:
            by_us(example, tensors)
        except Exception as error:
            assert type(error) is expected, f"{type(error).__name__} where torch has {expected.__name__}"
        else:
            raise AssertionError(f"served where torch raises {expected.__name__}")


def drawn_again(example: Example, backend: str, seed: int, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """``name`` of several draws by us, by torch and by the oracle."""
    results: tuple[list, list, list] = ([], [], [])
    for each in range(seed, seed + DRAWS):
        tensors = draw(example, each)
        try:
            results[1].append(by_torch(example, tensors, backend)[name])
        except IndexError:  # a class that there is not, drawn this time
            continue
        results[2].append(by_torch(example, double(tensors))[name])
        with backends.use_backend(backend):
            results[0].append(by_us(example, tensors)[name])
    return tuple(torch.stack(result) for result in results)


def draw(example: Example, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: each.draw(generator) for name, each in example.inputs.items()}


def by_us(example: Example, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return run(example, tensors, getattr(F, example.op), lambda grad: lay_out(grad, example.incoming))


def by_torch(example: Example, tensors: dict[str, Tensor], backend: str = "cpu") -> dict[str, Tensor]:
    """As torch does on the kind of device that ``backend`` is for.

    With everything contiguous for batch norm, where torch 2.13 takes one layout of [1, C, 1, W] for the
    other, and for a GPU's backends, which torch's choice of a CPU kernel by the layout does not concern.
    """
    on_gpu = backend in ("cuda", "triton")
    if not on_gpu and example.op != "batch_norm":
        return run(example, tensors, NAMESAKES[example.op], lambda grad: lay_out(grad, example.incoming))
    function = float32_batch_norm if on_gpu and example.op == "batch_norm" else NAMESAKES[example.op]
    plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
    return run(example, plain, function, lambda grad: lay_out(grad, example.incoming).contiguous())


def run(
    example: Example, tensors: dict[str, Tensor], function: Any, laid_out: Callable[[Tensor], Tensor]
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
    generator = torch.Generator().manual_seed(1)
    grad_out = torch.randn(outputs[0].shape, generator=generator).bfloat16().to(outputs[0].dtype)
    asked = {name: t for name, t in arguments.items() if t is not None and t.requires_grad}
    grads = torch.autograd.grad(outputs[0], list(asked.values()), laid_out(grad_out))
    return (
        {f"output {i}": t.detach() for i, t in enumerate(outputs)}
        | {name: arguments[name] for name in example.updated}
        | {f"grad {name}": grad for name, grad in zip(asked, grads, strict=True)}
    )


def double(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.double() if t.is_floating_point() else t for name, t in tensors.items()}


def same(a: Tensor, b: Tensor) -> bool:
    """Bit for bit, NaN being NaN."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(7), b.nan_to_num(7))
