"""conv2d by the kernel library and torch's own convolution: which of the two serves what.

    direct      the library's own kernels, for what it says it covers: few channels and depthwise, where
                torch's convolutions (oneDNN, cuDNN) are weak
    composed    torch's convolution, then bias and activation in one pass in place; before its gradients one
                pass that makes the gradient of the pre-activation and the bias's gradient

oneDNN has a fused relu (``torch.ops.mkldnn._convolution_pointwise``), but it turns NaN into 0: a network that
diverges would not show it. The pass in place reads and writes what the convolution has just left in the
cache.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def direct(
    library: Any,
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    channels_last: bool,
) -> bool:
    """Whether the library's own kernels would serve the forward pass; ``channels_last``: of the output."""
    spatial = [
        (x.shape[2 + i] + 2 * padding[i] - dilation[i] * (weight.shape[2 + i] - 1) - 1) // stride[i] + 1
        for i in (0, 1)
    ]
    format = torch.channels_last if channels_last else torch.contiguous_format
    # no memory: what it would take and give back moves the heap under the next allocation
    shape = (x.shape[0], weight.shape[0], *spatial)
    out = torch.empty(shape, dtype=x.dtype, memory_format=format, device="meta")
    return library.conv2d_forward_covers(
        x, weight, None, out, stride=stride, padding=padding, dilation=dilation, groups=groups, activation="",
        activation_param=0.0,
    )  # fmt: skip


def forward(
    library: Any,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    *,
    activation: str,
    activation_param: float,
    allow_tf32: bool,  # torch's own convolutions read their setting themselves
    **window: Any,
) -> None:
    """Fill ``out`` [N, K, OH, OW] = act(conv2d(x, weight) + bias).

    ``window``: stride, padding, dilation, groups.
    """
    epilogue = {"activation": activation, "activation_param": activation_param}
    if out.numel() == 0:
        return
    if library.conv2d_forward_covers(x, weight, bias, out, **window, **epilogue):
        library.conv2d_forward(x, weight, bias, out, **window, **epilogue)
        return
    in_library = bias if _bias_is_free(x) else None
    result = torch.convolution(x, weight, in_library, *_positional(window))
    if result.stride() != out.stride():  # the epilogue takes dense tensors
        result = out.copy_(result)
    bias = None if in_library is not None else bias
    if activation or bias is not None:
        library.conv2d_epilogue(result, bias, **epilogue)
    if result is not out:
        out.set_(result)


def backward(
    library: Any,
    grad_out: Tensor,
    x: Tensor,
    weight: Tensor,
    out: Tensor | None,
    grad_x: Tensor | None,
    grad_weight: Tensor | None,
    grad_bias: Tensor | None,
    *,
    activation: str,
    activation_param: float,
    allow_tf32: bool,
    **window: Any,
) -> None:
    """Fill those of the gradients that are wanted (None: not); ``out``: forward's, with an activation."""
    if grad_out.numel() == 0:  # no image: sums over nothing
        for wanted in (grad_x, grad_weight, grad_bias):
            if wanted is not None:
                wanted.zero_()
        return

    grad, grad_pre = grad_out, None  # grad: what reaches the pre-activation
    if activation and (grad_x is not None or grad_weight is not None):
        grad = grad_pre = torch.empty_strided(out.shape, out.stride(), dtype=out.dtype, device=out.device)
    if grad_pre is not None or grad_bias is not None:
        library.conv2d_epilogue_backward(
            grad_out,
            out if activation else None,
            grad_pre,
            grad_bias,
            activation=activation,
            activation_param=activation_param,
        )

    if grad_x is not None and library.conv2d_backward_covers(grad, x, weight, grad_x, None, **window):
        library.conv2d_backward(grad, x, weight, grad_x, None, **window)
        grad_x = None
    if grad_weight is not None and library.conv2d_backward_covers(
        grad, x, weight, None, grad_weight, **window
    ):
        library.conv2d_backward(grad, x, weight, None, grad_weight, **window)
        grad_weight = None
    if grad_x is None and grad_weight is None:
        return
    wanted = [grad_x is not None, grad_weight is not None, False]
    found = torch.ops.aten.convolution_backward.default(grad, x, weight, None, *_positional(window), wanted)
    for gradient, result in ((grad_x, found[0]), (grad_weight, found[1])):
        if gradient is not None:
            _hand_over(gradient, result)


def _bias_is_free(x: Tensor) -> bool:
    """In torch's convolution: oneDNN adds it before it rounds; on CUDA torch does so in a pass behind it."""
    return x.device.type == "cpu"


def _positional(window: dict[str, Any]) -> tuple[Any, ...]:
    """As torch's convolutions take it: stride, padding, dilation, transposed, output padding, groups."""
    return window["stride"], window["padding"], window["dilation"], False, (0, 0), window["groups"]


def _hand_over(out: Tensor, result: Tensor) -> None:
    """``result`` as ``out``, without a copy where it lies in memory as out should."""
    if result.stride() == out.stride() and result.dtype == out.dtype:
        out.set_(result)
    else:
        out.copy_(result)
