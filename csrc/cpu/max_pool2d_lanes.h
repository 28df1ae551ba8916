// Planes on the lanes: kWidth planes side by side, one in each lane, a band of rows at a time. What lies in
// memory plane by plane is transposed on its way in and out, so lanes are full however short a row is and
// whatever the stride, and in between a pixel is a vector of channels.
#pragma once

#include <algorithm>

#include "max_pool2d_channels.h"
#include "max_pool2d_gather.h"

namespace fastdl::cpu {

// Vectors i and i + kWidth / 2, their lanes in turns, make 2 * i and 2 * i + 1: log2(kWidth) times, a
// transposition.
FASTDL_INLINE void deal(const Vec (&from)[kWidth], Vec (&to)[kWidth]) {
#pragma GCC unroll 8
  for (int i = 0; i < kWidth / 2; ++i) interleave(from[i], from[i + kWidth / 2], to[2 * i], to[2 * i + 1]);
}

// Lane i of vector j to lane j of vector i.
FASTDL_INLINE void transpose(Vec (&v)[kWidth]) {
  Vec dealt[kWidth];
  deal(v, dealt), deal(dealt, v);
  if constexpr (kWidth == 16) deal(v, dealt), deal(dealt, v);
  if constexpr (kWidth == 8) {
    deal(v, dealt);
#pragma GCC unroll 8
    for (int i = 0; i < kWidth; ++i) v[i] = dealt[i];
  }
}

// A band of `size` elements without gaps in each of some planes, at n * far + c * near; `c` of them to an n.
template <class T>
struct Band {
  T* data;
  int64_t size, c, far, near;

  T* of_plane(int64_t plane) const { return data + plane / c * far + plane % c * near; }
  // Whether `n` elements from a plane's band on are still within those of the planes [plane, end).
  bool spills(int64_t n, int64_t plane, int64_t end) const {
    return near == size && (end <= c || far == c * size) && (end - plane) * size >= n;
  }
};

// `count` planes from `first` on, to or from [size][kWidth] at `tile`. The last vectors end with the band,
// over what those before wrote.
template <class T, class Load>
FASTDL_INLINE void take_lanes(const Band<T>& band, int64_t first, int64_t count, float* tile,
                              const Load& load_some) {
  const T* from[kWidth];
  for (int64_t i = 0; i < kWidth; ++i) from[i] = band.of_plane(first + std::min(i, count - 1));
  for (int64_t next = 0; next < band.size; next += kWidth) {
    const int64_t at = std::max<int64_t>(0, std::min(next, band.size - kWidth)), n = band.size - at;
    Vec v[kWidth];
#pragma GCC unroll 16
    for (int64_t i = 0; i < kWidth; ++i) {
      const bool whole = n >= kWidth || band.spills(kWidth, first + i, first + count);
      v[i] = load_some(from[i] + at, whole ? kWidth : n);
    }
    transpose(v);
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) {
      if (i < n) store(tile + (at + i) * kWidth, v[i]);
    }
  }
}
template <class T, class Store>
FASTDL_INLINE void give_lanes(const Band<T>& band, int64_t first, int64_t count, const float* tile,
                              const Store& store_some) {
  T* to[kWidth];
  for (int64_t i = 0; i < count; ++i) to[i] = band.of_plane(first + i);
  for (int64_t next = 0; next < band.size; next += kWidth) {
    const int64_t at = std::max<int64_t>(0, std::min(next, band.size - kWidth)), n = band.size - at;
    Vec v[kWidth];
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) v[i] = i < n ? load(tile + (at + i) * kWidth) : Vec{};
    transpose(v);
#pragma GCC unroll 16
    for (int64_t i = 0; i < kWidth; ++i) {
      if (i < count) {
        // what lies behind a short band is ours to overwrite if it is written after it
        const bool whole = n >= kWidth || band.spills(kWidth, first + i, first + count);
        store_some(to[i] + at, v[i], whole ? kWidth : n);
      }
    }
  }
}

// The windows or cells along an axis: for each place one range.
struct Ranges {
  static constexpr int64_t kMost = 512;
  int32_t first[kMost], count[kMost];
};

constexpr int64_t kLaneBytes = 96 << 10;  // of a band, with what is made of it

// How many rows to a band, of which there are `rows`: each takes `bytes`, and a band `more`.
inline int64_t band_rows(int64_t rows, int64_t bytes, int64_t more) {
  const int64_t most = std::max<int64_t>(1, (kLaneBytes - more) / bytes), bands = (rows + most - 1) / most;
  return (rows + bands - 1) / bands;
}

// f(first plane, planes, first row, end row, memory) for kWidth planes at a time and bands of `band` of
// `rows` rows, each thread with `bytes` of scratch memory. `cost`: of a plane.
template <class F>
const char* each_band(Context* context, int64_t planes, int64_t rows, int64_t band, int64_t cost,
                      int64_t bytes, const F& f) {
  constexpr int64_t kGrain = 8192;
  const int64_t bands = (rows + band - 1) / band, units = (planes + kWidth - 1) / kWidth * bands;
  const int64_t ranges =
      std::max<int64_t>(1, std::min<int64_t>({context->num_threads, units, planes * cost / kGrain}));
  char* memory = static_cast<char*>(context->allocate(context, ranges * bytes));
  if (memory == nullptr) return "out of memory";
  parallel(context, ranges, 1, [&](int64_t range, int64_t range_end) {
    for (; range < range_end; ++range) {
      for (int64_t unit = units * range / ranges; unit < units * (range + 1) / ranges; ++unit) {
        const int64_t plane = unit / bands * kWidth, row = unit % bands * band;
        f(plane, std::min<int64_t>(kWidth, planes - plane), row, std::min(rows, row + band),
          reinterpret_cast<float*>(memory + range * bytes));
      }
    }
  });
  return nullptr;
}

// Whether planes without gaps go on the lanes: enough of them to fill these, in bands that fit the cache.
inline bool lanes_serve(int64_t planes, const Axis& rows, const Axis& columns) {
  return 2 * planes >= kWidth && std::max(columns.size, columns.outputs) <= Ranges::kMost &&
         (rows.span() * columns.size + 2 * columns.outputs) * kWidth * 4 <= 4 * kLaneBytes;
}
// Rows so short that looking at every cell of a window costs less than lanes that stay empty.
inline bool lanes_are_faster(const Axis& rows, const Axis& columns) {
  return rows.kernel * columns.kernel * columns.size <= 18 * kWidth;
}

template <class T, class O>
const char* pool_lanes(const PoolForward<T, O>& call) {
  constexpr bool kCells = !std::is_same_v<O, NoCells>;
  const Axis &rows = call.rows, &columns = call.columns;
  const int64_t width = columns.size, outputs = columns.outputs;
  Ranges kw;  // the cells inside of the windows at ow
  for (int64_t ow = 0; ow < outputs; ++ow) {
    const int64_t first = columns.first(columns.start(ow));
    kw.first[ow] = static_cast<int32_t>(first);
    kw.count[ow] = static_cast<int32_t>(columns.end(columns.start(ow)) - first);
  }
  const int64_t row_bytes = (rows.stride * width + 2 * outputs) * kWidth * 4;
  const int64_t more = std::max<int64_t>(0, rows.span() - rows.stride) * width * kWidth * 4;
  const int64_t band = band_rows(rows.outputs, row_bytes, more);
  const int64_t in_rows = std::min(rows.size, (band - 1) * rows.stride + rows.span());
  const int64_t bytes = (in_rows * width + 2 * band * outputs) * kWidth * 4;
  const int64_t looks = 4 + std::min<int64_t>(call.cells(), 64);
  const int64_t cost = (rows.size * width + rows.outputs * outputs * looks) / 4;
  auto pool = [&](int64_t plane, int64_t planes, int64_t oh, int64_t oh_end, float* in) {
    const int64_t top = std::max<int64_t>(0, rows.start(oh));
    const int64_t bottom = std::max(top, std::min(rows.size, rows.start(oh_end - 1) + rows.span()));
    float* best = in + in_rows * width * kWidth;
    int32_t* winner = reinterpret_cast<int32_t*>(best + band * outputs * kWidth);
    take_lanes(Band<const T>{call.x + top * width, (bottom - top) * width, call.c, call.x_n, call.x_c}, plane,
               planes, in, [](const T* p, int64_t n) { return load_first(p, n, 0.0f); });

    Inside window;
    window.x_row = rows.dilation * width * kWidth, window.x_column = columns.dilation * kWidth;
    window.kernel = columns.kernel;
    const int64_t size = (oh_end - oh) * outputs, to = oh * outputs;
    float* out = best;
    int32_t* cells = winner;
    for (; oh < oh_end; ++oh) {
      const int64_t start = rows.start(oh), kh = rows.first(start);
      window.rows = rows.end(start) - kh;
      const float* row = in + (start + kh * rows.dilation - top) * width * kWidth;
      for (int64_t ow = 0; ow < outputs; ++ow, out += kWidth, cells += kWidth) {
        window.columns = kw.count[ow];
        window.first = kh * columns.kernel + kw.first[ow];
        const float* cell = row + (columns.start(ow) + kw.first[ow] * columns.dilation) * kWidth;
        if constexpr (kCells) {
          pool_channels<1>(cell, window, kWidth, out, cells);
        } else {
          pool_channels<1>(cell, window, kWidth, out, static_cast<NoCells*>(nullptr));
        }
      }
    }
    give_lanes(Band<T>{call.out + to, size, call.c, call.out_n, call.out_c}, plane, planes, best,
               [](T* p, Vec v, int64_t n) { store(p, v, n); });
    if constexpr (kCells) {
      give_lanes(Band<O>{call.offsets + to, size, call.c, call.out_n, call.out_c}, plane, planes,
                 reinterpret_cast<float*>(winner),
                 [](O* p, Vec v, int64_t n) { store_cells(p, as_int(v), n); });
    }
  };
  return each_band(call.context, call.n * call.c, rows.outputs, band, cost, bytes, pool);
}

// Backward, of no dilation: gathers as gather_channels_last does.
template <class T, class O>
const char* gather_lanes(const PoolBackward<T, O>& call) {
  const Axis &rows = call.rows, &columns = call.columns;
  const int64_t width = columns.size, outputs = columns.outputs;
  const int32_t across = static_cast<int32_t>(columns.stride);
  const int32_t down = static_cast<int32_t>(rows.stride * columns.kernel);
  Ranges over;  // the windows over column w
  for (int64_t w = 0; w < width; ++w) {
    int64_t first, last;
    windows_over(columns, w, first, last);
    over.first[w] = static_cast<int32_t>(first), over.count[w] = static_cast<int32_t>(last - first + 1);
  }
  const int64_t row_bytes = (width + 2 * outputs / rows.stride + 1) * kWidth * 4;
  const int64_t more = (rows.kernel / rows.stride + 1) * 2 * outputs * kWidth * 4;
  const int64_t band = band_rows(rows.size, row_bytes, more);
  const int64_t window_rows = std::min(rows.outputs, (band + rows.kernel) / rows.stride + 2);
  const int64_t bytes = (band * width + 2 * window_rows * outputs) * kWidth * 4;
  const int64_t cost = (rows.size * width + rows.outputs * outputs * (4 + rows.kernel * columns.kernel)) / 4;
  auto gather = [&](int64_t plane, int64_t planes, int64_t h, int64_t h_end, float* sums) {
    int64_t oh, oh_end, none;  // the windows over these rows
    windows_over(rows, h, oh, none), windows_over(rows, h_end - 1, none, oh_end);
    oh = std::min(oh, rows.outputs - 1), oh_end = std::max(oh + 1, oh_end + 1);
    const int64_t size = (oh_end - oh) * outputs, line = outputs * kWidth;
    const int64_t from = oh * outputs, to = h * width;
    float* grad = sums + band * width * kWidth;
    int32_t* cells = reinterpret_cast<int32_t*>(grad + window_rows * line);
    take_lanes(Band<const T>{call.grad_out + from, size, call.c, call.g_n, call.g_c}, plane, planes, grad,
               [](const T* p, int64_t n) { return load_first(p, n, 0.0f); });
    take_lanes(Band<const O>{call.offsets + from, size, call.c, call.o_n, call.o_c}, plane, planes,
               reinterpret_cast<float*>(cells),
               [](const O* p, int64_t n) { return as_float(load_cells(p, n)); });

    const int64_t sizes = (h_end - h) * width, first = oh;
    float* sum = sums;
    for (; h < h_end; ++h) {
      int64_t last;
      windows_over(rows, h, oh, last);
      const int64_t kh = h - rows.start(oh), above = last - oh + 1;
      for (int64_t w = 0; w < width; ++w, sum += kWidth) {
        const int64_t left = over.first[w], count = over.count[w];
        int32_t corner = static_cast<int32_t>(kh * columns.kernel + w - columns.start(left));
        int64_t at = (oh - first) * line + left * kWidth;
        Vec total{};
        for (int64_t i = 0; i < above; ++i, at += line, corner -= down) {
          IVec cell = splat(corner);
          for (int64_t j = 0; j < count; ++j, cell -= across) {
            total = add_where_equal(total, load(cells + at + j * kWidth), cell, load(grad + at + j * kWidth));
          }
        }
        store(sum, total);
      }
    }
    give_lanes(Band<T>{call.grad_x + to, sizes, call.c, call.x_n, call.x_c}, plane, planes, sums,
               [](T* p, Vec v, int64_t n) { store(p, v, n); });
  };
  return each_band(call.context, call.n * call.c, rows.size, band, cost, bytes, gather);
}

}  // namespace fastdl::cpu
