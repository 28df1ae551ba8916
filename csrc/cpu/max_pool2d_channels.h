// Forward, channels_last: vectors of channels, every cell of a window a load.
#pragma once

#include "max_pool2d_forward.h"

namespace fastdl::cpu {

// The window of one output pixel: its first cell inside the input and how many cells are inside each way.
struct Inside {
  int64_t first;            // kh * KW + kw
  int64_t rows, columns;    // 0: no cell is inside
  int64_t x_row, x_column;  // from one cell to the next, in elements
  int64_t kernel;           // KW
};

// kVectors * kWidth channels, or the first n (kVectors == 1); p: the first cell inside.
template <int kVectors, class T, class O>
FASTDL_INLINE void pool_channels(const T* p, const Inside& window, int64_t n, T* out, O* offsets) {
  Vec best[kVectors];
  IVec winner[kVectors];
  const bool none = window.rows <= 0 || window.columns <= 0;
  for (int i = 0; i < kVectors; ++i) {
    best[i] = none ? splat(kMinusInf) : load_first(p + i * kWidth, n, kMinusInf);
    winner[i] = splat(static_cast<int32_t>(window.first));
  }
  int64_t column = 1;  // cell (0, 0) is taken
  for (int64_t row = 0; row < window.rows; ++row, column = 0) {
    const T* at = p + row * window.x_row + column * window.x_column;
    int32_t cell = static_cast<int32_t>(window.first + row * window.kernel + column);
    for (; column < window.columns; ++column, at += window.x_column, ++cell) {
      for (int i = 0; i < kVectors; ++i) {
        take(best[i], winner[i], load_first(at + i * kWidth, n, kMinusInf), splat(cell));
      }
    }
  }
  for (int i = 0; i < kVectors; ++i) {
    store(out + i * kWidth, best[i], n);
    store_cells(offsets + i * kWidth, winner[i], n);
  }
}

// Large windows: cell by cell, all channels of each, so that memory is read in order; the best so far of
// `kTile` channels lie in the cache.
template <class T, class O>
void pool_many_cells(const T* p, const Inside& window, int64_t channels, T* out, O* offsets) {
  constexpr int64_t kTile = 1024;
  alignas(64) float best[kTile];
  alignas(64) int32_t winner[kTile];
  for (int64_t begin = 0; begin < channels; begin += kTile) {
    const int64_t tile = channels - begin < kTile ? channels - begin : kTile;
    for (int64_t c = 0; c < tile; c += kWidth) {
      store(best + c, splat(kMinusInf)), store(winner + c, splat(static_cast<int32_t>(window.first)));
    }
    for (int64_t row = 0; row < window.rows; ++row) {
      for (int64_t column = 0; column < window.columns; ++column) {
        const T* at = p + begin + row * window.x_row + column * window.x_column;
        const IVec cell = splat(static_cast<int32_t>(window.first + row * window.kernel + column));
        for (int64_t c = 0; c < tile; c += kWidth) {
          Vec b = load(best + c);
          IVec w = load(winner + c);
          take(b, w, load_first(at + c, tile - c, kMinusInf), cell);
          store(best + c, b), store(winner + c, w);
        }
      }
    }
    for (int64_t c = 0; c < tile; c += kWidth) {
      store(out + begin + c, load(best + c), tile - c);
      store_cells(offsets + begin + c, load(winner + c), tile - c);
    }
  }
}

template <class T, class O>
void pool_channels_last(const PoolForward<T, O>& call) {
  constexpr int kVectors = 4, kBlock = kVectors * kWidth;
  // From memory, which the machine does not see coming: the rows of a window are far apart. From the cache it
  // costs more than it gains.
  constexpr int64_t kFarBytes = 16 << 20, kAhead = 8;  // outputs
  const bool far =
      call.n * call.c * call.rows.size * call.columns.size * static_cast<int64_t>(sizeof(T)) >= kFarBytes;
  const Axis rows = call.rows, columns = call.columns;
  const int64_t pixels = call.n * rows.outputs * columns.outputs;
  const bool many = call.cells() >= 32 && pixels >= 2 * call.context->num_threads;
  const int64_t blocks = many ? 1 : (call.c + kBlock - 1) / kBlock;
  const int64_t channels = many || call.c < kBlock ? call.c : kBlock;
  parallel(call.context, pixels * blocks, call.grain(channels), [&](int64_t begin, int64_t end) {
    int64_t block = begin % blocks, pixel = begin / blocks;
    int64_t ow = pixel % columns.outputs, oh = pixel / columns.outputs % rows.outputs;
    int64_t n = pixel / columns.outputs / rows.outputs;
    Inside window;
    window.x_row = call.x_h * rows.dilation, window.x_column = call.x_w * columns.dilation;
    window.kernel = columns.kernel;
    while (begin < end) {
      const int64_t top = rows.start(oh), left = columns.start(ow);
      const int64_t kh = rows.first(top), kw = columns.first(left);
      window.first = kh * columns.kernel + kw;
      window.rows = rows.end(top) - kh, window.columns = columns.end(left) - kw;
      const T* x = call.x + n * call.x_n + (top + kh * rows.dilation) * call.x_h +
                   (left + kw * columns.dilation) * call.x_w;
      const int64_t to = n * call.out_n + oh * call.out_h + ow * call.out_w;
      for (; block < blocks && begin < end; ++block, ++begin) {
        int64_t c = block * kBlock;
        if (many) {
          pool_many_cells(x, window, call.c, call.out + to, call.offsets + to);
          continue;
        }
        if (c + kBlock <= call.c) {
          if (far) {
            const T* ahead = x + c + kAhead * columns.stride * call.x_w;
            const int64_t new_columns = columns.stride < window.columns ? columns.stride : window.columns;
            for (int64_t row = 0; row < window.rows; ++row)
              for (int64_t column = 0; column < new_columns; ++column)
                for (int i = 0; i < kVectors; ++i)
                  __builtin_prefetch(ahead + row * window.x_row + column * call.x_w + i * kWidth);
          }
          pool_channels<kVectors>(x + c, window, kWidth, call.out + to + c, call.offsets + to + c);
          continue;
        }
        for (; c + kWidth <= call.c; c += kWidth) {
          pool_channels<1>(x + c, window, kWidth, call.out + to + c, call.offsets + to + c);
        }
        if (c < call.c) pool_channels<1>(x + c, window, call.c - c, call.out + to + c, call.offsets + to + c);
      }
      block = 0;
      if (++ow == columns.outputs) {
        ow = 0;
        if (++oh == rows.outputs) oh = 0, ++n;
      }
    }
  });
}

}  // namespace fastdl::cpu
