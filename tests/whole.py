"""Whole networks held against themselves as written: all that can be seen of a call and its gradients."""

import copy
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from fastdl.parity import judge


def tensors(value) -> Iterator[torch.Tensor]:
    """The tensors in what a model returned: one, or a tuple, a list, a dict of them."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for element in value.values() if isinstance(value, Mapping) else value:
            yield from tensors(element)


def step(model: nn.Module, x: torch.Tensor, call=None) -> dict[str, torch.Tensor]:
    """Outputs, gradients and buffers of one call (of ``call`` where that is not the model itself)."""
    x = x.clone().requires_grad_()
    torch.manual_seed(1)
    outputs = [out for out in tensors((model if call is None else call)(x)) if out.is_floating_point()]
    model.zero_grad(set_to_none=True)
    torch.manual_seed(2)  # some models draw in backward too
    sum(out.square().mean() for out in outputs if out.requires_grad).backward()
    seen = {f"output {i}": out for i, out in enumerate(outputs)}
    seen |= {f"gradient of {name}": p.grad for name, p in [("input", x), *model.named_parameters()]}
    seen |= dict(model.named_buffers())
    return {name: value.detach().clone() for name, value in seen.items() if value is not None}


def written(model: nn.Module, x: torch.Tensor) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Of a copy of ``model``, not converted: in its own dtype, and the float64 oracle."""
    return step(copy.deepcopy(model), x), step(copy.deepcopy(model).double(), x.double())


def assert_same(ours: dict, theirs: dict) -> None:
    """To the bit."""
    assert ours.keys() == theirs.keys()
    different = [name for name, value in theirs.items() if not torch.equal(ours[name], value)]
    assert not different, different


def assert_judged(ours: dict, torchs: dict, oracle: dict) -> None:
    """By the tolerance rule, on all tensors at once, each in units of its largest value.

    At once since in a tensor of few values torch may have been lucky. Where torch itself gets no digit right
    (the bias in front of a batch norm: its true gradient is zero) there is nothing to be held to.
    """
    assert ours.keys() == torchs.keys()
    scaled: list[list[torch.Tensor]] = [[], [], []]
    for name, truth in oracle.items():
        if not truth.is_floating_point():
            assert torch.equal(ours[name], torchs[name]), name
            continue
        unit = truth.abs().max().clamp_min(1e-300)
        values = [v.double() / unit for v in (ours[name], torchs[name], truth)]
        if float((values[1] - values[2]).abs().max()) < 0.1:
            for column, value in zip(scaled, values, strict=True):
                column.append(value.flatten())
    ours_, torchs_, oracle_ = (torch.cat(column) for column in scaled)
    verdict = judge(ours_.float(), torchs_.float(), oracle_)
    assert verdict.failure == "", verdict
