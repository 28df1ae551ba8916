"""Thin-plate spline sampling: grid_sample(input, grid) with a spline per sample in place of the grid.

    out[n, c, h, w] = sample(input[n, c], x, y)
    (x, y) = theta[n, :, :3] @ (xn, yn, 1) + sum over k of theta[n, :, 3 + k] U(|(xn, yn) - control k|)

with (xn, yn) the normalised centre of output pixel (w, h) and U(r) = r^2 log r^2. Of any strides and float
dtypes are input [N or 1, C, IH, IW] and out [N, C, OH, OW]; theta [N, 2, 3 + K] and the control points [K, 2]
are float32. With weight(p, q) that of input pixel p in the sample of output pixel q, and (ix, iy) the sampled
point in pixels of the input:

    tps_grid_sample_forward.py      out[q] = sum over p of weight(p, q) input[p]
    tps_grid_sample_grad_input.py   grad_input[p] = sum over q of weight(p, q) grad_out[q]
    tps_grid_sample_grad_theta.py   grad_theta = sum over q and c of grad_out[q] d out[q] / d theta
    tps_grid_sample_coordinates.py  (ix, iy) of q
    sampling_*.py                   padding, the pixels around it, tiles of pixels and channels

Nothing is saved: backward recomputes the coordinates from theta. It is deterministic, with no atomics.
Non-finite coordinates are treated as in affine_grid_sample.
"""

import torch

from .tps_grid_sample_forward import sample
from .tps_grid_sample_grad_input import gather_grad_input
from .tps_grid_sample_grad_theta import sum_grad_theta


def forward(
    input: torch.Tensor,
    theta: torch.Tensor,
    control_points: torch.Tensor,
    out: torch.Tensor,
    *,
    mode: str,
    padding_mode: str,
    align_corners: bool,
) -> None:
    """Fill ``out`` [N, C, OH, OW] from ``input``, ``theta`` and ``control_points``."""
    if out.numel():
        theta, controls = theta.contiguous(), control_points.contiguous()
        sample(input, theta, controls, out, mode, padding_mode, align_corners)


def backward(
    grad_out: torch.Tensor,
    input: torch.Tensor,
    theta: torch.Tensor,
    control_points: torch.Tensor,
    grad_input: torch.Tensor | None,
    grad_theta: torch.Tensor | None,
    *,
    mode: str,
    padding_mode: str,
    align_corners: bool,
) -> None:
    """Fill ``grad_input`` and ``grad_theta`` (each skipped if None; contiguous), deterministically."""
    theta, controls = theta.contiguous(), control_points.contiguous()
    if grad_input is not None and grad_input.numel():
        gather_grad_input(grad_out, theta, controls, grad_input, mode, padding_mode, align_corners)
    if grad_theta is not None:
        if mode == "nearest" or grad_out.numel() == 0:
            grad_theta.zero_()
        else:
            sum_grad_theta(grad_out, input, theta, controls, grad_theta, padding_mode, align_corners)
