// What forward and backward agree on to the last bit: the parameters of a channel, the pre-activation, and
// the mask of the relu behind it.
#pragma once

#include "activation.cuh"
#include "batch_norm_cut.cuh"

namespace fastdl {
namespace batch_norm {

// [C] of float or of x's dtype, or absent.
struct Param {
  void* data = nullptr;
  bool as_x = false;
};

inline Param param_of(const Tensor& tensor, DType x) { return {tensor.data, tensor.dtype == x}; }

template <class T>
__device__ __forceinline__ float read(const Param& p, int64_t i, float otherwise) {
  if (!p.data) return otherwise;
  return p.as_x ? to_float(static_cast<const T*>(p.data)[i]) : static_cast<const float*>(p.data)[i];
}

template <class T>
__device__ __forceinline__ void write(const Param& p, int64_t i, float value) {
  if (!p.data) return;
  if (p.as_x) {
    static_cast<T*>(p.data)[i] = from_float<T>(value);
  } else {
    static_cast<float*>(p.data)[i] = value;
  }
}

__device__ __forceinline__ float invstd_of(float var, float eps) {
  return __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(var, eps)));
}

// (x - mean) * scale + bias with one fused rounding, whatever surrounds it.
__device__ __forceinline__ float preactivation(float x, float mean, float scale, float bias) {
  return __fmaf_rn(__fsub_rn(x, mean), scale, bias);
}

// As it is in memory.
template <class T>
__device__ __forceinline__ float rounded(float x) {
  return to_float(from_float<T>(x));
}

// grad * act'(z) with z = preactivation(...). Which side of a kink: that of z in x's dtype, as mask, out and
// torch have it.
template <bool kAny, class T>
__device__ __forceinline__ float grad_at(float grad, float z, Activation act, float param) {
  if constexpr (!kAny) {
    const bool passes = act == Activation::kReLU ? !(rounded<T>(z) <= 0.0f) : rounded<T>(z) > 0.0f;
    return passes ? grad : act == Activation::kReLU ? 0.0f : grad * param;
  } else {
    const bool kinked = act == Activation::kReLU || act == Activation::kLeakyReLU || act == Activation::kELU;
    return activation_grad_at(grad, kinked ? rounded<T>(z) : z, act, param);
  }
}

// Bits of the mask for N neighbours, N <= 8: i is set unless out[i] <= 0.
template <class T, int N>
__device__ __forceinline__ unsigned relu_bits(const Vec<T, N>& out) {
  unsigned bits = 0;
#pragma unroll
  for (int i = 0; i < N; ++i) bits |= unsigned(!(to_float(out[i]) <= 0.0f)) << i;
  return bits;
}

// Writes N bits at `offset`, a multiple of N. Four come together with their neighbour's in a byte: reached by
// whole warps, neighbours in memory being neighbours of even and odd threadIdx.x.
template <int N>
__device__ __forceinline__ void write_bits(uint8_t* mask, int64_t offset, unsigned bits, bool inside) {
  static_assert(N == 4 || N == 8, "half a byte or a byte");
  if constexpr (N == 4) {
    if (!inside) bits = 0;
    bits |= __shfl_xor_sync(kFullMask, bits, 1) << 4;
    inside = inside && threadIdx.x % 2 == 0;
  }
  if (inside) mask[offset >> 3] = static_cast<uint8_t>(bits);
}

// N bits at `offset`, a multiple of N.
__device__ __forceinline__ unsigned read_bits(const uint8_t* mask, int64_t offset) {
  return unsigned(__ldg(mask + (offset >> 3))) >> (offset & 7);
}

// The activations that most kernels know, those of a comparison; the rest, of many instructions, is for
// kernels that take one vector at a time (kAny).
inline bool simple(Activation act) {
  return act == Activation::kNone || act == Activation::kReLU || act == Activation::kLeakyReLU;
}

template <bool kAny, int N>
__device__ __forceinline__ void activate_all(Vec<float, N>& y, Activation act, float param) {
  if (act == Activation::kReLU) {
#pragma unroll
    for (int i = 0; i < N; ++i) y[i] = activate(y[i], Activation::kReLU, param);
  } else if (kAny || act == Activation::kLeakyReLU) {
#pragma unroll
    for (int i = 0; i < N; ++i) y[i] = activate(y[i], kAny ? act : Activation::kLeakyReLU, param);
  }
}

// N elements at p, of which `left` exist (the rest is 0): one load where `wide`, else one by one.
template <int N, class T>
__device__ __forceinline__ Vec<T, N> load_some(const T* p, int64_t left, bool wide) {
  if (wide && left >= N) return load<N, Cache::kStreaming>(p);
  Vec<T, N> value = {};
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if (i < left) value[i] = p[i];
  }
  return value;
}
template <int N, class T>
__device__ __forceinline__ void store_some(T* p, const Vec<T, N>& value, int64_t left, bool wide) {
  if (wide && left >= N) {
    store<Cache::kStreaming>(p, value);
    return;
  }
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if (i < left) p[i] = value[i];
  }
}

template <class T, int N>
__device__ __forceinline__ Vec<T, N> narrow(const Vec<float, N>& value) {
  Vec<T, N> raw;
  if constexpr (sizeof(T) == 2 && N % 2 == 0) {
#pragma unroll
    for (int i = 0; i < N; i += 2) {
      const uint32_t two = pack2(T{}, value[i], value[i + 1]);
      raw[i].bits = static_cast<uint16_t>(two);
      raw[i + 1].bits = static_cast<uint16_t>(two >> 16);
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) raw[i] = from_float<T>(value[i]);
  }
  return raw;
}

// ---- Walking x as one flat array, where a vector's elements are of several channels or not aligned ----

// The elements of a block of threads: `tile` of them from `begin` on. A table in shared memory holds the
// parameters of their channels: entry k is that of channel (first line + k) % C, a line being what lies side
// by side of one channel.
struct Flat {
  int64_t begin, line;
  int entries;
};

template <int V>
__device__ __forceinline__ Flat flat_of(int64_t channels, int64_t s) {
  constexpr int kTile = kThreads * V;
  Flat flat;
  flat.begin = int64_t(gridDim.x - 1 - blockIdx.x) * kTile;  // backwards: see batch_norm_forward.cu
  flat.line = flat.begin / s;
  const int64_t lines = (kTile - 1) / s + 2;
  flat.entries = static_cast<int>(lines < channels ? lines : channels);
  return flat;
}

// fn(i, entry) for the V elements from `offset` on.
template <int V, class Fn>
__device__ __forceinline__ void for_flat(const Flat& flat, int64_t offset, int64_t s, Fn fn) {
  int64_t position = offset - flat.line * s;
  const int64_t lines = position / s;
  position -= lines * s;
  int entry = static_cast<int>(lines % flat.entries);
#pragma unroll
  for (int i = 0; i < V; ++i) {
    fn(i, entry);
    if (++position == s) {
      position = 0;
      if (++entry == flat.entries) entry = 0;
    }
  }
}

inline int64_t flat_entries(const Shape& shape, int v) {
  const int64_t lines = (int64_t(kThreads) * v - 1) / shape.s + 2;
  return lines < shape.c ? lines : shape.c;
}

}  // namespace batch_norm
}  // namespace fastdl
