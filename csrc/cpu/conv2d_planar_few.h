// The inner product of a planar convolution of stride 1 with few outputs, as the gradient for the input of a
// first layer is. There are not enough products per load of a pixel (conv2d_planar.h has one for each output)
// unless some rows are computed together: each load then serves them all.
#pragma once

#include <type_traits>

#include "conv2d_pack.h"

namespace fastdl::cpu {

constexpr int kFewOutputs = 4;
constexpr int64_t kSomeTaps = 16;  // as exact as a library's blocks, for a few additions more

// One vector of pixels of KB outputs in ROWS rows of a convolution with R rows of taps: the first n lanes of
// acc[k][j] to to[k * to_plane + j * pitch]. `x`: packed (conv2d_pack.h). `weight`: [channels, R, columns,
// KB].
template <int R, int KB, int ROWS>
FASTDL_INLINE void few_tile(const float* x, int64_t plane, int64_t x_pitch, int64_t channels, int64_t columns,
                            int64_t dilation, const float* weight, const float* bias, float floor, float* to,
                            int64_t to_plane, int64_t pitch, int64_t n) {
  Vec total[KB][ROWS];
  FASTDL_UNROLL
  for (int k = 0; k < KB; ++k) {
    FASTDL_UNROLL
    for (int j = 0; j < ROWS; ++j) total[k][j] = broadcast(bias[k]);
  }
  const int64_t some = kSomeTaps / (R * columns) + 1;  // channels whose sum is one term of the total
  for (int64_t first = 0; first < channels; first += some) {
    Vec acc[KB][ROWS] = {};
    const int64_t last = first + some < channels ? first + some : channels;
    for (int64_t c = first; c < last; ++c, x += plane, weight += R * columns * KB) {
      for (int64_t s = 0; s < columns; ++s) {
        FASTDL_UNROLL
        for (int i = 0; i < ROWS + R - 1; ++i) {
          const Vec in = load(x + i * x_pitch + s * dilation);
          FASTDL_UNROLL
          for (int k = 0; k < KB; ++k) {
            FASTDL_UNROLL
            for (int j = 0; j < ROWS; ++j) {
              const int r = i - j;
              if (r < 0 || r >= R) continue;
              acc[k][j] = fma(broadcast(weight[(r * columns + s) * KB + k]), in, acc[k][j]);
            }
          }
        }
      }
    }
    FASTDL_UNROLL
    for (int k = 0; k < KB; ++k) {
      FASTDL_UNROLL
      for (int j = 0; j < ROWS; ++j) total[k][j] += acc[k][j];
    }
  }
  FASTDL_UNROLL
  for (int k = 0; k < KB; ++k) {
    FASTDL_UNROLL
    for (int j = 0; j < ROWS; ++j) {
      store(to + k * to_plane + j * pitch, max(broadcast(floor), total[k][j]), n);
    }
  }
}

// rows x width pixels; `to` has rows of that width.
template <int R, int KB>
void few_rows(const float* x, int64_t plane, int64_t x_pitch, int64_t channels, int64_t columns,
              int64_t dilation, const float* weight, const float* bias, float floor, float* to,
              int64_t to_plane, int64_t rows, int64_t width) {
#if defined(__AVX512F__)
  constexpr int ROWS = KB == 1 ? 8 : 20 / KB;
#else
  constexpr int ROWS = KB == 1 ? 6 : 10 / KB;
#endif
  auto tile = [&](auto count, int64_t y) {
    for (int64_t i = 0; i < width; i += kWidth) {
      few_tile<R, KB, decltype(count)::value>(x + y * x_pitch + i, plane, x_pitch, channels, columns,
                                              dilation, weight, bias, floor, to + y * width + i, to_plane,
                                              width, width - i);
    }
  };
  if (rows < ROWS) {
    for (int64_t y = 0; y < rows; ++y) tile(std::integral_constant<int, 1>{}, y);
    return;
  }
  for (int64_t y = 0; y < rows; y += ROWS) {  // the last ones are computed anew where that fills a tile
    tile(std::integral_constant<int, ROWS>{}, y + ROWS <= rows ? y : rows - ROWS);
  }
}

using FewRows = void (*)(const float*, int64_t, int64_t, int64_t, int64_t, int64_t, const float*,
                         const float*, float, float*, int64_t, int64_t, int64_t);

// The kernel for 3, 5 or 7 rows of taps, stride 1, no dilation from row to row and at most kFewOutputs
// outputs per group; else nullptr.
inline FewRows few_of(const Problem& p) {
  if (p.outputs > kFewOutputs || p.stride[0] != 1 || p.stride[1] != 1 || p.dilation[0] != 1) return nullptr;
  static constexpr FewRows kRows[3][kFewOutputs] = {
      {few_rows<3, 1>, few_rows<3, 2>, few_rows<3, 3>, few_rows<3, 4>},
      {few_rows<5, 1>, few_rows<5, 2>, few_rows<5, 3>, few_rows<5, 4>},
      {few_rows<7, 1>, few_rows<7, 2>, few_rows<7, 3>, few_rows<7, 4>},
  };
  const int64_t r = p.kernel[0];
  return r == 3 || r == 5 || r == 7 ? kRows[(r - 3) / 2][p.outputs - 1] : nullptr;
}

}  // namespace fastdl::cpu
