"""What the ops that sample an image share: modes, sizes, and what has no kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _common
from ._common import autocast_dtype, complaint

MODES = ("bilinear", "nearest", "bicubic")
PADDING_MODES = ("zeros", "border", "reflection")


def check_modes(op: str, mode: str, padding_mode: str) -> None:
    """Refuse a mode or padding mode that grid_sample has not.

    Raises:
        ValueError: as grid_sample.
    """
    for name, value, known in (("mode", mode, MODES), ("padding_mode", padding_mode, PADDING_MODES)):
        if value not in known:
            raise ValueError(complaint(op, f"{name} to be one of {', '.join(known)}", repr(value)))


def check_sizes(op: str, input: Tensor, warps: str, n: int, size: Sequence[int]) -> None:
    """Refuse sizes that do not fit: ``n`` is how many samples the argument called ``warps`` has.

    Raises:
        ValueError, RuntimeError: as affine_grid and grid_sample.
    """
    if min(size) <= 0:
        raise ValueError(complaint(op, "size to be positive", tuple(size)))
    if n != size[0]:
        raise RuntimeError(complaint(op, f"as many {warps} as size says, {size[0]}", n))
    if input.dim() != len(size) or input.shape[0] not in (1, n):
        expected = f"input of {len(size)} dimensions and batch {n} or 1, like {warps}"
        raise RuntimeError(complaint(op, expected, list(input.shape)))
    if any(extent == 0 for extent in input.shape[2:]):
        raise RuntimeError(complaint(op, "input with a non-empty image", list(input.shape)))


def unsupported(mode: str, input: Tensor, *others: Tensor) -> str | None:
    """Why no kernel samples ``input`` so; None if nothing stands against it."""
    if input.dim() != 4:
        return "volumes have no kernel"
    if mode == "bicubic":
        return "mode 'bicubic' has no kernel"
    return _common.unsupported(input, *others)


def output_dtype(input: Tensor) -> torch.dtype:
    """Autocast's policy for grid_sampler is float32; kernels read any dtype, so only the output changes."""
    return torch.float32 if autocast_dtype(input) and input.dtype != torch.float64 else input.dtype
