"""Tiles of images: which pixels and channels one covers and where these lie in memory.

A tile is held as [channels, pixels] or, where channels are neighbours in memory, as [pixels, channels].
"""

import torch
import triton
import triton.language as tl

from ._runtime import cdiv, index, next_power_of_2, program_target, wide

# ---------------------------------------------------------------------------------- device helpers


@triton.jit
def along_pixels(v, CHANNELS_LAST: tl.constexpr):
    """A vector over pixels, shaped to the tile."""
    return v[:, None] if CHANNELS_LAST else v[None, :]


@triton.jit
def along_channels(v, CHANNELS_LAST: tl.constexpr):
    """A vector over channels, shaped to the tile."""
    return v[None, :] if CHANNELS_LAST else v[:, None]


@triton.jit
def tile_pixels(tile, W, TH: tl.constexpr, TW: tl.constexpr):
    """Row and column of each of the TH TW pixels of a tile of an image that is W wide."""
    across = tl.cdiv(W, TW)
    i = tl.arange(0, TH * TW)
    return tile // across * TH + i // TW, tile % across * TW + i % TW


@triton.jit
def corner(x, y, sh, sw, sizes, live, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr):
    """Offset of input pixel (y, x) and whether it is to be read, both shaped to the tile."""
    IH, IW, _, _ = sizes
    inside = (x >= 0) & (x < IW) & (y >= 0) & (y < IH) & live
    offset = index(y, WIDE) * sh + index(x, WIDE) * sw
    return along_pixels(offset, CHANNELS_LAST), along_pixels(inside, CHANNELS_LAST)


# ------------------------------------------------------------------------------------ for launchers


def tile_of(h: int, w: int, channels: int, channels_last: bool, pixels: int, elements: int) -> dict[str, int]:
    """A tile of at most ``pixels`` pixels and ``elements`` elements for maps of ``h`` x ``w``."""
    bc = min(next_power_of_2(channels), 32 if channels_last else 4)
    pixels = min(pixels, elements // bc)
    tw = min(32, pixels, next_power_of_2(w))
    return {"BC": bc, "TW": tw, "TH": min(pixels // tw, next_power_of_2(h))}


def channel_group(out: torch.Tensor, tiles: int, bc: int) -> int:
    """How many channels a program makes: all, unless ``tiles`` of ``out`` are too few to fill the device."""
    n, c = out.shape[:2]
    return next_power_of_2(cdiv(cdiv(c, bc), cdiv(program_target(out), n * tiles))) * bc


def options_for(image: torch.Tensor, padding_mode: str, align_corners: bool, *others: torch.Tensor) -> dict:
    """The constexprs shared by all kernels."""
    return {
        "PADDING": padding_mode,
        "ALIGN": align_corners,
        "CHANNELS_LAST": image.shape[1] > 1 and image.stride(1) == 1,
        "WIDE": wide(image, *others),
    }


def image_strides(image: torch.Tensor) -> tuple[int, ...]:
    """Strides of ``image``, with none along a batch of 1: one image serves all samples."""
    return (0 if image.shape[0] == 1 else image.stride(0), *image.stride()[1:])
