// affine_grid_sample: where an output pixel samples the input.
//
//   xn[w] = linspace(-1, 1, OW), times (OW - 1) / OW unless align_corners           the same for yn
//   gx    = (xn theta00 + yn theta01) + theta02                                     each operation rounded
//   ix    = (gx + 1) (IW - 1) / 2    or, unless align_corners,  (gx + 1) IW / 2 - 1/2     the same for gy, iy
//
// These are the operations of torch's CPU kernels in torch's order, so that the coordinates have the bits of
// torch's on a machine with fused multiply-adds: under the identity every sample lies on a pixel, where the
// gradient jumps, and falls on torch's side of it.
#pragma once

#include "../affine_grid_sample.h"
#include "dispatch.h"
#include "parallel.h"
#include "vec.h"

namespace fastdl::cpu::affine {

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

// The theta of a sample as floats.
struct Theta {
  float x[3], y[3];
};

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

inline Theta theta_of(const Tensor& theta, int64_t n) {
  Theta result;
  for (int k = 0; k < 3; ++k) {
    result.x[k] = element(theta, n * theta.stride[0] + k * theta.stride[2]);
    result.y[k] = element(theta, n * theta.stride[0] + theta.stride[1] + k * theta.stride[2]);
  }
  return result;
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

// The input pixels that the output pixels of rows [h0, h1) and columns [w0, w1) may sample. An affine map has
// its extremes at the corners; the margin is for rounding, here and in locate. Whatever is not finite takes
// everything.
inline Box sampled_box(const Geometry& g, const Theta& theta, int64_t h0, int64_t h1, int64_t w0,
                       int64_t w1) {
  const Box whole = {0, 0, g.iw, g.ih};
  if (g.padding == PaddingMode::kReflection) return whole;
  auto range = [&](const float* t, double scale, int64_t size, int64_t& first, int64_t& end) {
    double low = INFINITY, high = -INFINITY, bound = 1 + std::fabs(t[2]) + std::fabs(t[0]) + std::fabs(t[1]);
    for (int corner = 0; corner < 4; ++corner) {
      const int64_t h = corner / 2 ? h1 - 1 : h0, w = corner % 2 ? w1 - 1 : w0;
      const double at =
          (double(t[0]) * g.xn[w] + double(t[1]) * g.yn[h] + t[2] + 1) * scale - (g.align ? 0 : 0.5);
      low = at < low ? at : low;
      high = at > high ? at : high;
    }
    const double margin = 2 + 1e-6 * bound * (scale + 1), limit = static_cast<double>(size);
    if (!(bound < 1e30)) return false;
    low = std::floor(low - margin), high = std::floor(high + margin) + 1;
    if (g.padding == PaddingMode::kBorder)
      low = low > limit - 1 ? limit - 1 : low, high = high < 1 ? 1 : high;
    first = static_cast<int64_t>(low < 0 ? 0 : low > limit ? limit : low);
    end = static_cast<int64_t>(high > limit ? limit : high);
    if (end < first) end = first;
    return true;
  };
  Box box;
  if (!range(theta.x, g.scale_x, g.iw, box.x0, box.x1) || !range(theta.y, g.scale_y, g.ih, box.y0, box.y1))
    return whole;
  return box;
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

// The map of one sample, and the box that cells are counted in.
struct Map {
  const Geometry* geometry;
  Theta theta;
  Span span_x, span_y;
  const float*
      x_products;  // xn theta00, xn theta10: [ow + kWidth] each. In memory, so that no compiler fuses them
  const float* y_products;  // with the sums they enter
};

inline int64_t products_size(const Geometry& g) { return 2 * (g.ow + kWidth); }

inline Map make_map(const Geometry& g, const Theta& theta, const Box& box, float* products) {
  float* y_products = products + g.ow + kWidth;
  for (int64_t w = 0; w < g.ow; w += kWidth) {
    store(products + w, load(g.xn + w) * theta.x[0]);
    store(y_products + w, load(g.xn + w) * theta.y[0]);
  }
  return {&g, theta, span_of(box.x0, box.x1), span_of(box.y0, box.y1), products, y_products};
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

enum class Want { kCell, kCellAndPart, kAll };

// Cells of `count` <= kChunk output pixels from (h, w) on, to the right and then down, between columns w0 and
// w1.
template <PaddingMode kPadding, Want kWant>
void locate(const Map& map, int64_t h, int64_t w, int64_t w0, int64_t w1, int count, Cells& cells) {
  constexpr bool kNearest = kWant == Want::kCell;
  // Copies: as far as the compiler knows the stores below might change what is behind a pointer.
  const Geometry g = *map.geometry;
  const Span span_x = map.span_x, span_y = map.span_y;
  const Theta theta = map.theta;
  const float *x_products = map.x_products, *y_products = map.y_products;
  const float shift = g.align ? 0.0f : -0.5f;
  for (int at = 0; at < count; ++h, w = w0) {
    const int here = static_cast<int>(w1 - w < count - at ? w1 - w : count - at);
    const float yn = g.yn[h], row_x = yn * theta.x[1], row_y = yn * theta.y[1];
    for (int i = 0; i < here; i += kWidth) {
      Vec x = (load(x_products + w + i) + row_x) + theta.x[2];
      Vec y = (load(y_products + w + i) + row_y) + theta.y[2];
      x = fused(x + 1.0f, splat(g.scale_x), splat(shift));
      y = fused(y + 1.0f, splat(g.scale_y), splat(shift));
      Vec slope_x, slope_y, fx, fy;
      x = pad<kPadding>(x, g.iw, g.align, slope_x);
      y = pad<kPadding>(y, g.ih, g.align, slope_y);
      store(cells.x + at + i, cell_of<kNearest>(x, span_x, fx));
      store(cells.y + at + i, cell_of<kNearest>(y, span_y, fy));
      if constexpr (kNearest) continue;
      store(cells.fx + at + i, fx);
      store(cells.fy + at + i, fy);
      if constexpr (kWant != Want::kAll) continue;
      store(cells.slope_x + at + i, slope_x);
      store(cells.slope_y + at + i, slope_y);
      store(cells.xn + at + i, load(g.xn + w + i));
      store(cells.yn + at + i, splat(yn));
    }
    at += here;
  }
  cells.count = count;
  store(cells.x + count, IVec{});  // what a whole vector reads behind the last one
  store(cells.y + count, IVec{});
}

using Locate = void (*)(const Map&, int64_t h, int64_t w, int64_t w0, int64_t w1, int count, Cells&);

template <PaddingMode kPadding>
Locate locate_for(Want want) {
  if (want == Want::kCell) return locate<kPadding, Want::kCell>;
  return want == Want::kAll ? locate<kPadding, Want::kAll> : locate<kPadding, Want::kCellAndPart>;
}

// Everything for theta's gradient; the parts unless the mode is nearest.
inline Locate locate_for(const Geometry& g, bool everything = false) {
  const Want want = everything ? Want::kAll : g.nearest ? Want::kCell : Want::kCellAndPart;
  if (g.padding == PaddingMode::kBorder) return locate_for<PaddingMode::kBorder>(want);
  if (g.padding == PaddingMode::kReflection) return locate_for<PaddingMode::kReflection>(want);
  return locate_for<PaddingMode::kZeros>(want);
}

}  // namespace fastdl::cpu::affine
