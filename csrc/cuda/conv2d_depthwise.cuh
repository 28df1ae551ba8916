// Depthwise convolution (a channel per group), the same number of channels on both sides: what its kernels
// share.
#pragma once

#include "conv2d_common.cuh"

namespace fastdl {

// dst[n, c, p, q] = act(bias[c] + sum over r, s of src[n, c, p * stride - pad_y + r, q * stride - pad_x + s]
// * w[c, r, s]) Forward: src = x, dst = out. Gradient of x with stride 1: src = grad_out, dst = grad_x, the
// taps in reverse order (w_r and w_s negative, `weight` at the last tap) and kernel_size - 1 - padding as
// padding, which may be negative.
template <class T>
struct Depthwise {
  const T* src;
  const T* weight;
  const T* bias;  // or nullptr
  T* dst;
  Strides4 src_at, dst_at;
  int64_t w_c, w_r, w_s;
  int64_t images, channels, src_h, src_w, dst_h, dst_w, pad_y, pad_x;
  Activation act;  // is_cheap
  float param;
  bool src_wide, dst_wide;  // 4 channels side by side, aligned (depthwise_transposed alone asks)
};

// How many accumulators of rows are open at once when rows of src come in one by one.
template <int kR, int kStride>
constexpr int kOpenRows = (kR - 1) / kStride + 1;

// Four channels from c on, of which `channels` exist; stride_c apart.
template <class T>
__device__ __forceinline__ Vec<float, 4> load_channels(const T* p, bool wide, int64_t stride_c,
                                                       int64_t left) {
  if (wide) return load_float<4>(p);
  Vec<float, 4> v;
#pragma unroll
  for (int j = 0; j < 4; ++j) v[j] = j < left ? to_float(p[j * stride_c]) : 0.0f;
  return v;
}
template <class T>
__device__ __forceinline__ void store_channels(T* p, const Vec<float, 4>& v, bool wide, int64_t stride_c,
                                               int64_t left) {
  if (wide) {
    store_float(p, v);
    return;
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (j < left) p[j * stride_c] = from_float<T>(v[j]);
  }
}

// Whether 4 channels are read at once.
template <class T>
bool wide_channels(const void* data, const Strides4& s, int64_t channels) {
  return s.c == 1 && channels % 4 == 0 && s.n % 4 == 0 && s.y % 4 == 0 && s.x % 4 == 0 && aligned<T, 4>(data);
}

// Threads that have neighbours along the channels: a block is `across` vectors of four channels wide, and as
// many columns as there are threads for.
constexpr int kRowThreads = 128;

struct RowBlocks {
  int across, columns;  // of a block: vectors of channels, columns of threads
  int64_t channel_blocks, column_blocks,
      strips;  // of the tensor; the grid has their product times the images
  int64_t strip_rows;
};

// `column_items`, `rows`: what there is to do along each axis. `least`: rows of a strip, at least.
inline RowBlocks row_blocks(int64_t images, int64_t channels, int64_t column_items, int64_t rows,
                            int64_t least, int threads, const Context* context) {
  RowBlocks b = {};
  const int64_t vectors = ceil_div(channels, int64_t(4));
  b.across = static_cast<int>(ceil_div(vectors, ceil_div(vectors, int64_t(kWarp))));
  b.columns = static_cast<int>(min(int64_t(threads / b.across), column_items));
  b.channel_blocks = ceil_div(vectors, int64_t(b.across));
  b.column_blocks = ceil_div(column_items, int64_t(b.columns));
  const int64_t blocks = images * b.channel_blocks * b.column_blocks;
  const int64_t wanted = ceil_div(int64_t(16) * device_properties(context->device).multiprocessors, blocks);
  b.strips = at_least_1(min(wanted, rows / least));
  b.strip_rows = ceil_div(rows, b.strips);
  b.strips = ceil_div(rows, b.strip_rows);
  return b;
}

// weights[tap][4 * across] as floats, by the whole block; no barrier.
template <int kTaps, int kR, class T>
__device__ __forceinline__ void stage_weights(float* weights, const T* weight, int64_t w_c, int64_t w_r,
                                              int64_t w_s, int64_t first_channel, int64_t channels,
                                              int width) {
  for (int i = threadIdx.x; i < kTaps * width; i += blockDim.x) {
    const int tap = i / width, j = i % width;
    const int64_t c = first_channel + j;
    weights[i] = c < channels ? to_float(weight[c * w_c + tap / kR * w_r + tap % kR * w_s]) : 0.0f;
  }
}

// Compiled kernels: 3x3, 5x5, 7x7, strides 1 and 2. fn takes the two as integral constants.
template <class F>
const char* dispatch_window(int64_t size, int64_t stride, F&& fn) {
  return dispatch_int<3, 5, 7>(
      size, [&](auto r) { return dispatch_int<1, 2>(stride, [&](auto s) { return fn(r, s); }); });
}

template <class T>
const char* depthwise_rows(const Depthwise<T>& p, int64_t size, int64_t stride, Context* context);
template <class T>
const char* depthwise_planes(const Depthwise<T>& p, int64_t size, int64_t stride, Context* context);
template <class T>
const char* depthwise_transposed(const Depthwise<T>& p, int64_t size, Context* context);

}  // namespace fastdl
