"""Run a model once beforehand, so that no call that counts waits for a compiler."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


def warm_up(
    model: nn.Module,
    *example_inputs: Any,
    loss: Callable[[Any], Tensor] | None = None,
    training: bool = True,
) -> None:
    """Have everything compiled and loaded that calls of ``model`` on inputs like these need.

    A copy runs, forward and backward, in training and in evaluation mode; the model is left as it is, and so
    are the inputs and torch's random numbers. Hooks run too, with the copy. Triton keeps what it compiles on
    disk, so the next process only loads it. Kernels depend on dtypes, layouts and sizes: the examples should
    be like what comes.

    Args:
        model: converted or not.
        example_inputs: of one call.
        loss: of the model's output, to have its kernels too; without it the outputs' sum is differentiated.
        training: False for a model that only infers: no training mode, no gradients.

    Raises:
        TypeError: if model is not a torch.nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"fastdl.warm_up: expected model to be a torch.nn.Module, got {type(model).__name__}")
    tensors = [*model.parameters(), *model.buffers(), *_tensors(example_inputs)]
    gpus = sorted({t.device.index for t in tensors if t.device.type == "cuda"})
    with torch.random.fork_rng(gpus), torch.inference_mode(False):
        trial = copy.deepcopy(model)
        for mode, grad in ((True, True), (False, True), (False, False)) if training else ((False, False),):
            trial.train(mode)
            inputs = pytree.tree_map_only(Tensor, _copy, example_inputs)
            with torch.set_grad_enabled(grad):
                out = trial(*inputs)
                found = [out] if loss is None else [loss(out)]
            wanted = [t for t in _tensors(found) if t.requires_grad]
            if wanted:
                torch.autograd.backward(wanted, [torch.ones_like(t) for t in wanted])


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _copy(t: Tensor) -> Tensor:
    return t.detach().clone().requires_grad_(t.requires_grad)
