// What the conv2d kernels share: strides, layouts, fast division, and what the .cu files offer each other.
#pragma once

#include "../conv2d.h"
#include "activation.cuh"
#include "runtime.cuh"

namespace fastdl {

// Of a tensor [N, C, H, W], in elements.
struct Strides4 {
  int64_t n, c, y, x;
};

inline Strides4 strides_of(const Tensor& t) { return {t.stride[0], t.stride[1], t.stride[2], t.stride[3]}; }

// Whether the tensor is dense with its axes in this order, the slowest first. Strides of axes of size 1 say
// nothing.
inline bool is_dense(const Tensor& t, const int (&order)[4]) {
  int64_t expected = 1;
  for (int i = 3; i >= 0; --i) {
    if (t.size[order[i]] != 1 && t.stride[order[i]] != expected) return false;
    expected *= t.size[order[i]];
  }
  return true;
}
inline bool is_contiguous(const Tensor& t) { return is_dense(t, {0, 1, 2, 3}); }
inline bool is_channels_last(const Tensor& t) { return is_dense(t, {0, 2, 3, 1}); }

// n / d and n % d by a multiplication: exact for 0 <= n < 2^31, a true division above.
struct Divisor {
  int64_t d;
  uint32_t magic, shift;

  Divisor() = default;
  explicit Divisor(int64_t divisor) : d(divisor), magic(0), shift(0) {
    if (d >= int64_t(1) << 31) return;
    while ((int64_t(1) << shift) < d) ++shift;
    magic = static_cast<uint32_t>(
        ((uint64_t(1) << 32) * ((uint64_t(1) << shift) - uint64_t(d))) / uint64_t(d) + 1);
  }

  __device__ __forceinline__ int small(int n) const {  // d < 2^31
    return static_cast<int>((__umulhi(static_cast<uint32_t>(n), magic) + static_cast<uint32_t>(n)) >> shift);
  }
  __device__ __forceinline__ int64_t divide(int64_t n) const {
    if (static_cast<uint64_t>(n) >> 31 != 0) return n / d;
    if (d >> 31 != 0) return 0;
    return small(static_cast<int>(n));
  }
  // n -> (n / d, n % d)
  __device__ __forceinline__ void split(int64_t n, int64_t& quotient, int64_t& remainder) const {
    quotient = divide(n);
    remainder = n - quotient * d;
  }
  __device__ __forceinline__ void split(int n, int& quotient, int& remainder) const {
    quotient = small(n);
    remainder = n - quotient * static_cast<int>(d);
  }
};

// Activations that a convolution applies where it holds many outputs in registers: those of a few
// instructions. The others run as a pass of their own over the output (finish_activation).
inline bool is_cheap(Activation act) {
  return act == Activation::kNone || act == Activation::kReLU || act == Activation::kLeakyReLU;
}
__device__ __forceinline__ float activate_cheap(float x, Activation act, float param) {
  if (act == Activation::kReLU) return x < 0.0f ? 0.0f : x;
  if (act == Activation::kLeakyReLU) return x > 0.0f ? x : x * param;
  return x;
}

template <class T>
inline T at_least_1(T n) {
  return n < 1 ? 1 : n;
}

inline const char* check_grid(int64_t blocks) {
  return blocks > kMaxGridX ? "more blocks than a grid has room for" : nullptr;
}

// An error of ours or of a call.
#define FASTDL_TRY(call)                                    \
  do {                                                      \
    if (const char* fastdl_try = (call)) return fastdl_try; \
  } while (false)

// ---- Between the files; each is described where it is defined ----

const char* finish_activation(const Tensor& out, Activation activation, float param, Context* context);

const char* conv2d_add_partials(const float* partials, int64_t splits, const Tensor& out, Context* context);

bool conv2d_depthwise_covers(const Tensor& x, const Tensor& weight, const Convolution& convolution);
const char* conv2d_depthwise_forward(const Conv2dForward& p, Context* context);
const char* conv2d_depthwise_grad_x(const Conv2dBackward& p, Context* context);
const char* conv2d_depthwise_grad_weight(const Conv2dBackward& p, Context* context);

bool conv2d_direct_covers(const Conv2dForward& p);
const char* conv2d_direct_forward(const Conv2dForward& p, Context* context);
bool conv2d_direct_mma_covers(const Conv2dForward& p);
const char* conv2d_direct_mma(const Conv2dForward& p, Context* context);
bool conv2d_direct_pool_covers(const Conv2dMaxPool2d& p);
const char* conv2d_direct_pool(const Conv2dMaxPool2d& p, Context* context);
bool conv2d_direct_grad_weight_covers(const Conv2dBackward& p);
const char* conv2d_direct_grad_weight(const Conv2dBackward& p, Context* context);

}  // namespace fastdl
