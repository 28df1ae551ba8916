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
#include "sampling_geometry.h"

namespace fastdl::cpu::affine {

using namespace sampling;

// The theta of a sample as floats.
struct Theta {
  float x[3], y[3];
};

inline Theta theta_of(const Tensor& theta, int64_t n) {
  Theta result;
  for (int k = 0; k < 3; ++k) {
    result.x[k] = element(theta, n * theta.stride[0] + k * theta.stride[2]);
    result.y[k] = element(theta, n * theta.stride[0] + theta.stride[1] + k * theta.stride[2]);
  }
  return result;
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
    if (g.padding == PaddingMode::kBorder)  // clamped to pixel 0: pixel 1 times 0, which shows infinities
      low = low > limit - 1 ? limit - 1 : low, high = high < 2 ? 2 : high;
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

// A sampler of sampling_tiles.h.
class AffineSampler {
 public:
  AffineSampler(const Geometry& g, const Tensor& theta, Locate locate, float* products)
      : g_(g), theta_(theta), locate_(locate), products_(products) {}

  void enter(int64_t n, int64_t h0, int64_t h1, int64_t w0, int64_t w1) {
    values_ = theta_of(theta_, n);
    h0_ = h0, h1_ = h1, w0_ = w0, w1_ = w1;
  }
  Box sampled() const { return sampled_box(g_, values_, h0_, h1_, w0_, w1_); }
  void count_in(const Box& box) { map_ = make_map(g_, values_, box, products_); }
  void locate(int64_t h, int64_t w, int count, Cells& cells) const {
    locate_(map_, h, w, w0_, w1_, count, cells);
  }

 private:
  const Geometry& g_;
  const Tensor& theta_;
  Locate locate_;
  float* products_;
  Theta values_;
  int64_t h0_, h1_, w0_, w1_;
  Map map_;
};

struct AffineMaps {
  const Geometry& g;
  const Tensor& theta;
  Locate locate;
  int64_t tile_pixels() const { return INT64_MAX; }
  int64_t floats(int64_t) const { return products_size(g); }
  AffineSampler sampler(int64_t, float* scratch) const { return {g, theta, locate, scratch}; }
  Box reach(int64_t n) const { return sampled_box(g, theta_of(theta, n), 0, g.oh, 0, g.ow); }
};

}  // namespace fastdl::cpu::affine
