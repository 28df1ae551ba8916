"""Drop-in functions: torch.nn.functional's names, argument order, defaults and exceptions.

What fastdl adds (``activation=``, ``residual=``) is keyword-only. Every function takes any device and dtype
that torch's namesake takes: what no kernel covers is served by the plain torch reference
(``fastdl.explain`` and ``fastdl.backends.record`` tell which). All are differentiable; second derivatives
are computed through the reference. Tensor subclasses, torch.fx and torch function modes see these functions
as they see torch's (``__torch_function__``).

Activations: "relu", "leaky_relu" (``activation_param``: negative_slope, default 0.01), "elu"
(``activation_param``: alpha, default 1.0), "sigmoid", "tanh", "softplus" (beta 1, threshold 20).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from .ops import affine_grid_sample as _affine_grid_sample
from .ops import batch_norm as _batch_norm
from .ops import conv2d as _conv2d
from .ops import conv2d_max_pool2d as _conv2d_max_pool2d
from .ops import cross_entropy as _cross_entropy
from .ops import max_pool2d as _max_pool2d
from .ops import tps_grid_sample as _tps_grid_sample

__all__ = [
    "affine_grid",
    "affine_grid_sample",
    "batch_norm",
    "conv2d",
    "conv2d_max_pool2d",
    "cross_entropy",
    "grid_sample",
    "max_pool2d",
    "tps_grid_sample",
]

#: Passed through to torch: apart, the two need the grid in memory. ``affine_grid_sample`` does not, and
#: ``fastdl.convert`` puts it in where one feeds the other.
affine_grid = F.affine_grid
grid_sample = F.grid_sample


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    activation: str | None = None,
    activation_param: float | None = None,
) -> Tensor:
    r"""2-D convolution with bias and activation in one pass.

    .. math:: out = act(input \star weight + bias)

    Args:
        input: ``[N, C, H, W]`` or ``[C, H, W]``, any strides. Kernels: float32, float16, bfloat16; anything
            else by the reference.
        weight: ``[K, C / groups, R, S]`` of the same dtype.
        bias: ``[K]`` or None.
        stride, dilation: an int or (height, width).
        padding: zeros on each side: an int, (height, width), "valid" or "same".
        groups: divides C and K; groups = C is a depthwise convolution.
        activation: None or a name from the table above.
        activation_param: its parameter; None means torch's default.

    Returns:
        ``[N, K, OH, OW]`` (``[K, OH, OW]``), channels_last if input or weight is. Under autocast in its
        lower precision.

    Gradients: input, weight, bias; any order (second and later through the reference).

    Raises:
        TypeError, RuntimeError: as torch.nn.functional.conv2d.
        ValueError: for an unknown activation or a parameter out of its range.

    Differs from torch: float32 on a GPU follows ``torch.backends.cudnn.conv.fp32_precision``.
    Source: torch.nn.functional.conv2d.
    """
    if has_torch_function((input, weight, bias)):
        return handle_torch_function(
            conv2d,
            (input, weight, bias),
            input,
            weight,
            bias,
            stride,
            padding,
            dilation,
            groups,
            activation=activation,
            activation_param=activation_param,
        )
    return _conv2d.conv2d(
        input, weight, bias, stride, padding, dilation, groups, activation, activation_param
    )


def conv2d_max_pool2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    activation: str | None = None,
    activation_param: float | None = None,
    pool_kernel_size: int | Sequence[int] = 2,
    pool_stride: int | Sequence[int] | None = None,
) -> Tensor:
    r"""2-D convolution, maximum over windows and activation, in one kernel where there is one for it.

    .. math:: out = act(max\_pool(input \star weight + bias))

    That is for few input channels, as in the first layer of a network: on a CPU in float32 with windows of
    2x2 and stride 2, by CUDA with windows of 2x2 or 3x3 and up to 32 channels per group. Else conv2d and
    max_pool2d are called; under torch.compile always.

    Args:
        input, weight, bias, stride, padding, dilation, groups: as for conv2d.
        activation, activation_param: see the table above; behind the pool. relu commutes with it.
        pool_kernel_size, pool_stride: an int or (height, width); pool_stride None means pool_kernel_size.

    Returns:
        ``[N, K, PH, PW]`` (``[K, PH, PW]``), channels_last if input or weight is.

    Gradients: input, weight, bias; any order (second and later through the reference).

    Raises:
        TypeError, RuntimeError, ValueError: as conv2d and max_pool2d.

    Differs from torch: torch has no such function.
    """
    if has_torch_function((input, weight, bias)):
        return handle_torch_function(
            conv2d_max_pool2d,
            (input, weight, bias),
            input,
            weight,
            bias,
            stride,
            padding,
            dilation,
            groups,
            activation=activation,
            activation_param=activation_param,
            pool_kernel_size=pool_kernel_size,
            pool_stride=pool_stride,
        )
    return _conv2d_max_pool2d.conv2d_max_pool2d(
        input,
        weight,
        bias,
        stride,
        padding,
        dilation,
        groups,
        activation,
        activation_param,
        pool_kernel_size,
        pool_stride,
    )


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    activation: str | None = None,
    activation_param: float | None = None,
) -> Tensor:
    r"""Batch normalisation, the addition behind it and the activation behind that, in one pass.

    .. math:: out = act((input - mean) / \sqrt{var + eps} \cdot weight + bias + residual)

    Args:
        input: ``[N, C]`` to ``[N, C, D, H, W]``, contiguous or channels_last; another layout is copied first.
        running_mean, running_var: ``[C]``, updated in place when training (the variance unbiased), read
            otherwise; None when training without running statistics.
        weight, bias: ``[C]`` or None, in float32 or the dtype of input.
        training: normalise by the batch's statistics (float32 sums) instead of the running ones.
        momentum: share of the new statistics in the running ones.
        eps: added to the variance.
        residual: of the shape and dtype of input, added before the activation.
        activation, activation_param: see the table above.

    Returns:
        Like input in shape, dtype and memory format.

    Gradients: input, weight, bias, residual, in training and evaluation; any order (second and later
    through the reference).

    Raises:
        ValueError, RuntimeError, TypeError, IndexError: as torch.nn.functional.batch_norm, with the running
            statistics untouched.

    Differs from torch: a parameter for which the derivative of the activation cannot be told from the output
    (a negative slope, an alpha that is not positive) raises ValueError.
    Source: Ioffe and Szegedy, 2015 (arXiv:1502.03167); torch.nn.functional.batch_norm.
    """
    if has_torch_function((input, running_mean, running_var, weight, bias, residual)):
        return handle_torch_function(
            batch_norm,
            (input, running_mean, running_var, weight, bias, residual),
            input,
            running_mean,
            running_var,
            weight,
            bias,
            training,
            momentum,
            eps,
            residual=residual,
            activation=activation,
            activation_param=activation_param,
        )
    return _batch_norm.batch_norm(
        input,
        running_mean,
        running_var,
        weight,
        bias,
        training,
        momentum,
        eps,
        residual,
        activation,
        activation_param,
    )


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    gradient_in_forward: bool = False,
    inplace: bool = False,
) -> Tensor:
    r"""Softmax cross-entropy of logits.

    .. math:: loss_n = -\sum_c weight_c \, p_{n,c} \log \mathrm{softmax}(input_n)_c

    Args:
        input: logits ``[C]``, ``[N, C]`` or ``[N, C, d1, ...]``, any strides; written to only if ``inplace``.
        target: class indices (int64 or uint8) of input's shape without C, or probabilities of input's shape.
        weight: ``[C]`` or None.
        size_average, reduce: deprecated in torch; override reduction.
        ignore_index: target value whose rows count nothing.
        reduction: "mean" (over the weights of the targets), "sum" or "none".
        label_smoothing: share of the uniform distribution mixed into the target, in [0, 1].
        gradient_in_forward: compute the gradient with the loss, while the logits are in the cache, and keep
            it instead of reading the logits from memory again. One backward pass only, without create_graph.
            Ignored where the logits are few, input requires no gradient, for float16 (a loss scale would come
            too late), under torch.compile and where the reference serves.
        inplace: with gradient_in_forward, into the memory of ``input``, which is garbage afterwards: the loss
            of a large batch with many classes needs no memory beside its logits.

    Returns:
        A scalar, or for "none" the loss per row. In the dtype of input; float32 under autocast.

    Gradients: input, any order (second and later through the reference); target and weight through the
    reference.

    Raises:
        ValueError, RuntimeError, TypeError: as torch.nn.functional.cross_entropy.
        ValueError: gradient_in_forward with reduction "none"; inplace without gradient_in_forward.
        RuntimeError: inplace on a leaf or on overlapping memory; a second backward pass or create_graph after
            gradient_in_forward.
        IndexError: a target outside [0, C), on the CPU, and on a GPU if ``FASTDL_CHECK=1`` was set.

    Differs from torch: on a GPU a target out of range gives a NaN loss and a NaN gradient for its row, where
    torch kills the CUDA context; the gradient of an ignored row is 0 even if its logits are NaN.
    Source: torch.nn.functional.cross_entropy.
    """
    if has_torch_function((input, target, weight)):
        return handle_torch_function(
            cross_entropy,
            (input, target, weight),
            input,
            target,
            weight,
            size_average,
            ignore_index,
            reduce,
            reduction,
            label_smoothing,
            gradient_in_forward=gradient_in_forward,
            inplace=inplace,
        )
    reduction = _cross_entropy.legacy_reduction(size_average, reduce, reduction)
    return _cross_entropy.cross_entropy(
        input, target, weight, ignore_index, reduction, label_smoothing, gradient_in_forward, inplace
    )


@overload
def max_pool2d(
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = ...,
    padding: int | Sequence[int] = ...,
    dilation: int | Sequence[int] = ...,
    ceil_mode: bool = ...,
    return_indices: Literal[False] = ...,
) -> Tensor: ...


@overload
def max_pool2d(
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None,
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
    ceil_mode: bool,
    return_indices: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def max_pool2d(
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Maximum over windows.

    .. math:: out_{oh,ow} = \max_{i,j} input_{oh \cdot s - p + i \cdot d,\; ow \cdot s - p + j \cdot d}

    NaN wins its window; among equal maxima the first one gets the gradient. One byte per output is saved for
    backward (two or four where a window has more than 256 cells), which gathers without atomics and is
    deterministic.

    Args:
        input: ``[N, C, H, W]`` or ``[C, H, W]``, any strides.
        kernel_size, stride, padding, dilation: an int or (height, width); stride None means kernel_size;
            padding at most half of kernel_size.
        ceil_mode: count windows that start inside the input even if they end outside.
        return_indices: also return where in the ``H * W`` plane each maximum was.

    Returns:
        ``[N, C, OH, OW]`` (``[C, OH, OW]``) in the memory format of input, and the int64 indices if asked.

    Gradients: input; any order.

    Raises:
        TypeError, RuntimeError: as torch.nn.functional.max_pool2d.

    Differs from torch: a window wholly outside the input (padding with dilation above the input's size) has
    an index outside the plane, as in torch; here it gives no gradient, and a second derivative raises.
    Source: torch.nn.functional.max_pool2d.
    """
    if has_torch_function((input,)):
        return handle_torch_function(
            max_pool2d, (input,), input, kernel_size, stride, padding, dilation, ceil_mode, return_indices
        )
    return _max_pool2d.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def affine_grid_sample(
    input: Tensor,
    theta: Tensor,
    size: Sequence[int],
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool | None = None,
) -> Tensor:
    r"""Sample input at affinely transformed positions: grid_sample(input, affine_grid(theta, size)).

    .. math:: out_{n,c}(x_{out}) = input_{n,c}(\theta_n \cdot (x_{out}, y_{out}, 1)^T)

    in normalised coordinates, -1 to 1 across the image. The grid is never in memory; the gradient for input
    is gathered without atomics and is deterministic.

    Args:
        input: ``[N, C, H, W]`` or ``[1, C, H, W]`` (one image for all thetas), any strides. Volumes
            (``[N, C, D, H, W]`` with theta ``[N, 3, 4]``) by the reference.
        theta: ``[N, 2, 3]``, any floating dtype whatever that of input.
        size: of the output, ``(N, C, OH, OW)`` as for affine_grid; its C is not read.
        mode: "bilinear", "nearest"; "bicubic" by the reference.
        padding_mode: what lies outside: "zeros", "border" or "reflection".
        align_corners: whether -1 and 1 are the centres (True) or the outer edges (False) of corner pixels.

    Returns:
        ``[N, C, OH, OW]`` contiguous, in the dtype of input; float32 under autocast.

    Gradients: input and theta; any order that grid_sample supports. If input needs none, none is computed.

    Raises:
        TypeError, ValueError, RuntimeError, NotImplementedError: as affine_grid and grid_sample.

    Differs from torch: coordinates are computed in float32 also for a theta or input in half precision and
    under autocast, where torch rounds the grid to half precision; align_corners None does not warn.
    Source: Jaderberg et al., 2015 (arXiv:1506.02025); torch.nn.functional.affine_grid and grid_sample.
    """
    if has_torch_function((input, theta)):
        return handle_torch_function(
            affine_grid_sample, (input, theta), input, theta, size, mode, padding_mode, align_corners
        )
    return _affine_grid_sample.affine_grid_sample(input, theta, size, mode, padding_mode, align_corners)


def tps_grid_sample(
    input: Tensor,
    points: Tensor,
    size: Sequence[int],
    control_points: Tensor | None = None,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool | None = None,
) -> Tensor:
    r"""Sample input through a thin-plate spline, the smoothest map that takes control points to given ones.

    .. math:: out_{n,c}(p) = input_{n,c}(A_n (p, 1)^T + \sum_k w_{n,k} U(|p - control_k|)), \quad
        U(r) = r^2 \log r^2

    in normalised coordinates, -1 to 1 across the image, with A and w such that control point k is sampled at
    points[n, k]. The grid is never in memory; gradients are deterministic.

    Args:
        input: ``[N, C, H, W]`` or ``[1, C, H, W]`` (one image for all splines), any strides.
        points: ``[N, K, 2]``, x and y of where in input each control point is sampled; any floating dtype
            whatever that of input.
        size: of the output, ``(N, C, OH, OW)`` as for affine_grid; its C is not read.
        control_points: ``[K, 2]``, x and y in the output, not all on one line; None: a regular square grid
            from -1 to 1, row by row.
        mode: "bilinear", "nearest"; "bicubic" by the reference.
        padding_mode: what lies outside: "zeros", "border" or "reflection".
        align_corners: whether -1 and 1 are the centres (True) or the outer edges (False) of corner pixels.

    Returns:
        ``[N, C, OH, OW]`` contiguous, in the dtype of input; float32 under autocast.

    Gradients: input and points; any order that grid_sample supports; control_points through the reference.
    If input needs none, none is computed.

    Raises:
        TypeError, ValueError, RuntimeError, NotImplementedError: as affine_grid_sample.
        ValueError, torch.linalg.LinAlgError: on a CPU, if control points lie on one line or coincide; on a
            GPU, where that is not looked for, the output means nothing then.

    Differs from torch: torch has no such function. Coordinates are computed in float32 also for points or
    input in half precision and under autocast.
    Source: Bookstein, 1989 (doi:10.1109/34.24792); Rocco et al., 2017 (arXiv:1703.05593).
    """
    if has_torch_function((input, points, control_points)):
        return handle_torch_function(
            tps_grid_sample,
            (input, points, control_points),
            input,
            points,
            size,
            control_points,
            mode,
            padding_mode,
            align_corners,
        )
    return _tps_grid_sample.tps_grid_sample(
        input, points, size, control_points, mode, padding_mode, align_corners
    )
