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
    seen |= {f"buffer {name}": buffer for name, buffer in model.named_buffers()}
    return {name: value.detach().clone() for name, value in seen.items() if value is not None}


def written(model: nn.Module, x: torch.Tensor) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Of a copy of ``model``, not converted: in its own dtype, and the float64 oracle."""
    return step(copy.deepcopy(model), x), step(copy.deepcopy(model).double(), x.double())


def assert_same(ours: dict, theirs: dict) -> None:
    """To the bit."""
    assert ours.keys() == theirs.keys()
    different = [name for name, value in theirs.items() if not torch.equal(ours[name], value)]
    assert not different, different


def assert_judged_once(ours: nn.Module, model: nn.Module, x: torch.Tensor, call=None) -> None:
    """``assert_judged`` for a step of ``ours`` on ``x`` or, if not on that, on one of three more inputs.

    Among the millions of activations of a network one may lie within rounding of 0, where relu has a corner:
    then the gradients of torch and ours differ and neither is wrong. What a kernel gets wrong it gets wrong
    for every input.
    """
    state = copy.deepcopy(model.state_dict())
    for seed in (1, 2, 3, None):
        expected = written(model, x)
        try:
            return assert_judged(step(ours, x, call), *expected)
        except AssertionError:
            if seed is None:
                raise
        finally:
            ours.load_state_dict(state)
        x = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))


def assert_judged(ours: dict, torchs: dict, oracle: dict) -> None:
    """By the tolerance rule, on all tensors at once, each in units of its largest value.

    At once since in a tensor of few values torch may have been lucky. A tensor next to nothing (the gradient
    of a bias in front of a batch norm is zero but for rounding) counts in thousandths of the largest of its
    kind.
    """
    assert ours.keys() == torchs.keys()
    largest: dict[str, float] = {}
    for name, truth in oracle.items():
        kind = name.split()[0]  # output, gradient or a buffer
        largest[kind] = max(largest.get(kind, 0.0), float(truth.abs().max()))
    scaled: list[list[torch.Tensor]] = [[], [], []]
    for name, truth in oracle.items():
        if not truth.is_floating_point():
            assert torch.equal(ours[name], torchs[name]), name
            continue
        unit = max(float(truth.abs().max()), largest[name.split()[0]] / 1000) or 1.0
        for column, value in zip(scaled, (ours[name], torchs[name], truth), strict=True):
            column.append(value.double().flatten() / unit)
    ours_, torchs_, oracle_ = (torch.cat(column) for column in scaled)
    verdict = judge(ours_.float(), torchs_.float(), oracle_)
    assert verdict.failure == "", verdict
