// Sampling an image: the pixels of input and output, grid_sample's padding, and the cell of input pixels
// around a point.
//
// These are the operations of torch's CPU kernels in torch's order, so that coordinates have the bits of
// torch's on a machine with fused multiply-adds.
#pragma once

#include "../sampling.h"
#include "dispatch.h"
#include "parallel.h"
#include "vec.h"

namespace fastdl::cpu::sampling {

// A part of an image: columns [x0, x1), rows [y0, y1).
struct Box {
  int64_t x0, y0, x1, y1;
  int64_t width() const { return x1 - x0; }
  int64_t height() const { return y1 - y0; }
};

// The columns and rows around a box that belong to its memory: taps that count as zeros fall there.
constexpr int kFrame = 2;
inline int64_t framed_width(const Box& box) { return box.width() + 2 * kFrame; }
inline int64_t framed_area(const Box& box) { return framed_width(box) * (box.height() + 2 * kFrame); }

// What all samples of a call share.
struct Geometry {
  int64_t ih, iw, oh, ow;
  bool align, nearest;
  PaddingMode padding;
  const float* xn;         // [ow], then kWidth more
  const float* yn;         // [oh]
  float scale_x, scale_y;  // d ix / d gx, d iy / d gy
};

// An element of a tensor as a float.
inline float element(const Tensor& t, int64_t index) {
  switch (t.dtype) {
    case DType::kFloat16:
      return to_float(static_cast<const f16*>(t.data)[index]);
    case DType::kBFloat16:
      return to_float(static_cast<const bf16*>(t.data)[index]);
    default:
      return static_cast<const float*>(t.data)[index];
  }
}

// The centres of `size` pixels from -1 to 1: torch.linspace, from both ends to the middle.
inline void fill_centres(float* centres, int64_t size, bool align) {
  const float step = 2.0f / static_cast<float>(size - 1);
  for (int64_t i = 0; i < size; ++i) {
    const bool left = i < size / 2;
    const float steps = static_cast<float>(left ? i : size - 1 - i);
    const Vec centre = fused(splat(step), splat(left ? steps : -steps), splat(left ? -1.0f : 1.0f));
    const float inside = centre[0] * static_cast<float>(size - 1) / static_cast<float>(size);
    centres[i] = size == 1 ? 0.0f : align ? centre[0] : inside;
  }
  for (int i = 0; i < kWidth; ++i) centres[size + i] = 0.0f;
}

// False: no memory.
inline bool make_geometry(Geometry& g, const Tensor& input, int64_t oh, int64_t ow, Interpolation mode,
                          PaddingMode padding, bool align, Context* context) {
  g.ih = input.size[2], g.iw = input.size[3], g.oh = oh, g.ow = ow;
  g.align = align, g.nearest = mode == Interpolation::kNearest, g.padding = padding;
  float* centres = static_cast<float*>(context->allocate(context, (oh + ow + 2 * kWidth) * 4));
  if (centres == nullptr) return false;
  fill_centres(centres, ow, align);
  fill_centres(centres + ow + kWidth, oh, align);
  g.xn = centres;
  g.yn = centres + ow + kWidth;
  g.scale_x = static_cast<float>(align ? g.iw - 1 : g.iw) / 2;
  g.scale_y = static_cast<float>(align ? g.ih - 1 : g.ih) / 2;
  return true;
}

constexpr int kChunk = 64;  // output pixels at a time

// Where a chunk of output pixels samples. (x, y): the first of the four pixels around the point (nearest: the
// one pixel), counted from the frame's corner of a box; its successors are inside the frame too.
struct Cells {
  int count;
  int32_t x[kChunk + kWidth], y[kChunk + kWidth];
  float fx[kChunk + kWidth], fy[kChunk + kWidth];  // distance from that pixel
  // for theta's gradient:
  float slope_x[kChunk + kWidth], slope_y[kChunk + kWidth];  // of padding: 1, -1, or 0 where it clamps
  float xn[kChunk + kWidth], yn[kChunk + kWidth];
};

// A framed axis from pixel `first` to `end`: what cells are limited to, as floats inside the frame however
// large.
struct Span {
  float low, high;
  int32_t origin;
};

inline Span span_of(int64_t first, int64_t end) {
  Span span = {static_cast<float>(first - kFrame), static_cast<float>(end),
               static_cast<int32_t>(first - kFrame)};
  if (static_cast<int64_t>(span.low) < first - kFrame) span.low = std::nextafter(span.low, INFINITY);
  if (static_cast<int64_t>(span.high) > end) span.high = std::nextafter(span.high, 0.0f);
  return span;
}

// torch's padding of a coordinate along an axis of `size` pixels. NaN becomes 0 under border and reflection.
template <PaddingMode kPadding>
FASTDL_INLINE Vec pad(Vec x, int64_t size, bool align, Vec& slope) {
  slope = splat(1.0f);
  if constexpr (kPadding == PaddingMode::kZeros) return x;
  if constexpr (kPadding == PaddingMode::kReflection) {
    const Vec low = splat(align ? 0.0f : -0.5f),
              period = splat(static_cast<float>(2 * (align ? size - 1 : size)));
    const Vec shifted = x - low, distance = abs(shifted);
    const Vec there = fused(-floor(distance / period), period, distance), back = period - there;
    const IVec flipped = there > back;
    x = select(flipped, back, there) + low;
    slope = select(flipped ^ (shifted < 0.0f), splat(-1.0f), slope);
  }
  const Vec last = splat(static_cast<float>(size - 1));
  slope = select((x > 0.0f) & (x < last), slope, Vec{});
  x = select(x > 0.0f, x, Vec{});
  return select(x < last, x, last);
}

// The pixel before x (nearest: the one x rounds to), counted from the frame's edge, and x's distance from it.
template <bool kNearest>
FASTDL_INLINE IVec cell_of(Vec x, const Span& span, Vec& part) {
  const Vec cell = kNearest ? round(x) : floor(x);
  part = x - cell;
  return to_int(min(max(cell, splat(span.low)), splat(span.high))) - span.origin;  // NaN: low
}

}  // namespace fastdl::cpu::sampling
