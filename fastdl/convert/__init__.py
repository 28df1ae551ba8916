"""Put a model's layers on fused kernels, in place, and take them off again.

convert(model)    find what can be fused and swap it in
revert(model)     the model as it was
explain(model)    which calls are served by what, and why the others are not
"""

from __future__ import annotations

from typing import TypeVar

from torch import jit, nn

from .explain import Explanation, explain
from .swap import is_converted, not_traced, original_class, restore, swap_container, swap_leaf

__all__ = ["Explanation", "convert", "explain", "revert"]

Model = TypeVar("Model", bound=nn.Module)


def convert(model: Model) -> Model:
    """Let ``model`` run fused calls wherever it contains a sequence that one of them serves.

    Fused: convolution + activation, batch norm (+ addition) (+ activation), max pool + ReLU behind a
    convolution, affine_grid + grid_sample, log_softmax + nll_loss, whether written as modules, functions or
    methods; torch.nn modules of our types (fastdl.nn) one by one everywhere else. What cannot be traced
    safely runs as written. ``explain`` tells.

    The same object comes back, changed only in the classes of its modules: parameters, buffers, hooks and
    state_dict stay, an optimizer made before stays right. train(), eval(), hooks, replaced, pruned and
    parametrised layers, deepcopy, pickle, DataParallel and torch.compile work as before.

    Args:
        model: any torch.nn.Module; a loss too.

    Returns:
        ``model``. To convert it again changes nothing.

    Raises:
        TypeError: if model is not a torch.nn.Module.

    Differs from the model as written: in rounding, as fused operators do. ``type(m) is nn.Conv2d`` is no
    longer true, ``isinstance`` is. A pickle of the whole model needs fastdl to be loaded; its state_dict
    does not.
    """
    _check("convert", model)
    modules = [module for module in model.modules() if not isinstance(module, jit.ScriptModule)]
    for module in modules:
        swap_leaf(module)
    for module in modules:
        if not is_converted(module) and not_traced(module, original_class(module)) is None:
            swap_container(module)
    return model


def revert(model: Model) -> Model:
    """Undo ``convert``: every class as it was, nothing left behind. Returns ``model``.

    Modules of fastdl.nn that were there before stay. A module that has been parametrized since keeps its
    class until the parametrization is removed.

    Raises:
        TypeError: if model is not a torch.nn.Module.
    """
    _check("revert", model)
    for module in model.modules():
        restore(module)
    return model


def _check(name: str, model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"fastdl.{name}: expected model to be a torch.nn.Module, got {type(model).__name__}")
