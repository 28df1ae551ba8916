"""The calls that a converted forward makes: fused where that is still right, one by one otherwise.

They take the modules themselves and look at them in every call: a hook on one of them, or another module in
its place (a parametrised one, one of the user's), and the sequence runs as it was written. Where only a
functional call stands, its name and parameter stand in the module's place: ``("relu", None)``.
"""

from __future__ import annotations

import operator
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from .. import activations, backends, functional
from .. import nn as fast

CONVS = (fast.Conv2d,)
NORMS = (fast.BatchNorm1d, fast.BatchNorm2d, fast.BatchNorm3d)
POOLS = (fast.MaxPool2d,)
LOSSES = (fast.CrossEntropyLoss,)
OPS = ((CONVS, "conv2d"), (NORMS, "batch_norm"), (POOLS, "max_pool2d"), (LOSSES, "cross_entropy"))
ACTS = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.Sigmoid, nn.Tanh, nn.Softplus)

#: ``a += b`` and the like, as the functions in operator are called.
_BINARY = ("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor")
IN_PLACE = tuple(f"i{name}" for name in (*_BINARY, "lshift", "rshift"))

Act = tuple[str, float | None]


def in_place(name: str, a: Any, b: Any) -> Any:
    """``a += b`` and the like: ``name`` is that of the function in operator."""
    return getattr(operator, name)(a, b)


def unpack(values: Any, number: int) -> tuple[Any, ...]:
    """``a, b = values`` for ``number`` names, whatever the values come in: a dict gives its keys."""
    unpacked = tuple(values)
    if len(unpacked) != number:
        raise ValueError(f"expected {number} values to unpack, got {len(unpacked)}")
    return unpacked


def bare(module: nn.Module, types: tuple[type[nn.Module], ...]) -> bool:
    """Whether calling ``module`` runs the forward of one of these types and nothing else."""
    return type(module) in types and unhooked(module) and not _has_any_global_hook()


def unhooked(module: nn.Module) -> bool:
    """Whether calling ``module`` runs the forward of its class and no hook of its own."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


def activation_spec(act: nn.Module) -> Act | None:
    """Name and parameter of an activation that kernels have; None for any other."""
    if isinstance(act, nn.ReLU):
        return "relu", None
    if isinstance(act, nn.LeakyReLU):
        return ("leaky_relu", act.negative_slope) if act.negative_slope >= 0 else None
    if isinstance(act, nn.ELU):
        return ("elu", act.alpha) if act.alpha > 0 else None
    if isinstance(act, nn.Sigmoid):
        return "sigmoid", None
    if isinstance(act, nn.Tanh):
        return "tanh", None
    return ("softplus", None) if act.beta == 1 and act.threshold == 20 else None


def _activation(act: nn.Module | Act) -> Act | None:
    if isinstance(act, tuple):
        return act
    return activation_spec(act) if bare(act, ACTS) else None


def conv_act(conv: nn.Module, act: nn.Module | Act, x: Tensor) -> Tensor:
    """``act(conv(x))``."""
    spec = _activation(act)
    if spec is not None and bare(conv, CONVS):
        return fast.conv2d_forward(conv, x, *spec)
    return activate(act, conv(x))


def conv_pool_act(
    conv: nn.Module,
    act: nn.Module | Act,
    x: Tensor,
    pool: nn.Module | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Tensor:
    """``act(pool(conv(x)))``; ``pool`` None is max_pool2d of ``args`` and ``kwargs``.

    Where a kernel takes the activation into the convolution relu goes before the pool: the maximum commutes
    with it. Values, NaN and gradients are the same: a window without a positive value gets no gradient either
    way. Where none does, the smaller pooled image is the better place for it.
    """
    spec = _activation(act)
    if (out := _conv_max_pool(conv, spec, x, pool, args, kwargs)) is not None:
        return out
    commutes = pool is None or (bare(pool, POOLS) and not pool.return_indices)
    commutes = commutes and backends.serves("conv2d", x.device, x.dtype)
    if spec is not None and spec[0] == "relu" and commutes and bare(conv, CONVS):
        return _pool(pool, fast.conv2d_forward(conv, x, *spec), args, kwargs)
    return activate(act, _pool(pool, conv(x), args, kwargs))


def conv_act_pool(
    conv: nn.Module,
    act: nn.Module | Act,
    x: Tensor,
    pool: nn.Module | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Tensor:
    """``pool(act(conv(x)))``: relu commutes with the maximum, and nothing else is served as one."""
    spec = _activation(act)
    out = None
    if spec is not None and spec[0] == "relu":
        out = _conv_max_pool(conv, spec, x, pool, args, kwargs)
    return _pool(pool, conv_act(conv, act, x), args, kwargs) if out is None else out


def _conv_max_pool(
    conv: nn.Module,
    spec: Act | None,
    x: Tensor,
    pool: nn.Module | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Tensor | None:
    """All three by one function, or None where that is not for them."""
    window = plain_pool(pool, args, kwargs)
    if spec is None or window is None or (pool is not None and not bare(pool, POOLS)):
        return None
    if not bare(conv, CONVS) or conv.padding_mode != "zeros":
        return None
    if not backends.serves("conv2d", x.device, x.dtype):
        return None
    options = {"activation": spec[0], "activation_param": spec[1]}
    options |= {"pool_kernel_size": window[0], "pool_stride": window[1]}
    own = conv.stride, conv.padding, conv.dilation, conv.groups
    return functional.conv2d_max_pool2d(x, conv.weight, conv.bias, *own, **options)


def function_act(name: str, act: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """``act`` of our function of that name, which takes it along where kernels have one like it."""
    spec = _activation(act)
    function = getattr(functional, name)
    if spec is None:
        return act(function(*args, **kwargs))
    return function(*args, **kwargs, activation=spec[0], activation_param=spec[1])


def norm_act(norm: nn.Module, act: nn.Module | Act, x: Tensor) -> Tensor:
    """``act(norm(x))``."""
    spec = _activation(act)
    if spec is not None and bare(norm, NORMS):
        return fast.batch_norm_forward(norm, x, None, *spec)
    return activate(act, norm(x))


def norm_add_act(
    norm: nn.Module, act: nn.Module | Act | None, x: Tensor, residual: Tensor, add_in_place: bool
) -> Tensor:
    """``act(norm(x) + residual)``; without an activation for None."""
    spec = (None, None) if act is None else _activation(act)
    if spec is not None and bare(norm, NORMS) and alike(x, residual):
        return fast.batch_norm_forward(norm, x, residual, *spec)
    out = norm(x)
    out = out.add_(residual) if add_in_place else out + residual
    return out if act is None else activate(act, out)


def affine_grid_sample(
    theta: Tensor, size: Any, align_corners: bool | None, input: Tensor, mode: str, padding_mode: str
) -> Tensor:
    """``grid_sample(input, affine_grid(theta, size))``."""
    if len(size) == 4 and input.dim() == 4:
        return functional.affine_grid_sample(input, theta, size, mode, padding_mode, align_corners)
    grid = F.affine_grid(theta, size, align_corners)
    return F.grid_sample(input, grid, mode, padding_mode, align_corners)


def log_softmax_nll(
    softmax: nn.Module | int, loss: nn.Module | None, x: Tensor, target: Tensor, options: dict[str, Any]
) -> Tensor:
    """``loss(softmax(x), target)``: the modules, or the dimension and the options of the functions."""
    dim = softmax if isinstance(softmax, int) else softmax.dim if bare(softmax, (nn.LogSoftmax,)) else None
    if (
        (loss is None or bare(loss, (nn.NLLLoss,)))
        and (dim == 1 or (dim == -1 and x.dim() == 2))
        and x.dim() >= 2
        and not target.is_floating_point()
    ):
        if loss is not None:
            options = {"weight": loss.weight, "ignore_index": loss.ignore_index, "reduction": loss.reduction}
        return functional.cross_entropy(x, target, **options)
    out = F.log_softmax(x, softmax) if isinstance(softmax, int) else softmax(x)
    return F.nll_loss(out, target, **options) if loss is None else loss(out, target)


def _pool(pool: nn.Module | None, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return functional.max_pool2d(x, *args, **kwargs) if pool is None else pool(x)


def plain_pool(
    pool: nn.Module | None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, Any] | None:
    """Kernel size and stride of a pool without padding, dilation or ceil_mode; None for any other."""
    if pool is None:
        names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
        given = dict(zip(names, args, strict=False)) | kwargs
    else:
        names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
        given = {name: getattr(pool, name, None) for name in names}
    plain = all(not given.get(name) for name in ("padding", "ceil_mode", "return_indices"))
    if not plain or given.get("dilation", 1) != 1 or "kernel_size" not in given:
        return None
    return given["kernel_size"], given.get("stride") or None


def activate(act: nn.Module | Act, x: Tensor) -> Tensor:
    if not isinstance(act, tuple):
        return act(x)
    name, param = act
    return activations.apply(x, name, activations.ACTIVATIONS[name].param if param is None else param)


def alike(x: Tensor, residual: Any) -> bool:
    """Whether a batch norm of x can add the residual: nothing is to be broadcast or converted."""
    return isinstance(residual, Tensor) and x.shape == residual.shape and x.dtype == residual.dtype
