// Backward for windows that are large or overlap much: grad_x is set to zero a plane (channels_last: an
// image) at a time and, still in cache, added to in index order: one addition per output. Half precision sums
// in floats of its own.
#pragma once

#include "max_pool2d_gather.h"

namespace fastdl::cpu {

// Where the sums of a plane or an image lie: pixel (h, w) at h * row + w * column.
struct Sums {
  float* data;
  int64_t row, column;
};

// Where the cell of a window lies, or -1 for one that is not inside the input: a window without a cell inside
// names such a cell, and what is in memory may name any. No address is made of an offset not looked at.

// By a table, over sums without gaps: what is inside [0, end) is a pixel's. A byte that is no cell is cell 0
// in it, so that windows inside the input (kInside) need no look. kListed: all windows of a plane are one
// row, whose corners lie in a table too; short rows are more beginnings than windows.
template <bool kListed>
struct TabledCells {
  const int64_t* places;  // from the window's corner
  int64_t count, end;
  const int64_t* corners;
  int64_t corner = 0, step = 0;

  void row_of_windows(const Sums& sums, int64_t top, int64_t left, int64_t stride) {
    corner = kListed ? 0 : top * sums.row + left * sums.column, step = stride * sums.column;
  }
  void next() { corner += kListed ? 1 : step; }
  template <bool kInside, class O>
  static constexpr bool kAlways = kInside && sizeof(O) == 1;
  template <bool kInside, class O>
  FASTDL_INLINE int64_t at(O cell) const {
    if (sizeof(O) > 1 && static_cast<uint64_t>(cell) >= static_cast<uint64_t>(count)) return -1;
    const int64_t place = (kListed ? corners[corner] : corner) + places[cell];
    return kInside || static_cast<uint64_t>(place) < static_cast<uint64_t>(end) ? place : -1;
  }
};

// By division.
struct ComputedCells {
  Axis rows, columns;
  int64_t top = 0, left = 0, step = 0, row = 0, column = 0;

  void row_of_windows(const Sums& sums, int64_t first_row, int64_t first_column, int64_t stride) {
    top = first_row, left = first_column, step = stride, row = sums.row, column = sums.column;
  }
  void next() { left += step; }
  template <bool, class>
  static constexpr bool kAlways = false;
  template <bool, class O>
  int64_t at(O cell) const {
    const int64_t h = top + cell / columns.kernel * rows.dilation,
                  w = left + cell % columns.kernel * columns.dilation;
    return h >= 0 && h < rows.size && w >= 0 && w < columns.size ? h * row + w * column : -1;
  }
};

// Adds the gradients of a row of windows, of which those that do not overlap (!kAdd) have a pixel at most
// once.
template <bool kChannels, bool kAdd, bool kInside, class T, class O, class Cells>
FASTDL_INLINE void add_row(const PoolBackward<T, O>& call, const T* g, const O* o, int64_t channels,
                           Cells cells, float* data) {
  constexpr bool kAlways = Cells::template kAlways<kInside, O>;
  const int64_t width = call.columns.outputs, g_w = call.g_w, o_w = call.o_w;
  if (!kChannels && g_w == 1 && o_w == 1) {
#pragma GCC unroll 4
    for (int64_t ow = 0; ow < width; ++ow, cells.next()) {
      const int64_t at = cells.template at<kInside>(o[ow]);
      if (kAlways || at >= 0) data[at] = to_float(g[ow]) + (kAdd ? data[at] : 0.0f);
    }
    return;
  }
  for (int64_t ow = 0; ow < width; ++ow, g += g_w, o += o_w, cells.next()) {
    for (int64_t c = 0; c < (kChannels ? channels : 1); ++c) {
      const int64_t at = cells.template at<kInside>(o[c]);
      if (kAlways || at >= 0) data[at + c] = to_float(g[c]) + (kAdd ? data[at + c] : 0.0f);
    }
  }
}

// Adds the gradients of one plane's windows (channels == 1), or of those of `channels` side by side. Those of
// the rows [inside, inside_end) are all inside the input.
template <bool kChannels, bool kAdd, class T, class O, class Cells>
void add_windows(const PoolBackward<T, O>& call, const T* grad, const O* offsets, int64_t channels,
                 Cells cells, const Sums& sums, int64_t inside, int64_t inside_end) {
  for (int64_t oh = 0; oh < call.rows.outputs; ++oh, grad += call.g_h, offsets += call.o_h) {
    cells.row_of_windows(sums, call.rows.start(oh), call.columns.start(0), call.columns.stride);
    if (oh >= inside && oh < inside_end) {
      add_row<kChannels, kAdd, true>(call, grad, offsets, channels, cells, sums.data);
    } else {
      add_row<kChannels, kAdd, false>(call, grad, offsets, channels, cells, sums.data);
    }
  }
}

// f(first element, count) over the runs of memory of an [H, W, channels] region.
template <class F>
void each_run(int64_t height, int64_t width, int64_t channels, int64_t row, int64_t column, const F& f) {
  if (column == channels && row == width * column) {
    f(int64_t{0}, height * width * channels);
  } else {
    for (int64_t h = 0; h < height; ++h) {
      if (column == channels) {
        f(h * row, width * channels);
      } else {
        for (int64_t w = 0; w < width; ++w) f(h * row + w * column, channels);
      }
    }
  }
}

// kChannels: grad_x, grad_out and offsets all have channels side by side.
template <bool kChannels, class T, class O>
const char* scatter(const PoolBackward<T, O>& call) {
  constexpr bool kDirect = sizeof(T) == 4;
  constexpr int64_t kMostPlaces = 4096;
  const Axis &rows = call.rows, &columns = call.columns;
  const int64_t cells = rows.kernel * columns.kernel, pixels = rows.size * columns.size;

  // units of work: planes, or images by blocks of channels
  int64_t threads = call.context->num_threads;
  if (call.n * call.c * (pixels + 4 * rows.outputs * columns.outputs) < 32768) threads = 1;
  int64_t blocks = kChannels ? 1 : call.c;
  if (kChannels && call.n < threads) blocks = threads < call.c / kWidth ? threads : call.c / kWidth;
  if (blocks < 1) blocks = 1;
  const int64_t units = call.n * blocks, ranges = units < threads ? units : threads;
  const int64_t most = (call.c + blocks - 1) / blocks;  // channels of a unit
  const int64_t sum_bytes = kDirect ? 0 : (pixels * most * 4 + 63) / 64 * 64;
  const int64_t row = kDirect ? call.x_h : columns.size * most, column = kDirect ? call.x_w : most;
  auto covered = [](const Axis& axis) { return axis.padding == 0 || axis.dilation <= axis.size; };
  const bool table =
      cells <= kMostPlaces && covered(rows) && covered(columns) && row == columns.size * column;
  const int64_t table_bytes = !table ? 0 : sizeof(O) == 1 ? 256 * 8 : cells * 8;
  const int64_t windows = rows.outputs * columns.outputs;
  const bool listed = !kChannels && table && columns.outputs < 16 && windows <= 256 && call.g_w == 1 &&
                      call.o_w == 1 && call.g_h == columns.outputs && call.o_h == columns.outputs;
  int64_t corners[256];
  char* memory = static_cast<char*>(call.context->allocate(call.context, ranges * sum_bytes + table_bytes));
  if (memory == nullptr) return "out of memory";
  int64_t* places = reinterpret_cast<int64_t*>(memory + ranges * sum_bytes);
  if (table) {
    std::memset(places, 0, static_cast<size_t>(table_bytes));
    for (int64_t kh = 0, i = 0; kh < rows.kernel; ++kh) {
      for (int64_t kw = 0; kw < columns.kernel; ++kw, ++i) {
        places[i] = kh * rows.dilation * row + kw * columns.dilation * column;
      }
    }
  }
  int64_t inside = 0, inside_end = 0;
  if (columns.padding == 0 && columns.start(columns.outputs - 1) + columns.span() <= columns.size) {
    inside = (rows.padding + rows.stride - 1) / rows.stride;
    const int64_t room = rows.size + rows.padding - rows.span();
    inside_end = room < 0 ? 0 : room / rows.stride + 1;
  }
  const bool all_inside = inside == 0 && inside_end >= rows.outputs;
  for (int64_t i = 0; listed && i < windows; ++i) {
    corners[i] = rows.start(i / columns.outputs) * row + columns.start(i % columns.outputs) * column;
  }
  const TabledCells<false> tabled{places, cells, pixels * column, corners};
  const TabledCells<true> in_list{places, cells, pixels * column, corners};
  PoolBackward<T, O> list = call;
  list.rows.outputs = 1, list.columns.outputs = windows;

  const bool overlap = (rows.outputs > 1 && rows.stride < rows.span()) ||
                       (columns.outputs > 1 && columns.stride < columns.span());

  // Dense units are set to zero many at once: those that stay in cache, or all if few of their pixels are
  // added to.
  const int64_t unit_size = pixels * (kChannels ? call.c : 1);
  const bool dense =
      kDirect && column == (kChannels ? call.c : 1) && row == columns.size * column &&
      (kChannels ? blocks == 1 && call.x_n == unit_size : call.x_c == pixels && call.x_n == call.c * pixels);
  // one window a plane: the planes are the windows of one long row
  const bool one = dense && !kChannels && table && windows == 1 && call.g_c == 1 && call.o_c == 1 &&
                   (call.n == 1 || (call.g_n == call.c && call.o_n == call.c));
  const int64_t together = windows * 16 < pixels ? units : 4096 / unit_size + 1;
  parallel(call.context, ranges, 1, [&](int64_t range, int64_t range_end) {
    for (; range < range_end; ++range) {
      const int64_t end = units * (range + 1) / ranges;
      int64_t zero = units * range / ranges;  // units before are set
      int64_t n = zero / blocks, block = zero % blocks;
      for (int64_t unit = zero; unit < end; ++unit, ++block) {
        if (block == blocks) block = 0, ++n;
        const int64_t c = kChannels ? call.c * block / blocks : block;
        const int64_t channels = kChannels ? call.c * (block + 1) / blocks - c : 1;
        const T* grad = call.grad_out + n * call.g_n + c * call.g_c;
        const O* offsets = call.offsets + n * call.o_n + c * call.o_c;
        T* grad_x = call.grad_x + n * call.x_n + c * call.x_c;
        Sums sums{reinterpret_cast<float*>(memory + range * sum_bytes), row, column};
        if constexpr (kDirect) sums.data = grad_x;
        if (dense && unit == zero) {
          zero = together < end - unit ? unit + together : end;
          std::memset(grad_x, 0, static_cast<size_t>((zero - unit) * unit_size) * 4);
        }
        if (one) {
          TabledCells<false> place = tabled;
          place.row_of_windows(sums, rows.start(0), columns.start(0), 1);
          float* plane = sums.data;
          for (int64_t i = 0; i < zero - unit; ++i, plane += unit_size) {
            const int64_t at = place.template at<false>(offsets[i]);
            if (at >= 0) plane[at] = to_float(grad[i]) + 0.0f;
          }
          n += (block + zero - 1 - unit) / blocks, block = (block + zero - 1 - unit) % blocks;
          unit = zero - 1;
          continue;
        }
        if (!dense)
          each_run(rows.size, columns.size, channels, row, column, [&](int64_t at, int64_t count) {
            std::memset(sums.data + at, 0, static_cast<size_t>(count) * 4);
          });
        if (!table) {
          const ComputedCells computed{rows, columns};
          add_windows<kChannels, true>(call, grad, offsets, channels, computed, sums, inside, inside_end);
        } else if (listed && overlap) {
          add_windows<kChannels, true>(list, grad, offsets, channels, in_list, sums, all_inside ? 0 : 1, 1);
        } else if (listed) {
          add_windows<kChannels, false>(list, grad, offsets, channels, in_list, sums, all_inside ? 0 : 1, 1);
        } else if (overlap) {
          add_windows<kChannels, true>(call, grad, offsets, channels, tabled, sums, inside, inside_end);
        } else {
          add_windows<kChannels, false>(call, grad, offsets, channels, tabled, sums, inside, inside_end);
        }
        if constexpr (!kDirect) {
          for (int64_t h = 0; h < rows.size; ++h) {
            for (int64_t w = 0; w < columns.size; ++w) {
              T* to = grad_x + h * call.x_h + w * call.x_w;
              const float* from = sums.data + h * row + w * column;
              if (!kChannels && call.x_w == 1) {  // the rest of the row
                for (; w + kWidth <= columns.size; w += kWidth, to += kWidth, from += kWidth)
                  store(to, load(from));
                if (w < columns.size) store(to, load_first(from, columns.size - w, 0.0f), columns.size - w);
                break;
              }
              for (int64_t i = 0; i < channels; i += kWidth) {
                store(to + i, load_first(from + i, channels - i, 0.0f), channels - i);
              }
            }
          }
        }
      }
    }
  });
  return nullptr;
}

}  // namespace fastdl::cpu
