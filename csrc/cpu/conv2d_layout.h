// How the dense tensors of a convolution lie in memory: planes of pixels, or pixels of channels.
#pragma once

#include "../library.h"
#include "vec.h"

// Loops over accumulators whole: they live in registers if their indices are constants.
#define FASTDL_UNROLL _Pragma("GCC unroll 32")

namespace fastdl::cpu {

// x in every lane, -0 included.
FASTDL_INLINE Vec broadcast(float x) { return x - Vec{}; }

// Whether these are the strides of a dense [N, C, H, W] tensor; what an axis of size 1 has does not matter.
inline bool has_strides(const Tensor& t, int64_t n, int64_t c, int64_t h, int64_t w) {
  const int64_t expected[4] = {n, c, h, w};
  for (int i = 0; i < 4; ++i) {
    if (t.size[i] != 1 && t.stride[i] != expected[i]) return false;
  }
  return true;
}

inline bool is_planar(const Tensor& t) {
  const int64_t w = t.size[3], hw = t.size[2] * w;
  return has_strides(t, t.size[1] * hw, hw, w, 1);
}

// Whether a dense tensor has its channels next to each other. One that could be either is planar.
inline bool is_interleaved(const Tensor& t) {
  const int64_t c = t.size[1], wc = t.size[3] * c;
  return has_strides(t, t.size[2] * wc, 1, wc, c) && !is_planar(t);
}

}  // namespace fastdl::cpu
