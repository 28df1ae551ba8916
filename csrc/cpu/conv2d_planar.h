// The inner product of a planar convolution: KB output channels times some vectors of pixels in registers,
// and one load of the packed input for KB products.
#pragma once

#include "conv2d_pack.h"

namespace fastdl::cpu {

// Taps whose sum is one term of the total: a long sum costs digits, and sooner where products are rounded.
#if defined(__AVX2__)
constexpr int64_t kSummedTaps = 32;
#else
constexpr int64_t kSummedTaps = 16;
#endif

// As many accumulators as the registers hold.
constexpr int kTileVectors = 3;
#if defined(__AVX512F__)
constexpr int kTileChannels = 8, kPoolChannels = 6;
#else
constexpr int kTileChannels = 4, kPoolChannels = 3;
#endif

// to[k * pitch + i] = max(floor, bias[k] + sum over t of weight[t * KB + k] * x[offset[t] + i]), i < VB *
// kWidth.
template <int KB, int VB>
void planar_tile(const float* x, const int64_t* offset, int64_t taps, const float* weight, const float* bias,
                 float floor, float* to, int64_t pitch) {
  Vec total[KB][VB];
  FASTDL_UNROLL
  for (int k = 0; k < KB; ++k) {
    FASTDL_UNROLL
    for (int v = 0; v < VB; ++v) total[k][v] = broadcast(bias[k]);
  }
  for (int64_t first = 0; first < taps; first += kSummedTaps) {
    Vec acc[KB][VB] = {};
    const int64_t last = first + kSummedTaps < taps ? first + kSummedTaps : taps;
    for (int64_t t = first; t < last; ++t, weight += KB) {
      const float* from = x + offset[t];
      Vec in[VB];
      FASTDL_UNROLL
      for (int v = 0; v < VB; ++v) in[v] = load(from + v * kWidth);
      FASTDL_UNROLL
      for (int k = 0; k < KB; ++k) {
        FASTDL_UNROLL
        for (int v = 0; v < VB; ++v) acc[k][v] = fma(broadcast(weight[k]), in[v], acc[k][v]);
      }
    }
    FASTDL_UNROLL
    for (int k = 0; k < KB; ++k) {
      FASTDL_UNROLL
      for (int v = 0; v < VB; ++v) total[k][v] += acc[k][v];
    }
  }
  FASTDL_UNROLL
  for (int k = 0; k < KB; ++k) {
    FASTDL_UNROLL
    for (int v = 0; v < VB; ++v) store(to + k * pitch + v * kWidth, max(broadcast(floor), total[k][v]));
  }
}

// The same for n pixels.
template <int KB>
void planar_row(const float* x, const int64_t* offset, int64_t taps, const float* weight, const float* bias,
                float floor, float* to, int64_t pitch, int64_t n) {
  constexpr int VB = KB == 1 ? 8 : KB == 2 ? 6 : kTileVectors;
  int64_t i = 0;
  for (; i + VB * kWidth <= n; i += VB * kWidth) {
    planar_tile<KB, VB>(x + i, offset, taps, weight, bias, floor, to + i, pitch);
  }
  for (; i + 2 * kWidth <= n; i += 2 * kWidth) {
    planar_tile<KB, 2>(x + i, offset, taps, weight, bias, floor, to + i, pitch);
  }
  for (; i + kWidth <= n; i += kWidth) {
    planar_tile<KB, 1>(x + i, offset, taps, weight, bias, floor, to + i, pitch);
  }
  if (i < n) {
    float last[KB * kWidth];
    planar_tile<KB, 1>(x + i, offset, taps, weight, bias, floor, last, kWidth);
    for (int k = 0; k < KB; ++k) store(to + k * pitch + i, load(last + k * kWidth), n - i);
  }
}

// A pooling window's 2 x 2 cells, each a pixel of the convolution with offsets of its own, offset[4 * t +
// cell]: to[k * pitch + i] = max(floor, the largest) and winner[...] = which, by torch's rules: the last NaN,
// else the first maximum.
template <int KB>
void pooled_tile(const float* x, const int64_t* offset, int64_t taps, const float* weight, const float* bias,
                 float floor, float* to, int32_t* winner, int64_t pitch) {
  Vec acc[KB][4];
  FASTDL_UNROLL
  for (int k = 0; k < KB; ++k) {
    FASTDL_UNROLL
    for (int v = 0; v < 4; ++v) acc[k][v] = broadcast(bias[k]);
  }
  for (int64_t t = 0; t < taps; ++t, weight += KB, offset += 4) {
    Vec in[4];
    FASTDL_UNROLL
    for (int v = 0; v < 4; ++v) in[v] = load(x + offset[v]);
    FASTDL_UNROLL
    for (int k = 0; k < KB; ++k) {
      FASTDL_UNROLL
      for (int v = 0; v < 4; ++v) acc[k][v] = fma(broadcast(weight[k]), in[v], acc[k][v]);
    }
  }
  FASTDL_UNROLL
  for (int k = 0; k < KB; ++k) {
    Vec best = acc[k][0];
    IVec which{};
    FASTDL_UNROLL
    for (int v = 1; v < 4; ++v) {
      IVec better = (acc[k][v] > best) | (acc[k][v] != acc[k][v]);
      best = select(better, acc[k][v], best);
      which = select(better, splat(v), which);
    }
    store(to + k * pitch, max(broadcast(floor), best));
    store(winner + k * pitch, which);
  }
}

template <int KB>
void pooled_row(const float* x, const int64_t* offset, int64_t taps, const float* weight, const float* bias,
                float floor, float* to, int32_t* winner, int64_t pitch, int64_t n) {
  for (int64_t i = 0; i < n; i += kWidth) {
    pooled_tile<KB>(x + i, offset, taps, weight, bias, floor, to + i, winner + i, pitch);
  }
}

// The same for a number of channels known at run time, at most kTileChannels or kPoolChannels.
inline void planar_rows(int64_t channels, const float* x, const int64_t* offset, int64_t taps,
                        const float* weight, const float* bias, float floor, float* to, int64_t pitch,
                        int64_t n) {
  using Row = void (*)(const float*, const int64_t*, int64_t, const float*, const float*, float, float*,
                       int64_t, int64_t);
  static constexpr Row kRows[kTileChannels] = {
      planar_row<1>, planar_row<2>, planar_row<3>, planar_row<4>,
#if defined(__AVX512F__)
      planar_row<5>, planar_row<6>, planar_row<7>, planar_row<8>,
#endif
  };
  kRows[channels - 1](x, offset, taps, weight, bias, floor, to, pitch, n);
}

inline void pooled_rows(int64_t channels, const float* x, const int64_t* offset, int64_t taps,
                        const float* weight, const float* bias, float floor, float* to, int32_t* winner,
                        int64_t pitch, int64_t n) {
  using Row = void (*)(const float*, const int64_t*, int64_t, const float*, const float*, float, float*,
                       int32_t*, int64_t, int64_t);
  static constexpr Row kRows[kPoolChannels] = {
      pooled_row<1>, pooled_row<2>, pooled_row<3>,
#if defined(__AVX512F__)
      pooled_row<4>, pooled_row<5>, pooled_row<6>,
#endif
  };
  kRows[channels - 1](x, offset, taps, weight, bias, floor, to, winner, pitch, n);
}

}  // namespace fastdl::cpu
