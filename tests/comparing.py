"""Holding a function against torch's: values, dtypes, memory format and gradients, by the one rule."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastdl import parity


def assert_as_torch(ours: Callable, torchs: Callable, inputs: Sequence[Tensor], grads: bool = True) -> None:
    """``ours(*inputs)`` gives what ``torchs(*inputs)`` gives; so do the gradients of all that is floating."""
    got, expected = results(ours, inputs, grads), results(torchs, inputs, grads)
    oracle = results(torchs, [t.double() if t.is_floating_point() else t for t in inputs], grads)
    assert len(got) == len(expected)
    for i, (a, b, c) in enumerate(zip(got, expected, oracle, strict=True)):
        if b.is_floating_point():
            failure = parity.judge(a, b, c).failure
            assert not failure, f"result {i}: {failure}"
        else:
            assert a.dtype == b.dtype and torch.equal(a, b), f"result {i} differs"
    assert formats(got[0]) == formats(expected[0]), "memory format of the output"


def results(function: Callable, inputs: Sequence[Tensor], grads: bool = True) -> list[Tensor]:
    """Outputs, then gradients of a weighted sum of the first one."""
    leaves = [t.detach().requires_grad_(grads and t.is_floating_point()) for t in inputs]
    out = function(*leaves)
    outputs = list(out) if isinstance(out, tuple) else [out]
    first = outputs[0]
    asked = [t for t in leaves if t.requires_grad]
    found: Sequence[Tensor] = ()
    if grads:
        weights = torch.linspace(-1.5, 1, max(first.numel(), 1)).bfloat16().to(first.device, first.dtype)
        loss = (first * weights[: first.numel()].view(first.shape)).sum()
        found = torch.autograd.grad(loss, asked, allow_unused=True)
    return [t.detach() for t in outputs] + [g for g in found if g is not None]


def formats(t: Tensor) -> set[torch.memory_format]:
    """Those that ``t`` is in: an image of one channel is in both."""
    known = {4: torch.channels_last, 5: torch.channels_last_3d}.get(t.dim())
    both = (torch.contiguous_format, known) if known else (torch.contiguous_format,)
    return {format for format in both if t.is_contiguous(memory_format=format)}
