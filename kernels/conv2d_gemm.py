"""Forward and grad_x of a convolution as one implicit GEMM: pixels x channels, summed over (tap, channel).

The two differ in where a tap of a pixel lies, and in which axis of the weight is summed. The matrix of
gathered pixels is never written to memory: each program loads its tiles from the image. The summed axis
takes one tap at a time in blocks of channels; with few channels it is *packed*: taps * channels as one axis,
padded once.
"""

from __future__ import annotations

from math import gcd

import torch
import triton
import triton.language as tl

from ._runtime import cdiv, index, launch, narrow, next_power_of_2, program_target, tensor_cores
from .activation import activate
from .conv2d_layout import (
    Window,
    channels_last,
    columns,
    pixel_at,
    rows,
    taps_collapse,
    weight_strides,
    wide_pixels,
    window_images,
    within,
)

# ---------------------------------------------------------------------------------- device helpers


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr, TENSOR_CORES: tl.constexpr):
    """acc + a @ b."""
    if not TENSOR_CORES:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def _first_tap(phase, TAPS: tl.constexpr, STRIDE: tl.constexpr, PAD: tl.constexpr, DILATION: tl.constexpr):
    """The first tap t with (phase + PAD - t * DILATION) divisible by STRIDE; TAPS if there is none."""
    first = TAPS
    for i in tl.static_range(TAPS):
        tap = TAPS - 1 - i
        first = tl.where((phase + PAD - tap * DILATION) % STRIDE == 0, tap, first)
    return first


# ------------------------------------------------------------------------------------------ kernel


@triton.jit
def conv2d_gemm(
    src,  # [N, groups * src_channels, src_h, src_w]
    weight,  # element (dst channel j, src channel i, tap) of a group at j * w_dst + i * w_src + tap * w_tap
    bias,  # [groups * dst_channels] or None
    dst,  # [N, groups * dst_channels, dst_h, dst_w], src's dtype
    param,
    pixels,  # rows of the product: pixels of dst (of one phase)
    src_channels, dst_channels, src_h, src_w, dst_h, dst_w,
    src_n, src_c, src_y, src_x,
    dst_n, dst_c, dst_y, dst_x,
    w_dst, w_src, w_tap,
    R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    STEP_H: tl.constexpr, STEP_W: tl.constexpr,
    TRANSPOSED: tl.constexpr, PACKED: tl.constexpr,
    SRC_CHANNELS_LAST: tl.constexpr, DST_CHANNELS_LAST: tl.constexpr,
    ACT: tl.constexpr, PRECISION: tl.constexpr, TENSOR_CORES: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dst[pixel, j] = act(bias[j] + sum over (tap, i) of src[at(pixel, tap), i] * weight[j, i, tap]).

    Forward: at = pixel * stride - padding + tap * dilation.
    TRANSPOSED (grad_x): at = (pixel + padding - tap * dilation) / stride, for the taps that divide. These
    are every STEP-th tap from a first one, the same for all pixels of one phase (pixel modulo stride): so
    phases are a grid axis, and each is a dense convolution of stride 1 over its own taps.
    Grid: (pixel blocks * channel blocks, groups, phases).
    """
    channel_blocks = tl.cdiv(dst_channels, BLOCK_N)
    m = index(tl.program_id(0) // channel_blocks, WIDE) * BLOCK_M + tl.arange(0, BLOCK_M)
    j = tl.program_id(0) % channel_blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    group = tl.program_id(1)

    # (y, x): the pixel of dst; (base_y, base_x): where its first tap lies in src
    if TRANSPOSED:
        phase_y, phase_x = tl.program_id(2) // STRIDE_W, tl.program_id(2) % STRIDE_W
        n, y, x = pixel_at(m, tl.cdiv(dst_h, STRIDE_H), tl.cdiv(dst_w, STRIDE_W))
        y, x = y * STRIDE_H + phase_y, x * STRIDE_W + phase_x
        first_r = _first_tap(phase_y, R, STRIDE_H, PAD_H, DILATION_H)
        first_s = _first_tap(phase_x, S, STRIDE_W, PAD_W, DILATION_W)
        taps_r, taps_s = tl.cdiv(R - first_r, STEP_H), tl.cdiv(S - first_s, STEP_W)
        base_y = (y + PAD_H - first_r * DILATION_H) // STRIDE_H
        base_x = (x + PAD_W - first_s * DILATION_W) // STRIDE_W
        MOVE_Y: tl.constexpr = -(STEP_H * DILATION_H // STRIDE_H)
        MOVE_X: tl.constexpr = -(STEP_W * DILATION_W // STRIDE_W)
        weight += group * src_channels * w_src
    else:
        n, y, x = pixel_at(m, dst_h, dst_w)
        first_r, first_s, taps_r, taps_s = 0, 0, R, S
        base_y, base_x = y * STRIDE_H - PAD_H, x * STRIDE_W - PAD_W
        MOVE_Y: tl.constexpr = DILATION_H
        MOVE_X: tl.constexpr = DILATION_W
        weight += group * dst_channels * w_dst
    live = (m < pixels) & (y < dst_h) & (x < dst_w)

    # tiles of src are [m, k], those of the weight [j, k], either transposed if memory is
    WEIGHT_K_LAST: tl.constexpr = not TRANSPOSED
    src += index(group, WIDE) * src_channels * src_c
    src_rows, src_live = rows(n * src_n, SRC_CHANNELS_LAST), rows(live, SRC_CHANNELS_LAST)
    base_y, base_x = rows(base_y, SRC_CHANNELS_LAST), rows(base_x, SRC_CHANNELS_LAST)
    weight_rows, weight_live = rows(j * w_dst, WEIGHT_K_LAST), rows(j < dst_channels, WEIGHT_K_LAST)

    taps, blocks_per_tap = taps_r * taps_s, tl.cdiv(src_channels, BLOCK_K)
    if PACKED:
        steps = tl.cdiv(taps * src_channels, BLOCK_K)
    else:
        steps = taps * blocks_per_tap
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(steps):
        # i: source channels [BLOCK_K]; tap: one number or, packed, [BLOCK_K]
        if PACKED:
            k = step * BLOCK_K + tl.arange(0, BLOCK_K)
            tap, i = k // src_channels, k % src_channels
            k_live = tap < taps
        else:
            tap, i = step // blocks_per_tap, step % blocks_per_tap * BLOCK_K + tl.arange(0, BLOCK_K)
            k_live = i < src_channels
        r, s = tap // taps_s, tap % taps_s
        tap = (first_r + r * STEP_H) * S + first_s + s * STEP_W
        if PACKED:
            r, s = columns(r, SRC_CHANNELS_LAST), columns(s, SRC_CHANNELS_LAST)
            tap = columns(tap, WEIGHT_K_LAST)
        at_y, at_x = base_y + r * MOVE_Y, base_x + s * MOVE_X
        src_columns = columns(index(i, WIDE) * src_c, SRC_CHANNELS_LAST)
        a = tl.load(
            src + src_rows + at_y * src_y + at_x * src_x + src_columns,
            mask=src_live & within(at_y, at_x, src_h, src_w) & columns(k_live, SRC_CHANNELS_LAST),
            other=0.0,
        )
        b = tl.load(
            weight + weight_rows + columns(i * w_src, WEIGHT_K_LAST) + tap * w_tap,
            mask=weight_live & columns(k_live, WEIGHT_K_LAST),
            other=0.0,
        )
        if not SRC_CHANNELS_LAST:
            a = tl.trans(a)
        if WEIGHT_K_LAST:
            b = tl.trans(b)
        acc = dot(a, b, acc, PRECISION, TENSOR_CORES)

    channel = group * dst_channels + j
    if bias is not None:
        acc += tl.load(bias + channel, mask=j < dst_channels, other=0.0).to(tl.float32)[None, :]
    acc = activate(acc, param, ACT)
    if not DST_CHANNELS_LAST:
        acc = tl.trans(acc)
    dst_rows = rows(n * dst_n + y * dst_y + x * dst_x, DST_CHANNELS_LAST)
    dst_columns = columns(index(channel, WIDE) * dst_c, DST_CHANNELS_LAST)
    dst_live = rows(live, DST_CHANNELS_LAST) & columns(j < dst_channels, DST_CHANNELS_LAST)
    tl.store(dst + dst_rows + dst_columns, narrow(acc, dst), mask=dst_live)


# ---------------------------------------------------------------------------------------- launcher


def dot_precision(dtype: torch.dtype, allow_tf32: bool) -> str:
    return "tf32" if allow_tf32 and dtype == torch.float32 else "ieee"


def gemm(
    src: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    dst: torch.Tensor,
    window: Window,
    groups: int,
    *,
    transposed: bool,
    activation: str = "",
    activation_param: float = 0.0,
    allow_tf32: bool,
) -> None:
    """Fill out (``dst``) from x (``src``) or, transposed, grad_x from grad_out."""
    taps = window["R"] * window["S"]
    src_channels, dst_channels = weight.shape[1], weight.shape[0] // groups
    phase_h = phase_w = 1
    if transposed:
        src_channels, dst_channels = dst_channels, src_channels
        phase_h, phase_w = window["STRIDE_H"], window["STRIDE_W"]
    src_image, dst_image = window_images(src, dst, window)
    pixels = dst_image.n * cdiv(dst_image.h, phase_h) * cdiv(dst_image.w, phase_w)

    # Tiles of 16-bit elements may be twice as large, but only where channels are neighbours. Elsewhere each
    # element of src's tile has an address of its own, much of which the compiler computes in front of the
    # loop and holds in registers: larger tiles spill (100 to 600 bytes per thread with Triton 3.6).
    large = src.element_size() == 2 and channels_last(src)
    # few channels: blocks across taps; else per tap, in the largest blocks that pad the least
    packed = taps > 1 and src_channels < 32 and src_channels % 16 != 0
    if packed:
        block_k = min(32, max(16, next_power_of_2(src_channels * taps)))
    else:
        depths = (64, 32, 16) if large else (32, 16)
        block_k = min(depths, key=lambda block: cdiv(src_channels, block) * block)
    precision = dot_precision(src.dtype, allow_tf32)
    block_m = 64 if precision == "ieee" and src.dtype == torch.float32 else 128
    block_n = min(128 if large else 64, max(16, next_power_of_2(dst_channels)))
    programs = groups * phase_h * phase_w * cdiv(dst_channels, block_n) * cdiv(pixels, block_m)
    if programs < program_target(src) // 4:  # less than one per multiprocessor
        block_m, block_n = 64, min(64, block_n)

    if not taps_collapse(weight) or (not packed and weight.shape[1] > 1 and weight.stride(1) != 1):
        weight = weight.contiguous(memory_format=torch.channels_last)  # rows of channels: whole sectors
    w_dst, w_src, w_tap = weight_strides(weight)
    if transposed:
        w_dst, w_src = w_src, w_dst

    launch(
        conv2d_gemm,
        (cdiv(pixels, block_m) * cdiv(dst_channels, block_n), groups, phase_h * phase_w),
        src, weight, bias, dst, activation_param, pixels, src_channels, dst_channels,
        src_image.h, src_image.w, dst_image.h, dst_image.w, *src_image.strides, *dst_image.strides,
        w_dst, w_src, w_tap,
        **window,
        STEP_H=phase_h // gcd(phase_h, window["DILATION_H"]),
        STEP_W=phase_w // gcd(phase_w, window["DILATION_W"]),
        TRANSPOSED=transposed,
        PACKED=packed,
        SRC_CHANNELS_LAST=channels_last(src),
        DST_CHANNELS_LAST=channels_last(dst),
        ACT=activation,
        PRECISION=precision,
        TENSOR_CORES=tensor_cores(src),
        WIDE=wide_pixels(pixels, src, dst),
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        num_warps=8 if block_m == 128 else 4,
        num_stages=3,
    )  # fmt: skip
