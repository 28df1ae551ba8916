"""Where pixels, channels and taps lie: sizes and strides for launchers, tiles for kernels.

An image is a tensor ``[N, C, H, W]`` of any strides. Kernels number its pixels 0 .. N*H*W - 1, and the taps
(r, s) of a weight ``[K, C/groups, R, S]`` 0 .. R*S - 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ._runtime import wide

# ---------------------------------------------------------------------------------- device helpers


@triton.jit
def rows(v, ROWS_FIRST: tl.constexpr):
    """``v`` along the rows of a tile that is held as [rows, columns] or, else, as [columns, rows]."""
    return v[:, None] if ROWS_FIRST else v[None, :]


@triton.jit
def columns(v, ROWS_FIRST: tl.constexpr):
    """``v`` along the columns of such a tile."""
    return v[None, :] if ROWS_FIRST else v[:, None]


@triton.jit
def pixel_at(i, H, W):
    """(n, y, x) of pixel number ``i`` of images of H x W."""
    return i // W // H, i // W % H, i % W


@triton.jit
def within(y, x, H, W):
    """Whether (y, x) lies inside an image, not in its padding."""
    return (y >= 0) & (y < H) & (x >= 0) & (x < W)


# ------------------------------------------------------------------------------------ for launchers

#: The compile-time constants R, S and STRIDE, PAD, DILATION, each ``_H`` and ``_W``, by those names.
Window = dict[str, int]


def window_of(
    weight: torch.Tensor, stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int]
) -> Window:
    """The window of ``weight`` [K, C/groups, R, S]."""
    window = {"R": weight.shape[2], "S": weight.shape[3]}
    for name, (h, w) in {"STRIDE": stride, "PAD": padding, "DILATION": dilation}.items():
        window[f"{name}_H"], window[f"{name}_W"] = h, w
    return window


class Image(NamedTuple):
    """The pixels of a tensor [N, C, H, W]; ``strides`` are those of n, c, y, x."""

    n: int
    h: int
    w: int
    strides: tuple[int, int, int, int]

    @property
    def pixels(self) -> int:
        return self.n * self.h * self.w


def images(*tensors: torch.Tensor) -> list[Image]:
    return [Image(t.shape[0], t.shape[2], t.shape[3], t.stride()) for t in tensors]


def flat_images(*tensors: torch.Tensor) -> list[Image]:
    """Images of one size with their pixels as one axis in all or, where strides ask for it, per n or not."""
    n, _, h, w = tensors[0].shape
    strides = [t.stride() for t in tensors]
    if not all(h == 1 or y == w * x for _, _, y, x in strides):
        return images(*tensors)
    pixels = h * w
    if all(n == 1 or first == pixels * x for first, _, _, x in strides):
        n, pixels = 1, n * pixels
    # stride 0 for the axes that are gone: a multiple of 16 does not stand in the way of wide loads
    return [Image(n, 1, pixels, (first if n > 1 else 0, c, 0, x)) for first, c, _, x in strides]


def window_images(src: torch.Tensor, dst: torch.Tensor, window: Window) -> list[Image]:
    """Both sides of a convolution. One of 1x1, stride 1 and no padding pairs its pixels one to one."""
    pointwise = {"R": 1, "S": 1, "STRIDE_H": 1, "STRIDE_W": 1, "PAD_H": 0, "PAD_W": 0}
    return (flat_images if pointwise.items() <= window.items() else images)(src, dst)


def channels_last(t: torch.Tensor) -> bool:
    """Whether neighbouring channels, not neighbouring pixels, are neighbours in memory."""
    return t.stride(1) == 1 and (t.stride(3) != 1 or t.shape[3] == 1)


def taps_collapse(weight: torch.Tensor) -> bool:
    """Whether the R * S taps of ``weight`` are one axis in memory."""
    _, _, r, s = weight.shape
    return r == 1 or s == 1 or weight.stride(2) == s * weight.stride(3)


def weight_strides(weight: torch.Tensor) -> tuple[int, int, int]:
    """Strides of k, c and tap, where the taps collapse."""
    _, _, r, s = weight.shape
    tap = weight.stride(3) if s > 1 else weight.stride(2) if r > 1 else 0
    return weight.stride(0), weight.stride(1), tap


def wide_pixels(pixels: int, *tensors: torch.Tensor) -> bool:
    """Whether offsets or pixel numbers, rounded up to whole blocks, need 64 bits."""
    return wide(*tensors) or pixels > 2**31 - 2**16
