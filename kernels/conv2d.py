"""2-D convolution with bias and activation: implicit GEMM, and direct kernels for depthwise.

    out[n, k, p, q] = act(bias[k] + sum over c, r, s of
                          x[n, c, p * stride - padding + r * dilation, ...] * weight[k, c, r, s])

with the channels split into ``groups``. Both sides are ``[N, C, H, W]``, read and written through their
strides; each tile is laid out so that the axis that is contiguous in memory runs along the threads.

The sums, a ``pixel`` being one of N*H*W positions, a ``tap`` one (r, s), ``x[pixel, tap]`` what the tap
meets there, and ``grad`` the gradient in front of the activation:

    conv2d_gemm.py       out[pixel, k] = sum over (tap, c) of x[pixel, tap, c] * weight[k, c, tap]
                         grad_x[pixel, c] = sum over (tap, k) of grad[pixel, tap, k] * weight[k, c, tap]
    conv2d_wgrad.py      grad_weight[k, (tap, c)] = sum over pixels of grad[pixel, k] * x[pixel, tap, c]
    conv2d_depthwise.py  these three for one channel per group
    conv2d_epilogue.py   grad[pixel, k] = grad_out[pixel, k] * act'(out[pixel, k])
                         grad_bias[k] = sum over pixels of grad[pixel, k]
    conv2d_split_k.py    how sums over pixels are cut into splits and added up
    conv2d_layout.py     where pixels, channels and taps lie in memory

Saved for backward: x, weight and, with an activation, out. Sums are float32; split sums go through
float32 partials that are added in a fixed order, so every result is deterministic.
"""

from __future__ import annotations

import torch

from .conv2d_depthwise import depthwise, depthwise_wgrad, is_depthwise
from .conv2d_epilogue import epilogue_backward
from .conv2d_gemm import gemm
from .conv2d_layout import window_of
from .conv2d_wgrad import wgrad


def forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    *,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    activation: str,
    activation_param: float,
    allow_tf32: bool,
) -> None:
    """Fill ``out`` = act(conv2d(x, weight) + bias).

    x [N, C, H, W], weight [K, C/groups, R, S], bias [K] or None, out [N, K, OH, OW]: one dtype, any strides.
    """
    if out.numel() == 0:
        return
    window = window_of(weight, stride, padding, dilation)
    epilogue = {"activation": activation, "activation_param": activation_param}
    if is_depthwise(x, weight, groups):
        depthwise(x, weight, bias, out, window, transposed=False, **epilogue)
    else:
        gemm(x, weight, bias, out, window, groups, transposed=False, allow_tf32=allow_tf32, **epilogue)


def backward(
    grad_out: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor | None,
    grad_x: torch.Tensor | None,
    grad_weight: torch.Tensor | None,
    grad_bias: torch.Tensor | None,
    *,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    activation: str,
    activation_param: float,
    allow_tf32: bool,
) -> None:
    """Fill those of ``grad_x``, ``grad_weight`` and ``grad_bias`` that are wanted (None: not wanted).

    ``out`` is forward's result with an activation, None without.
    """
    if grad_out.numel() == 0:  # no image: nothing flows back, and sums over nothing are zero
        for wanted in (grad_x, grad_weight, grad_bias):
            if wanted is not None:
                wanted.zero_()
        return

    grad, grad_pre = grad_out, None  # grad: what reaches the pre-activation
    if activation and (grad_x is not None or grad_weight is not None):
        grad = grad_pre = torch.empty_strided(out.shape, out.stride(), dtype=out.dtype, device=out.device)
    if grad_pre is not None or grad_bias is not None:
        saved = out if activation else None
        epilogue_backward(grad_out, saved, grad_pre, grad_bias, activation, activation_param)

    window = window_of(weight, stride, padding, dilation)
    direct = is_depthwise(x, weight, groups)
    if grad_x is not None and direct:
        depthwise(grad, weight, None, grad_x, window, transposed=True)
    elif grad_x is not None:
        gemm(grad, weight, None, grad_x, window, groups, transposed=True, allow_tf32=allow_tf32)

    if grad_weight is not None:
        dense = grad_weight
        if not (dense.is_contiguous() or dense.is_contiguous(memory_format=torch.channels_last)):
            dense = torch.empty_like(dense, memory_format=torch.contiguous_format)
        if direct:
            depthwise_wgrad(grad, x, dense, window)
        else:
            wgrad(grad, x, dense, window, groups, allow_tf32=allow_tf32)
        if dense is not grad_weight:
            grad_weight.copy_(dense)
