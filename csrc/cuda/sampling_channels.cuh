// The ops that sample an image: what the thread of an output pixel does with `count` channels, kLanes at a
// time. These must be neighbours in the image's memory unless kLanes is 1. `stride` is the image's.
#pragma once

#include "sampling.cuh"

namespace fastdl::sampling {

// How many blocks a multiprocessor is to have registers for; there is no more room on Turing.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr int kManyBlocks = 4;
#else
constexpr int kManyBlocks = 5;
#endif

// out = the channels' samples, a plane apart.
template <int kLanes, class T, class Out>
__device__ __forceinline__ void sample_channels(bool nearest, const Cell& cell, const Taps& taps,
                                                const T* image, const int64_t* stride, int64_t count,
                                                Out* out, int64_t plane) {
  if (nearest) {
    for (int64_t c = 0; c < count; c += kLanes, image += kLanes * stride[1]) {
      const Vec<float, kLanes> value = load_tap<kLanes>(image, taps, 0);
#pragma unroll
      for (int i = 0; i < kLanes; ++i, out += plane) *out = from_float<Out>(value[i]);
    }
    return;
  }
  const float w00 = weight_of(cell, 0), w01 = weight_of(cell, 1), w10 = weight_of(cell, 2),
              w11 = weight_of(cell, 3);
#pragma unroll(kLanes == 1 ? 4 : 1)
  for (int64_t c = 0; c < count; c += kLanes, image += kLanes * stride[1]) {
    const Vec<float, kLanes> v00 = load_tap<kLanes>(image, taps, 0), v01 = load_tap<kLanes>(image, taps, 1);
    const Vec<float, kLanes> v10 = load_tap<kLanes>(image, taps, 2), v11 = load_tap<kLanes>(image, taps, 3);
#pragma unroll
    for (int i = 0; i < kLanes; ++i, out += plane) {
      const float upper = __fmaf_rn(v01[i], w01, v00[i] * w00);
      *out = from_float<Out>(__fmaf_rn(v11[i], w11, __fmaf_rn(v10[i], w10, upper)));
    }
  }
}

// The sum over the channels of grad d out / d (gx, gy), but for the axes' scale. Pixels outside the input
// count as zeros, also in d out.
struct Slope {
  float x, y;
};

template <int kLanes, class T, class Grad>
__device__ __forceinline__ Slope slope_of_channels(const Cell& cell, const Taps& taps, const T* image,
                                                   const int64_t* stride, int64_t count, const Grad* grad,
                                                   int64_t grad_stride) {
  float dx = 0.0f, dy = 0.0f;
#pragma unroll(kLanes == 1 ? 4 : 1)
  for (int64_t c = 0; c < count; c += kLanes, image += kLanes * stride[1]) {
    const Vec<float, kLanes> v00 = load_tap<kLanes>(image, taps, 0), v01 = load_tap<kLanes>(image, taps, 1);
    const Vec<float, kLanes> v10 = load_tap<kLanes>(image, taps, 2), v11 = load_tap<kLanes>(image, taps, 3);
#pragma unroll
    for (int i = 0; i < kLanes; ++i, grad += grad_stride) {
      const float value = to_float(*grad);
      dx += value * ((v01[i] - v00[i]) * (1.0f - cell.fy) + (v11[i] - v10[i]) * cell.fy);
      dy += value * ((v10[i] - v00[i]) * (1.0f - cell.fx) + (v11[i] - v01[i]) * cell.fx);
    }
  }
  return {dx * cell.slope_x, dy * cell.slope_y};
}

}  // namespace fastdl::sampling
