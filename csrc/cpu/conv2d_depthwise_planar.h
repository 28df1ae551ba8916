// The inner product of a depthwise convolution in planes: one channel, so that nothing is shared but the
// rows. Some output rows are computed together, and each load of the packed input serves all taps of its
// column in them.
#pragma once

#include "conv2d_pack.h"

namespace fastdl::cpu {

// One vector of pixels in ROWS rows of an R x R convolution of stride STEP: the first n lanes of acc[j] to
// to[j * pitch]. `x`: packed (conv2d_pack.h), from the first row and column on.
template <int R, int STEP, int ROWS>
FASTDL_INLINE void depthwise_tile(const float* x, int64_t plane, int64_t x_pitch, const float* weight,
                                  float bias, float floor, float* to, int64_t pitch, int64_t n) {
  constexpr int PHASES = R < STEP ? R : STEP;
  Vec acc[ROWS];
  FASTDL_UNROLL
  for (int j = 0; j < ROWS; ++j) acc[j] = broadcast(bias);
  FASTDL_UNROLL
  for (int a = 0; a < PHASES; ++a) {
    constexpr int kMost = (R - 1) / STEP;  // furthest row of a phase
    FASTDL_UNROLL
    for (int i = 0; i < ROWS + kMost; ++i) {
      FASTDL_UNROLL
      for (int s = 0; s < R; ++s) {
        const Vec in = load(x + (a * PHASES + s % STEP) * plane + i * x_pitch + s / STEP);
        FASTDL_UNROLL
        for (int j = 0; j < ROWS; ++j) {
          const int r = (i - j) * STEP + a;
          if (i >= j && r < R) acc[j] = fma(broadcast(weight[r * R + s]), in, acc[j]);
        }
      }
    }
  }
  FASTDL_UNROLL
  for (int j = 0; j < ROWS; ++j) store(to + j * pitch, max(broadcast(floor), acc[j]), n);
}

// rows x width pixels.
template <int R, int STEP>
void depthwise_rows(const float* x, int64_t plane, int64_t x_pitch, const float* weight, float bias,
                    float floor, float* to, int64_t pitch, int64_t rows, int64_t width) {
  constexpr int ROWS = 4;
  int64_t y = 0;
  for (; y + ROWS <= rows; y += ROWS) {
    for (int64_t i = 0; i < width; i += kWidth) {
      depthwise_tile<R, STEP, ROWS>(x + y * x_pitch + i, plane, x_pitch, weight, bias, floor,
                                    to + y * pitch + i, pitch, width - i);
    }
  }
  for (; y < rows; ++y) {
    for (int64_t i = 0; i < width; i += kWidth) {
      depthwise_tile<R, STEP, 1>(x + y * x_pitch + i, plane, x_pitch, weight, bias, floor, to + y * pitch + i,
                                 pitch, width - i);
    }
  }
}

using DepthwiseRows = void (*)(const float*, int64_t, int64_t, const float*, float, float, float*, int64_t,
                               int64_t, int64_t);

// The kernel for a square of 3, 5 or 7 with one stride of 1 or 2, no dilation and one output per group; else
// nullptr.
inline DepthwiseRows depthwise_of(const Problem& p) {
  const bool square = p.channels == 1 && p.outputs == 1 && p.kernel[0] == p.kernel[1] &&
                      p.stride[0] == p.stride[1] && p.dilation[0] == 1 && p.dilation[1] == 1;
  if (!square || p.stride[0] > 2) return nullptr;
  const bool two = p.stride[0] == 2;
  switch (p.kernel[0]) {
    case 3:
      return two ? depthwise_rows<3, 2> : depthwise_rows<3, 1>;
    case 5:
      return two ? depthwise_rows<5, 2> : depthwise_rows<5, 1>;
    case 7:
      return two ? depthwise_rows<7, 2> : depthwise_rows<7, 1>;
    default:
      return nullptr;
  }
}

}  // namespace fastdl::cpu
