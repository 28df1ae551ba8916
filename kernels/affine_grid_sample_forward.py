"""The output, gathered: each output pixel reads the four input pixels around where it samples."""

import torch
import triton
import triton.language as tl

from ._runtime import cdiv, index, launch
from .affine_grid_sample_coordinates import locate, pixel_map
from .sampling_layout import along_pixels, channel_group, image_strides, options_for, tile_of, tile_pixels
from .sampling_taps import sample_pixels


@triton.jit
def _forward_kernel(
    input,  # [N or 1, C, IH, IW] any float dtype; sn is 0 where one image serves all samples
    theta,  # [N, 2, 3] any float dtype, contiguous
    out,  # [N, C, OH, OW] any float dtype
    sn, sc, sh, sw,  # strides of input
    on, oc, oh, ow,  # strides of out
    C, IH, IW, OH, OW,
    NEAREST: tl.constexpr, PADDING: tl.constexpr, ALIGN: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    TH: tl.constexpr, TW: tl.constexpr, BC: tl.constexpr, GROUP: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """out = sum over the four pixels around (ix, iy) of weight * input; nearest: the one it rounds to.

    A program fills TH x TW pixels of GROUP channels of one sample, BC channels at a time.
    """
    sizes = IH, IW, OH, OW
    tiles = tl.cdiv(OH, TH) * tl.cdiv(OW, TW)
    groups = tl.cdiv(C, GROUP)
    pid = tl.program_id(0)
    h, w = tile_pixels(pid % tiles, OW, TH, TW)
    group = pid // tiles % groups
    n = pid // tiles // groups
    live = (h < OH) & (w < OW)

    map = pixel_map(theta, n, sizes, ALIGN, WIDE)
    cell = locate(map, sizes, h, w, NEAREST, PADDING, ALIGN)
    input += index(n, WIDE) * sn
    out += index(n, WIDE) * on + along_pixels(index(h, WIDE) * oh + index(w, WIDE) * ow, CHANNELS_LAST)
    sample_pixels(
        input, (sc, sh, sw), out, oc, cell, sizes, live, group, C, NEAREST, CHANNELS_LAST, BC, GROUP, WIDE
    )  # fmt: skip


def sample(
    input: torch.Tensor,
    theta: torch.Tensor,
    out: torch.Tensor,
    mode: str,
    padding_mode: str,
    align_corners: bool,
) -> None:
    """Fill ``out``, which is not empty, from ``input`` and ``theta`` (contiguous)."""
    n, c, oh, ow = out.shape
    options = options_for(input, padding_mode, align_corners, theta, out)
    blocks = tile_of(oh, ow, c, options["CHANNELS_LAST"], pixels=256, elements=512)
    tiles = cdiv(oh, blocks["TH"]) * cdiv(ow, blocks["TW"])
    group = channel_group(out, tiles, blocks["BC"])
    launch(
        _forward_kernel, (n * tiles * cdiv(c, group),),
        input, theta, out, *image_strides(input), *out.stride(), c, *input.shape[2:], oh, ow,
        NEAREST=mode == "nearest", GROUP=group, **options, **blocks,
    )  # fmt: skip
