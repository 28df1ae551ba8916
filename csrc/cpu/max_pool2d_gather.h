// Backward without scattering: every element of grad_x is computed, and written once, from the windows over
// it. grad_x[h, w] = sum of grad_out over the windows whose saved cell is (h, w), in index order.
#pragma once

#include "max_pool2d.h"

namespace fastdl::cpu {

template <class T, class O>
struct PoolBackward {
  const T* grad_out;
  const O* offsets;
  T* grad_x;
  int64_t n, c;
  Axis rows, columns;
  int64_t g_n, g_c, g_h, g_w, o_n, o_c, o_h, o_w, x_n, x_c, x_h, x_w;
  Context* context;
};

// ----------------------------------------------------- planes: 2x2 of stride 2, 3x3s2 of padding 1

// One row of windows. Lanes beyond its `outputs` name no cell; `readable` elements may be touched.
template <class T, class O>
struct WindowRow {
  const T* grad;
  const O* offsets;
  int64_t outputs, readable;

  FASTDL_INLINE void at(int64_t ow, Vec& g, IVec& cell) const {
    if (__builtin_expect(outputs - ow >= kWidth, 1)) {
      g = load(grad + ow), cell = load_cells(offsets + ow);
    } else if (ow + kWidth <= readable) {
      g = load(grad + ow);
      cell = select(iota() < static_cast<int32_t>(outputs - ow), load_cells(offsets + ow), splat(-1));
    } else {
      g = load_first(grad + ow, outputs - ow, 0.0f), cell = load_cells(offsets + ow, outputs - ow);
    }
  }
};

// A row of grad_x under construction: `width` elements, of which the first `writable` may be written for the
// time being.
template <class T>
struct PixelRow {
  T* data;
  int64_t width, writable;

  FASTDL_INLINE void put(int64_t w, Vec low, Vec high) const {
    if (width - w <= kWidth && w + kWidth <= writable) {
      store(data + w, low);
    } else if (__builtin_expect(w + 2 * kWidth <= writable, 1)) {
      store(data + w, low), store(data + w + kWidth, high);
    } else {
      store(data + w, low, width - w);
      if (width - w > kWidth) store(data + w + kWidth, high, width - w - kWidth);
    }
  }
};

// Pixel rows 2a and 2a + 1 (kBoth: the latter exists) of window row a and (kBelow, K == 3) a + 1. Pixels 2b
// and 2b + 1 lie under windows b and (K == 3) b + 1.
template <int K, bool kBoth, bool kBelow, class T, class O>
FASTDL_INLINE void gather_rows_of(const WindowRow<T, O>& above, const WindowRow<T, O>& below, int64_t width,
                                  const PixelRow<T>& upper, const PixelRow<T>& lower) {
  IVec parity = iota() & 1;
  for (int64_t next = 0; next < width; next += 2 * kWidth) {
    // the last vectors end with the row (one beyond, if it is odd), over what those before wrote
    const int64_t last = (width + 1) / 2 * 2 - 2 * kWidth, w = next > last && last >= 0 ? last : next;
    Vec g, low, high;
    IVec cell;
    above.at(w / 2, g, cell);
    g = g + 0.0f;  // a sum of one: -0 becomes 0
    if constexpr (K == 2) {
      Vec cell_low, cell_high;
      interleave(g, g, low, high);
      interleave(as_float(cell), as_float(cell), cell_low, cell_high);
      upper.put(w, where_equal(as_int(cell_low), parity, low), where_equal(as_int(cell_high), parity, high));
      if constexpr (kBoth) {
        const IVec second = parity + 2;
        lower.put(w, where_equal(as_int(cell_low), second, low),
                  where_equal(as_int(cell_high), second, high));
      }
    } else {
      Vec g_next;
      IVec cell_next;
      above.at(w / 2 + 1, g_next, cell_next);
      interleave(where_equal(cell, splat(4), g),
                 where_equal(cell, splat(5), g) + where_equal(cell_next, splat(3), g_next), low, high);
      upper.put(w, low, high);
      if constexpr (kBoth) {
        Vec even_lanes = where_equal(cell, splat(7), g);
        Vec odd_lanes = where_equal(cell, splat(8), g) + where_equal(cell_next, splat(6), g_next);
        if constexpr (kBelow) {
          below.at(w / 2, g, cell);
          below.at(w / 2 + 1, g_next, cell_next);
          even_lanes += where_equal(cell, splat(1), g);
          odd_lanes += where_equal(cell, splat(2), g);
          odd_lanes += where_equal(cell_next, splat(0), g_next);
        }
        interleave(even_lanes, odd_lanes, low, high);
        lower.put(w, low, high);
      }
    }
  }
}

template <int K, class T, class O>
void gather_rows(const PoolBackward<T, O>& call) {
  const int64_t height = call.rows.size, width = call.columns.size, outputs = call.columns.outputs;
  const int64_t windows = call.rows.outputs, pairs = (height + 1) / 2, planes = call.n * call.c;
  const bool dense_x = call.x_h == width && call.x_c == height * width && call.x_n == call.c * call.x_c;
  const bool dense_g = call.g_h == outputs && call.g_c == windows * outputs &&
                       call.g_n == call.c * call.g_c && call.o_h == call.g_h && call.o_c == call.g_c &&
                       call.o_n == call.g_n;
  parallel(call.context, planes * pairs, 8192 / width + 1, [&](int64_t begin, int64_t end) {
    // what lies behind a row of a dense tensor is ours to overwrite if it is written after it
    const int64_t end_row = end / pairs * height + end % pairs * 2;
    while (begin < end) {
      const int64_t plane = begin / pairs, n = plane / call.c, c = plane % call.c;
      const T* grad = call.grad_out + n * call.g_n + c * call.g_c;
      const O* offsets = call.offsets + n * call.o_n + c * call.o_c;
      T* grad_x = call.grad_x + n * call.x_n + c * call.x_c;
      auto window_row = [&](int64_t oh) {
        if (oh >= windows) return WindowRow<T, O>{grad, offsets, 0, 0};
        const int64_t readable = dense_g ? ((planes - plane) * windows - oh) * outputs : outputs;
        return WindowRow<T, O>{grad + oh * call.g_h, offsets + oh * call.o_h, outputs, readable};
      };
      auto pixel_row = [&](int64_t h) {
        const bool spill = dense_x && width <= 2 * kWidth;
        return PixelRow<T>{grad_x + h * call.x_h, width,
                           spill ? (end_row - plane * height - h) * width : width};
      };
      int64_t a = begin % pairs;
      const int64_t a_end = end - begin < pairs - a ? a + end - begin : pairs;
      begin += a_end - a;
      for (; a < a_end; ++a) {
        const WindowRow<T, O> above = window_row(a);
        const PixelRow<T> upper = pixel_row(2 * a);
        if (2 * a + 1 == height) {
          gather_rows_of<K, false, false>(above, above, width, upper, upper);
        } else if (K == 2 || a + 1 >= windows) {
          gather_rows_of<K, true, false>(above, above, width, upper, pixel_row(2 * a + 1));
        } else {
          gather_rows_of<K, true, true>(above, window_row(a + 1), width, upper, pixel_row(2 * a + 1));
        }
      }
    }
  });
}

// ----------------------------------------------------------------------------------- channels_last

// kVectors * kWidth channels of pixel (h, w), or the first n.
template <int kVectors, class T, class O>
FASTDL_INLINE void gather_channels(const PoolBackward<T, O>& call, const T* grad, const O* offsets, int64_t h,
                                   int64_t w, int64_t oh_first, int64_t oh_last, int64_t ow_first,
                                   int64_t ow_last, int64_t n, T* grad_x) {
  const Axis &rows = call.rows, &columns = call.columns;
  Vec total[kVectors] = {};
  for (int64_t oh = oh_first; oh <= oh_last; ++oh) {
    int64_t kh = h - rows.start(oh);
    if (rows.dilation > 1) {
      if (kh % rows.dilation != 0) continue;
      kh /= rows.dilation;
    }
    const T* g = grad + oh * call.g_h;
    const O* o = offsets + oh * call.o_h;
    for (int64_t ow = ow_first; ow <= ow_last; ++ow) {
      int64_t kw = w - columns.start(ow);
      if (columns.dilation > 1) {
        if (kw % columns.dilation != 0) continue;
        kw /= columns.dilation;
      }
      const int32_t cell = static_cast<int32_t>(kh * columns.kernel + kw);
      for (int i = 0; i < kVectors; ++i) {
        const Vec value = load_first(g + ow * call.g_w + i * kWidth, n, 0.0f);
        total[i] += where_equal(load_cells(o + ow * call.o_w + i * kWidth, n), splat(cell), value);
      }
    }
  }
  for (int i = 0; i < kVectors; ++i) store(grad_x + i * kWidth, total[i], n);
}

// The windows over input i: [first, last], empty if last < first.
inline void windows_over(const Axis& axis, int64_t i, int64_t& first, int64_t& last) {
  const int64_t at = i + axis.padding,
                before = at - axis.span();  // window o covers i if before < o * stride <= at
  first = before < 0 ? 0 : before / axis.stride + 1;
  last = at / axis.stride;
  if (last > axis.outputs - 1) last = axis.outputs - 1;
}

template <class T, class O>
void gather_channels_last(const PoolBackward<T, O>& call) {
  constexpr int kVectors = 4, kBlock = kVectors * kWidth;
  const int64_t height = call.rows.size, width = call.columns.size;
  parallel(call.context, call.n * height * width, 16384 / call.c + 1, [&](int64_t begin, int64_t end) {
    int64_t w = begin % width, h = begin / width % height, n = begin / width / height;
    int64_t oh_first, oh_last, ow_first, ow_last;
    windows_over(call.rows, h, oh_first, oh_last);
    for (; begin < end; ++begin) {
      windows_over(call.columns, w, ow_first, ow_last);
      const T* grad = call.grad_out + n * call.g_n;
      const O* offsets = call.offsets + n * call.o_n;
      T* grad_x = call.grad_x + n * call.x_n + h * call.x_h + w * call.x_w;
      int64_t c = 0;
      for (; c + kBlock <= call.c; c += kBlock) {
        gather_channels<kVectors>(call, grad + c, offsets + c, h, w, oh_first, oh_last, ow_first, ow_last,
                                  kWidth, grad_x + c);
      }
      for (; c < call.c; c += kWidth) {
        const int64_t left = call.c - c < kWidth ? call.c - c : kWidth;
        gather_channels<1>(call, grad + c, offsets + c, h, w, oh_first, oh_last, ow_first, ow_last, left,
                           grad_x + c);
      }
      if (++w < width) continue;
      w = 0;
      if (++h == height) h = 0, ++n;
      windows_over(call.rows, h, oh_first, oh_last);
    }
  });
}

}  // namespace fastdl::cpu
