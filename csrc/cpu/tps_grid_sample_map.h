// tps_grid_sample: where an output pixel samples the input.
//
//   gx = theta_2 + theta_0 x + theta_1 y + sum over k of theta_(3 + k) U_k        the same for gy
//   ix = (gx + 1) (IW - 1) / 2    or, unless align_corners,  (gx + 1) IW / 2 - 1/2     the same for gy, iy
//
// A spline has its extremes anywhere, so a tile's coordinates are computed and padded first, and what the
// tile samples is where they lie. They serve all blocks of channels.
#pragma once

#include "../tps_grid_sample.h"
#include "sampling_tiles.h"
#include "tps_grid_sample_basis.h"

namespace fastdl::cpu::tps {

// x, y in pixels of `count` <= kChunk pixels, not padded, from the functions and a spline's coefficients
// [2][functions + 1], the 1's last. Writes kChunk. In float64: the terms of a strong bend are large and
// cancel.
inline void evaluate(const Geometry& g, const float* theta, int64_t functions, const Rows& rows, int count,
                     float* x, float* y) {
  constexpr int kTogether = 2;  // vectors: sums enough that none waits for another
  const float *tx = theta, *ty = theta + functions + 1;
  const Wide scale_x = wide_splat(g.scale_x), scale_y = wide_splat(g.scale_y);
  const Wide shift = wide_splat(g.align ? 0.0 : -0.5);
  for (int i = 0; i < count; i += kTogether * kWidth) {
    Wide sum_x[kTogether], sum_y[kTogether];
    for (int v = 0; v < kTogether; ++v) {
      sum_x[v] = wide_splat(tx[functions] + 1.0);
      sum_y[v] = wide_splat(ty[functions] + 1.0);
    }
    for (int64_t k = 0; k < functions; ++k) {
      const float* row = rows.at + k * rows.stride + i;
      const Wide cx = wide_splat(tx[k]), cy = wide_splat(ty[k]);
      for (int v = 0; v < kTogether; ++v) {
        const Wide u = widen(load(row + v * kWidth));
        sum_x[v] = fma(cx, u, sum_x[v]);
        sum_y[v] = fma(cy, u, sum_y[v]);
      }
    }
    for (int v = 0; v < kTogether; ++v) {
      store(x + i + v * kWidth, narrow(fma(sum_x[v], scale_x, shift)));
      store(y + i + v * kWidth, narrow(fma(sum_y[v], scale_y, shift)));
    }
  }
}

// Coordinates x become padded ones; slope: of the padding, unless null.
template <PaddingMode kPadding>
void pad_axis(int64_t count, int64_t size, bool align, float* x, float* slope) {
  for (int64_t i = 0; i < count; i += kWidth) {
    Vec here;
    store(x + i, pad<kPadding>(load(x + i), size, align, here));
    if (slope) store(slope + i, here);
  }
}

inline void pad_axis(PaddingMode padding, int64_t count, int64_t size, bool align, float* x, float* slope) {
  if (padding == PaddingMode::kBorder) return pad_axis<PaddingMode::kBorder>(count, size, align, x, slope);
  if (padding == PaddingMode::kReflection)
    return pad_axis<PaddingMode::kReflection>(count, size, align, x, slope);
  pad_axis<PaddingMode::kZeros>(count, size, align, x, slope);
}

// The input pixels [first, end) along an axis that coordinates x reach, kWidth more of them being readable.
template <bool kNearest>
void reach_along(const float* x, int64_t count, int64_t size, int64_t& first, int64_t& end) {
  const Span span = span_of(0, size);
  Vec low = splat(INFINITY), high = splat(-INFINITY);
  for (int64_t i = 0; i < count; i += kWidth) {
    const Vec here = max(load(x + i), splat(span.low));  // NaN: low
    low = min(here, low);
    high = max(here, high);
  }
  Vec part;
  const IVec least = cell_of<kNearest>(low, span, part), most = cell_of<kNearest>(high, span, part);
  first = size + kFrame, end = 0;
  for (int i = 0; i < kWidth; ++i) {
    first = std::min<int64_t>(first, least[i]);
    end = std::max<int64_t>(end, most[i]);
  }
  first = std::clamp<int64_t>(first - kFrame, 0, size);
  end = std::clamp<int64_t>(end - kFrame + 2, first, size);
}

// A sampler of sampling_tiles.h.
class TPSSampler {
 public:
  TPSSampler(const Basis& basis, const Tensor& theta, bool slopes, int64_t stride, float* scratch)
      : g_(*basis.geometry), basis_(basis), theta_(theta), slopes_(slopes), stride_(stride) {
    x_ = scratch;
    values_ = x_ + (slopes ? 4 : 2) * stride;
    rows_ = values_ + 2 * (basis.functions + 1);
  }

  void enter(int64_t n, int64_t h0, int64_t h1, int64_t w0, int64_t w1) {
    if (n == n_ && h0 == h0_ && h1 == h1_ && w0 == w0_ && w1 == w1_) return;  // another block of channels
    n_ = n, h0_ = h0, h1_ = h1, w0_ = w0, w1_ = w1;
    read_theta();
    float *x = x_, *y = x_ + stride_;
    const bool joined = w1 - w0 == g_.ow;  // the next row's pixels follow
    const int64_t run = joined ? (h1 - h0) * g_.ow : w1 - w0, pixels = (h1 - h0) * (w1 - w0);
    for (int64_t done = 0; done < pixels; done += run) {
      const int64_t first = (h0 + done / (w1 - w0)) * g_.ow + w0;
      for (int64_t at = 0; at < run; at += kChunk) {
        const int count = static_cast<int>(std::min<int64_t>(kChunk, run - at));
        evaluate(g_, values_, basis_.functions, basis_.rows(first + at, rows_), count, x + done + at,
                 y + done + at);
      }
    }
    // what whole vectors read behind the last pixel is that pixel again
    std::fill_n(x + pixels, kWidth, x[pixels - 1]);
    std::fill_n(y + pixels, kWidth, y[pixels - 1]);
    pad_axis(g_.padding, pixels, g_.iw, g_.align, x, slopes_ ? x + 2 * stride_ : nullptr);
    pad_axis(g_.padding, pixels, g_.ih, g_.align, y, slopes_ ? y + 2 * stride_ : nullptr);
  }

  Box sampled() const {
    Box box;
    const int64_t pixels = (h1_ - h0_) * (w1_ - w0_);
    const auto along = g_.nearest ? reach_along<true> : reach_along<false>;
    along(x_, pixels, g_.iw, box.x0, box.x1);
    along(x_ + stride_, pixels, g_.ih, box.y0, box.y1);
    return box;
  }

  void count_in(const Box& box) {
    span_x_ = span_of(box.x0, box.x1);
    span_y_ = span_of(box.y0, box.y1);
  }

  void locate(int64_t h, int64_t w, int count, Cells& cells) const {
    const float* x = x_ + (h - h0_) * (w1_ - w0_) + (w - w0_);
    if (g_.nearest) {
      place<true>(x, count, cells);
    } else {
      place<false>(x, count, cells);
    }
  }

 private:
  void read_theta() {
    const int64_t functions = basis_.functions;
    for (int axis = 0; axis < 2; ++axis) {
      for (int64_t k = 0; k <= functions; ++k) {
        const int64_t from = k < 2 ? k : k == functions ? 2 : k + 1;
        const int64_t offset = n_ * theta_.stride[0] + axis * theta_.stride[1] + from * theta_.stride[2];
        values_[axis * (functions + 1) + k] = element(theta_, offset);
      }
    }
  }

  template <bool kNearest>
  void place(const float* x, int count, Cells& cells) const {
    const float* y = x + stride_;
    const Span span_x = span_x_, span_y = span_y_;
    for (int i = 0; i < count; i += kWidth) {
      Vec fx, fy;
      store(cells.x + i, cell_of<kNearest>(load(x + i), span_x, fx));
      store(cells.y + i, cell_of<kNearest>(load(y + i), span_y, fy));
      store(cells.fx + i, fx);
      store(cells.fy + i, fy);
      if (!slopes_) continue;
      store(cells.slope_x + i, load(x + 2 * stride_ + i));
      store(cells.slope_y + i, load(y + 2 * stride_ + i));
    }
    cells.count = count;
    store(cells.x + count, IVec{});  // what a whole vector reads behind the last one
    store(cells.y + count, IVec{});
  }

  const Geometry& g_;
  const Basis& basis_;
  const Tensor& theta_;
  bool slopes_;
  int64_t stride_;
  float* x_;       // [x, y and, if wanted, their slopes][stride], of the pixels entered
  float* values_;  // theta of n: x, y, U, 1
  float* rows_;    // scratch of the basis
  int64_t n_ = -1, h0_, h1_, w0_, w1_;
  Span span_x_, span_y_;
};

struct TPSMaps {
  const Basis& basis;
  const Tensor& theta;
  bool slopes = false;  // for theta's gradient

  int64_t tile_pixels() const { return 1 << 14; }  // their coordinates stay in the second cache
  int64_t floats(int64_t pixels) const {
    return (slopes ? 4 : 2) * stride(pixels) + 2 * (basis.functions + 1) + basis.floats();
  }
  TPSSampler sampler(int64_t pixels, float* scratch) const {
    return {basis, theta, slopes, stride(pixels), scratch};
  }
  Box reach(int64_t) const { return {0, 0, basis.geometry->iw, basis.geometry->ih}; }

 private:
  // a whole chunk is written, and a vector behind the last pixel
  static int64_t stride(int64_t pixels) { return (pixels / kWidth + 2) * kWidth + kChunk; }
};

}  // namespace fastdl::cpu::tps
