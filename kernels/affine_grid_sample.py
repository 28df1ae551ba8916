"""Affine grid sampling: grid_sample(input, affine_grid(theta)) without the grid.

    out[n, c, h, w] = sample(input[n, c], x, y),    (x, y) = theta[n] @ (xn, yn, 1)

with (xn, yn) the normalised centre of output pixel (w, h); input is [N or 1, C, IH, IW], theta [N, 2, 3]
and out [N, C, OH, OW], of any strides and float dtypes. With weight(p, q) that of input pixel p in the
sample of output pixel q, and (ix, iy) the sampled point in pixels of the input:

    affine_grid_sample_forward.py      out[q] = sum over p of weight(p, q) input[p]
    affine_grid_sample_grad_input.py   grad_input[p] = sum over q of weight(p, q) grad_out[q]
    affine_grid_sample_grad_theta.py   grad_theta = sum over q and c of grad_out[q] d out[q] / d theta
    affine_grid_sample_coordinates.py  (ix, iy) of q
    sampling_*.py                      padding, the pixels around it, tiles of pixels and channels

Nothing is saved: backward recomputes the coordinates from theta. It is deterministic, with no atomics.

Non-finite coordinates, as torch's CPU kernel: zeros gives NaN (nearest: 0), border and reflection the edge.
Such samples contribute nothing to grad_input with zeros, and to the pixels at the edge with the other two.
"""

import torch

from .affine_grid_sample_forward import sample
from .affine_grid_sample_grad_input import gather_grad_input
from .affine_grid_sample_grad_theta import sum_grad_theta


def forward(
    input: torch.Tensor,
    theta: torch.Tensor,
    out: torch.Tensor,
    *,
    mode: str,
    padding_mode: str,
    align_corners: bool,
) -> None:
    """Fill ``out`` [N, C, OH, OW] from ``input`` [N or 1, C, IH, IW] and ``theta`` [N, 2, 3]."""
    if out.numel():
        sample(input, theta.contiguous(), out, mode, padding_mode, align_corners)


def backward(
    grad_out: torch.Tensor,
    input: torch.Tensor,
    theta: torch.Tensor,
    grad_input: torch.Tensor | None,
    grad_theta: torch.Tensor | None,
    *,
    mode: str,
    padding_mode: str,
    align_corners: bool,
) -> None:
    """Fill ``grad_input`` and ``grad_theta`` (each skipped if None), deterministically."""
    theta = theta.contiguous()
    if grad_input is not None and grad_input.numel():
        gather_grad_input(grad_out, theta, grad_input, mode, padding_mode, align_corners)
    if grad_theta is not None:
        if mode == "nearest" or grad_out.numel() == 0:
            grad_theta.zero_()
        else:
            sum_grad_theta(grad_out, input, theta, grad_theta, padding_mode, align_corners)
