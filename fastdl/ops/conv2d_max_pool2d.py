"""act(max_pool2d(conv2d(input))): one kernel where a library of csrc/ has it, else the two ops.

Not an op of its own but a way to serve two: their backend is chosen as ever, their kernels give gradients.
Saved for backward: input, weight, the pooled output and the winners, a byte each; nothing in between.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import activations, backends, native, reference
from . import conv2d as _conv2d
from . import max_pool2d as _max_pool2d
from ._common import (
    PLAIN,
    autocast_dtype,
    differentiate,
    is_channels_last,
    needs_grad,
    pair,
    short_way,
    unsupported,
    wanted,
)

OP = "conv2d_max_pool2d"
Pair = tuple[int, int]


def conv2d_max_pool2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    activation: str | None,
    activation_param: float | None,
    pool_kernel_size: Any,
    pool_stride: Any,
) -> Tensor:
    """``fastdl.functional.conv2d_max_pool2d`` after its defaults."""
    name, param = activations.resolve(OP, activation, activation_param)
    pool = pair(OP, "pool_kernel_size", pool_kernel_size)
    pool = pool, (pool if pool_stride is None else pair(OP, "pool_stride", pool_stride))
    args = (weight, bias, stride, padding, dilation, groups, name, param)
    fused = short_way(OP, input, *args, *pool)
    if fused is None:
        fused = _fused(input, *args, pool)
    if isinstance(fused, Tensor):
        return fused
    early = name == "relu"  # commutes with the maximum, and the convolution has it for nothing
    act = (name, None) if early else (None, None)
    out = _conv2d.conv2d(input, weight, bias, stride, padding, dilation, groups, *act)
    out = _max_pool2d.max_pool2d(out, *pool, 0, 1, False, False)
    return out if early else activations.apply(out, name, param)


class Call(NamedTuple):
    """What a fused call is given."""

    x: Tensor  # [N, C, H, W]
    weight: Tensor  # [K, C / groups, R, S]
    bias: Tensor | None  # [K]
    window: tuple[Pair, Pair, Pair, int]  # stride, padding, dilation, groups
    activation: tuple[str, float]
    pool: tuple[Pair, Pair]  # kernel size, stride
    backend: str


def _fused(
    x: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    name: str,
    param: float,
    pool: tuple[Pair, Pair],
) -> Tensor | None:
    """The result if a kernel covers it; the two ops know what to do with all else, errors included."""
    tensors = [x, weight] if bias is None else [x, weight, bias]
    if torch.compiler.is_compiling() or isinstance(padding, str):
        return None
    if any(type(t) not in PLAIN or t.numel() == 0 for t in tensors):
        return None
    alike = all(t.dtype == x.dtype and t.device == x.device for t in tensors)
    if not alike or x.dim() != 4 or autocast_dtype(x) is not None or unsupported(*tensors):
        return None
    stride, padding = pair(OP, "stride", stride), pair(OP, "padding", padding)
    dilation = pair(OP, "dilation", dilation)
    valid = (
        weight.dim() == 4
        and type(groups) is int
        and groups > 0
        and min(*stride, *dilation, *pool[0], *pool[1]) > 0
    )
    if not valid or min(padding) < 0 or weight.shape[0] % groups or x.shape[1] != weight.shape[1] * groups:
        return None
    if bias is not None and bias.shape != weight.shape[:1]:
        return None
    choice = backends.serving(OP, x.device, x.dtype, (x, weight))
    if choice.backend not in ("cpu", "cuda"):
        return None
    window = (stride, padding, dilation, groups)
    call = Call(x, weight, bias, window, (name, param), pool, choice.backend)
    out, offsets = _allocate(call)
    if out.numel() == 0 or not _library(call).conv2d_max_pool2d_covers(
        *_tensors(call, out, offsets), **_options(call)
    ):
        return None
    for op in ("conv2d", "max_pool2d"):
        backends.note(choice._replace(op=op))
    if needs_grad(*tensors):
        return _Conv2dMaxPool2d.apply(*call)
    _library(call).conv2d_max_pool2d(*_tensors(call, out, None), **_options(call))
    return out


def _library(call: Call) -> Any:
    return native.library(call.backend)[0]


def _allocate(call: Call) -> tuple[Tensor, Tensor]:
    """out [N, K, PH, PW] and the winners' places in their windows; empty if nothing is to compute."""
    stride, padding, dilation, _ = call.window
    size = []
    for i in (0, 1):
        reach = call.x.shape[2 + i] + 2 * padding[i] - dilation[i] * (call.weight.shape[2 + i] - 1) - 1
        rows = reach // stride[i] + 1 if reach >= 0 else 0
        size.append(max((rows - call.pool[0][i]) // call.pool[1][i] + 1, 0))
    last = _conv2d._is_channels_last(call)
    format = torch.channels_last if last else torch.contiguous_format
    out = call.x.new_empty((call.x.shape[0], call.weight.shape[0], *size)).contiguous(memory_format=format)
    return out, torch.empty_like(out, dtype=torch.uint8)


def _tensors(call: Call, out: Tensor, offsets: Tensor | None) -> tuple[Tensor | None, ...]:
    bias = None if call.bias is None else call.bias.contiguous()
    return call.x, call.weight, bias, out, offsets


def _options(call: Call) -> dict[str, Any]:
    names = ("stride", "padding", "dilation", "groups")
    acts = ("activation", "activation_param")
    pools = ("pool_kernel_size", "pool_stride")
    return {
        **dict(zip(names, call.window, strict=True)),
        **dict(zip(acts, call.activation, strict=True)),
        **dict(zip(pools, call.pool, strict=True)),
    }


class _Conv2dMaxPool2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        call = Call(*args)
        out, offsets = _allocate(call)
        _library(call).conv2d_max_pool2d(*_tensors(call, out, offsets), **_options(call))
        ctx.save_for_backward(call.x, call.weight, call.bias, out, offsets)
        ctx.call = call._replace(x=None, weight=None, bias=None)
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, out, offsets = ctx.saved_tensors
        call: Call = ctx.call
        needs = list(ctx.needs_input_grad[:3])
        rest = [None] * (len(Call._fields) - 3)
        if torch.is_grad_enabled():
            options = *call.window, *call.activation, *call.pool
            return *differentiable_backward(grad_out, x, weight, bias, *options), *rest

        # the derivative and the bias's gradient where there is less to read, behind the pool
        name, param = call.activation
        grad_pre = torch.empty_like(out) if name else grad_out
        grad_bias = out.new_empty(weight.shape[0]) if needs[2] else None
        _library(call).conv2d_epilogue_backward(
            grad_out,
            out if name else None,
            grad_pre if name else None,
            grad_bias,
            activation=name,
            activation_param=param,
        )
        if not (needs[0] or needs[1]):
            return None, None, grad_bias, *rest
        reach = [call.window[2][i] * (weight.shape[2 + i] - 1) + 1 for i in (0, 1)]
        spatial = [
            (x.shape[2 + i] + 2 * call.window[1][i] - reach[i]) // call.window[0][i] + 1 for i in (0, 1)
        ]
        size = (x.shape[0], weight.shape[0], *spatial)
        last = is_channels_last(x) or is_channels_last(weight)
        grad = _max_pool2d.backward_op(
            grad_pre, offsets, size, last, *call.pool, (0, 0), (1, 1), call.backend
        )
        mask = [needs[0], needs[1], False]
        found = _conv2d.backward_op(grad, x, weight, None, *call.window, "", 0.0, mask, call.backend)
        return *map(wanted, found[:2], mask[:2]), grad_bias, *rest


def differentiable_backward(
    grad_out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    activation: str,
    activation_param: float,
    pool_kernel_size: Pair,
    pool_stride: Pair,
) -> list[Tensor | None]:
    """The gradients of x, weight and bias by plain torch, so that they can be differentiated."""
    with reference.no_autocast(x):
        y = reference.conv2d(x, weight, bias, stride, padding, dilation, groups, "", 0.0)
        y = reference.max_pool2d(y, pool_kernel_size, pool_stride, 0, 1, False, False)
        y = activations.apply(y, activation, activation_param)
    return differentiate(y, [x, weight, bias], grad_out)
