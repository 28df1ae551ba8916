// Backward for windows that are large or overlap much: grad_x is set to zero a plane (channels_last: an image) at a
// time and, still in cache, added to in index order: one addition per output. Half precision sums in floats of its
// own.
#pragma once

#include "max_pool2d_gather.h"

namespace fastdl::cpu {

// Where the sums of a plane or an image lie: pixel (h, w) at h * row + w * column.
struct Sums {
  float* data;
  int64_t row, column;
};

// Where cells lie from the window's corner, by a table.
struct TabledCells {
  static constexpr bool kAlwaysInside = true;
  const int64_t* places;
  int64_t corner = 0, step = 0;

  void row_of_windows(const Sums& sums, int64_t top, int64_t left, int64_t stride) {
    corner = top * sums.row + left * sums.column, step = stride * sums.column;
  }
  void next() { corner += step; }
  int64_t operator()(int64_t cell) const { return corner + places[cell]; }
};

// The same by division; -1 for a cell outside, which a window without a cell inside names.
struct ComputedCells {
  static constexpr bool kAlwaysInside = false;
  Axis rows, columns;
  int64_t top = 0, left = 0, step = 0, row = 0, column = 0;

  void row_of_windows(const Sums& sums, int64_t first_row, int64_t first_column, int64_t stride) {
    top = first_row, left = first_column, step = stride, row = sums.row, column = sums.column;
  }
  void next() { left += step; }
  int64_t operator()(int64_t cell) const {
    const int64_t h = top + cell / columns.kernel * rows.dilation, w = left + cell % columns.kernel * columns.dilation;
    return h >= 0 && h < rows.size && w >= 0 && w < columns.size ? h * row + w * column : -1;
  }
};

// Adds the gradients of one plane's windows (channels == 1), or of those of `channels` side by side. Windows that do not
// overlap (!kAdd) have every pixel at most once.
template <bool kChannels, bool kAdd, class T, class O, class Cells>
void add_windows(const PoolBackward<T, O>& call, const T* grad, const O* offsets, int64_t channels, Cells cells,
                 const Sums& sums) {
  const int64_t height = call.rows.outputs, width = call.columns.outputs, g_w = call.g_w, o_w = call.o_w;
  const int64_t left = call.columns.start(0), step = call.columns.stride;
  float* data = sums.data;
  for (int64_t oh = 0; oh < height; ++oh) {
    const T* g = grad + oh * call.g_h;
    const O* o = offsets + oh * call.o_h;
    cells.row_of_windows(sums, call.rows.start(oh), left, step);
    if (!kChannels && g_w == 1 && o_w == 1) {
#pragma GCC unroll 4
      for (int64_t ow = 0; ow < width; ++ow, cells.next()) {
        const int64_t at = cells(o[ow]);
        if (Cells::kAlwaysInside || at >= 0) data[at] = to_float(g[ow]) + (kAdd ? data[at] : 0.0f);
      }
      continue;
    }
    for (int64_t ow = 0; ow < width; ++ow, g += g_w, o += o_w, cells.next()) {
      for (int64_t c = 0; c < (kChannels ? channels : 1); ++c) {
        const int64_t at = cells(o[c]);
        if (Cells::kAlwaysInside || at >= 0) data[at + c] = to_float(g[c]) + (kAdd ? data[at + c] : 0.0f);
      }
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
  auto covered = [](const Axis& axis) { return axis.padding == 0 || axis.dilation <= axis.size; };
  const bool table = cells <= kMostPlaces && covered(rows) && covered(columns);

  // units of work: planes, or images by blocks of channels
  int64_t threads = call.context->num_threads;
  if (call.n * call.c * pixels < 32768) threads = 1;
  int64_t blocks = kChannels ? 1 : call.c;
  if (kChannels && call.n < threads) blocks = threads < call.c / kWidth ? threads : call.c / kWidth;
  if (blocks < 1) blocks = 1;
  const int64_t units = call.n * blocks, ranges = units < threads ? units : threads;
  const int64_t most = (call.c + blocks - 1) / blocks;  // channels of a unit
  const int64_t sum_bytes = kDirect ? 0 : (pixels * most * 4 + 63) / 64 * 64;
  const int64_t table_bytes = table ? cells * 8 : 0;
  char* memory = static_cast<char*>(call.context->allocate(call.context, ranges * sum_bytes + table_bytes));
  if (memory == nullptr) return "out of memory";
  const int64_t row = kDirect ? call.x_h : columns.size * most, column = kDirect ? call.x_w : most;
  int64_t* places = reinterpret_cast<int64_t*>(memory + ranges * sum_bytes);
  for (int64_t i = 0; table && i < cells; ++i) {
    places[i] = i / columns.kernel * rows.dilation * row + i % columns.kernel * columns.dilation * column;
  }

  const bool overlap = (rows.outputs > 1 && rows.stride < rows.span()) ||
                       (columns.outputs > 1 && columns.stride < columns.span());

  // Dense units are set to zero many at once: those that stay in cache, or all if few of their pixels are added to.
  const int64_t unit_size = pixels * (kChannels ? call.c : 1), windows = rows.outputs * columns.outputs;
  const bool dense = kDirect && column == (kChannels ? call.c : 1) && row == columns.size * column &&
                     (kChannels ? blocks == 1 && call.x_n == unit_size : call.x_c == pixels && call.x_n == call.c * pixels);
  // one window a plane: the planes are the windows of one long row
  const bool one = dense && !kChannels && table && windows == 1 && call.g_c == 1 && call.o_c == 1 &&
                   (call.n == 1 || (call.g_n == call.c && call.o_n == call.c));
  const int64_t together = windows * 16 < pixels ? units : 16384 / unit_size + 1;
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
          const int64_t corner = rows.start(0) * row + columns.start(0) * column;
          float* plane = reinterpret_cast<float*>(grad_x) + corner;
          for (int64_t i = 0; i < zero - unit; ++i, plane += unit_size) plane[places[offsets[i]]] = to_float(grad[i]) + 0.0f;
          n += (block + zero - 1 - unit) / blocks, block = (block + zero - 1 - unit) % blocks;
          unit = zero - 1;
          continue;
        }
        if (!dense) each_run(rows.size, columns.size, channels, row, column, [&](int64_t at, int64_t count) {
          std::memset(sums.data + at, 0, static_cast<size_t>(count) * 4);
        });
        if (!table) {
          add_windows<kChannels, true>(call, grad, offsets, channels, ComputedCells{rows, columns}, sums);
        } else if (overlap) {
          add_windows<kChannels, true>(call, grad, offsets, channels, TabledCells{places}, sums);
        } else {
          add_windows<kChannels, false>(call, grad, offsets, channels, TabledCells{places}, sums);
        }
        if constexpr (!kDirect) {
          for (int64_t h = 0; h < rows.size; ++h) {
            for (int64_t w = 0; w < columns.size; ++w) {
              T* to = grad_x + h * call.x_h + w * call.x_w;
              const float* from = sums.data + h * row + w * column;
              if (!kChannels && call.x_w == 1) {  // the rest of the row
                for (; w + kWidth <= columns.size; w += kWidth, to += kWidth, from += kWidth) store(to, load(from));
                if (w < columns.size) store_first(to, load_first(from, columns.size - w, 0.0f), columns.size - w);
                break;
              }
              for (int64_t i = 0; i < channels; i += kWidth) {
                store_first(to + i, load_first(from + i, channels - i, 0.0f), channels - i);
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
