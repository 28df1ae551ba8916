"""The output, gathered: each output pixel reads the four input pixels around where it samples."""

import torch
import triton
import triton.language as tl

from ._runtime import cdiv, index, launch, next_power_of_2, program_target
from .affine_grid_sample_coordinates import locate, pixel_map
from .affine_grid_sample_layout import (
    along_channels,
    along_pixels,
    corner,
    image_strides,
    options_for,
    tile_of,
    tile_pixels,
)


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
    x, fx, y, fy = locate(map, sizes, h, w, NEAREST, PADDING, ALIGN)
    input += index(n, WIDE) * sn
    out += index(n, WIDE) * on + along_pixels(index(h, WIDE) * oh + index(w, WIDE) * ow, CHANNELS_LAST)
    live_tile = along_pixels(live, CHANNELS_LAST)
    p00, in00 = corner(x, y, sh, sw, sizes, live, CHANNELS_LAST, WIDE)
    if not NEAREST:
        p01, in01 = corner(x + 1, y, sh, sw, sizes, live, CHANNELS_LAST, WIDE)
        p10, in10 = corner(x, y + 1, sh, sw, sizes, live, CHANNELS_LAST, WIDE)
        p11, in11 = corner(x + 1, y + 1, sh, sw, sizes, live, CHANNELS_LAST, WIDE)
        fx, fy = along_pixels(fx, CHANNELS_LAST), along_pixels(fy, CHANNELS_LAST)

    for first in range(group * GROUP, tl.minimum(group * GROUP + GROUP, C), BC):
        channel = first + tl.arange(0, BC)
        real = along_channels(channel < C, CHANNELS_LAST)
        image = input + along_channels(index(channel, WIDE) * sc, CHANNELS_LAST)
        value = tl.load(image + p00, mask=in00 & real, other=0.0).to(tl.float32)
        if not NEAREST:
            v01 = tl.load(image + p01, mask=in01 & real, other=0.0).to(tl.float32)
            v10 = tl.load(image + p10, mask=in10 & real, other=0.0).to(tl.float32)
            v11 = tl.load(image + p11, mask=in11 & real, other=0.0).to(tl.float32)
            value = value * ((1.0 - fx) * (1.0 - fy)) + v01 * (fx * (1.0 - fy))
            value += v10 * ((1.0 - fx) * fy) + v11 * (fx * fy)
        where = out + along_channels(index(channel, WIDE) * oc, CHANNELS_LAST)
        tl.store(where, value.to(out.dtype.element_ty), mask=live_tile & real)


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
    steps = cdiv(c, blocks["BC"])
    group = next_power_of_2(cdiv(steps, cdiv(program_target(out), n * tiles))) * blocks["BC"]
    launch(
        _forward_kernel, (n * tiles * cdiv(c, group),),
        input, theta, out, *image_strides(input), *out.stride(), c, *input.shape[2:], oh, ow,
        NEAREST=mode == "nearest", GROUP=group, **options, **blocks,
    )  # fmt: skip
