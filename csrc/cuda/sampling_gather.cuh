// The ops that sample an image: sums over what sampled an input pixel, and over parts of a batch that shares
// one image.
#pragma once

#include "sampling_tiles.cuh"

namespace fastdl::sampling {

// Of some channels of a pixel.
template <int kChannels>
struct Total {
  float v[kChannels];
};

struct AddTotals {
  template <class V>
  __device__ __forceinline__ V operator()(V a, const V& b) const {
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof(a.v) / sizeof(float)); ++i) a.v[i] += b.v[i];
    return a;
  }
};

// Adds weight * grad for those of the channels that are real.
template <int kChannels, class Grad>
__device__ __forceinline__ void add_channels(const Grad* grad, int64_t stride, int real, float weight,
                                             Total<kChannels>& total) {
#pragma unroll
  for (int i = 0; i < kChannels; ++i)
    if (i < real) total.v[i] = __fmaf_rn(weight, to_float(grad[i * stride]), total.v[i]);
}

template <int kChannels, class Out>
__device__ __forceinline__ void store_channels(Out* out, int64_t plane, int real,
                                               const Total<kChannels>& total) {
#pragma unroll
  for (int i = 0; i < kChannels; ++i)
    if (i < real) out[i * plane] = from_float<Out>(total.v[i]);
}

// Where one image serves many samples: in how many parts these are summed, that the device has enough blocks.
inline int64_t parts_of(int64_t samples, int64_t blocks, const Device& device) {
  const int64_t wanted = ceil_div(int64_t{4} * device.multiprocessors, blocks);
  const int64_t parts = samples < wanted ? samples : wanted;
  return parts < 1 ? 1 : parts;
}

namespace {

// grad_input = sum over parts of partial [parts][count].
template <class Out>
__global__ void __launch_bounds__(kThreads)
    sum_parts_kernel(const float* partial, Out* grad_input, int64_t parts, int64_t count) {
  for (int64_t i = global_thread(); i < count; i += grid_threads()) {
    float total = 0.0f;
    for (int64_t part = 0; part < parts; ++part) total += partial[part * count + i];
    grad_input[i] = from_float<Out>(total);
  }
}

}  // namespace

template <class Out>
const char* sum_parts(const float* partial, Out* grad_input, int64_t parts, int64_t count,
                      cudaStream_t stream) {
  return describe(launch(sum_parts_kernel<Out>, grid_of(ceil_div(count, kThreads)), dim3(kThreads), 0, stream,
                         partial, grad_input, parts, count));
}

}  // namespace fastdl::sampling
