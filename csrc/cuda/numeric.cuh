// Element types and 16-byte accesses. Kernels compute in float; f16 and bf16 exist in memory only.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../library.h"

#ifndef FASTDL_EMULATED
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace fastdl {

struct f16 {
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};

// Any dtype to float. Exact.
__device__ __forceinline__ float to_float(float x) { return x; }

#ifdef FASTDL_EMULATED
__device__ __forceinline__ float to_float(f16 x) { return emulation::half_to_float(x.bits); }
__device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
__device__ __forceinline__ f16 to_f16(float x) { return {emulation::float_to_half(x)}; }
__device__ __forceinline__ bf16 to_bf16(float x) { return {emulation::float_to_bfloat16(x)}; }
__device__ __forceinline__ uint32_t pack2(f16, float a, float b) {
  return to_f16(a).bits | uint32_t(to_f16(b).bits) << 16;
}
__device__ __forceinline__ uint32_t pack2(bf16, float a, float b) {
  return to_bf16(a).bits | uint32_t(to_bf16(b).bits) << 16;
}
#else
__device__ __forceinline__ float to_float(f16 x) { return __half2float(__ushort_as_half(x.bits)); }
__device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
__device__ __forceinline__ f16 to_f16(float x) { return {__half_as_ushort(__float2half_rn(x))}; }
__device__ __forceinline__ bf16 to_bf16(float x) { return {__bfloat16_as_ushort(__float2bfloat16_rn(x))}; }
// Two elements in one conversion, the first in the low half.
__device__ __forceinline__ uint32_t pack2(f16, float a, float b) {
  const __half2 h = __floats2half2_rn(a, b);
  return __half_as_ushort(__low2half(h)) | uint32_t(__half_as_ushort(__high2half(h))) << 16;
}
__device__ __forceinline__ uint32_t pack2(bf16, float a, float b) {
  const __nv_bfloat162 h = __floats2bfloat162_rn(a, b);
  return __bfloat16_as_ushort(__low2bfloat16(h)) | uint32_t(__bfloat16_as_ushort(__high2bfloat16(h))) << 16;
}
#endif

// Float to T, round to nearest even, NaN stays NaN: from_float<T>(x).
template <class T>
__device__ __forceinline__ T from_float(float x) {
  if constexpr (std::is_same_v<T, f16>) {
    return to_f16(x);
  } else if constexpr (std::is_same_v<T, bf16>) {
    return to_bf16(x);
  } else {
    return static_cast<T>(x);
  }
}

// N elements side by side. `load` and its kin want the address aligned to sizeof(T) * N (at most 16 bytes).
template <class T, int N>
struct alignas(sizeof(T) * N) Vec {
  T v[N];
  __device__ __forceinline__ T& operator[](int i) { return v[i]; }
  __device__ __forceinline__ const T& operator[](int i) const { return v[i]; }
};

// As many T as 16 bytes hold.
template <class T>
constexpr int kVec = 16 / static_cast<int>(sizeof(T));

namespace detail {
template <int kBytes>
struct Word;
template <>
struct Word<1> {
  using type = unsigned char;
};
template <>
struct Word<2> {
  using type = unsigned short;
};
template <>
struct Word<4> {
  using type = unsigned int;
};
template <>
struct Word<8> {
  using type = uint2;
};
template <>
struct Word<16> {
  using type = uint4;
};
template <class V>
using WordOf = typename Word<sizeof(V)>::type;

template <class V>
__device__ __forceinline__ V from_word(WordOf<V> word) {
  V value;
  static_assert(sizeof(V) == sizeof(word), "a vector of 1, 2, 4, 8 or 16 bytes");
  memcpy(&value, &word, sizeof(V));
  return value;
}
template <class V>
__device__ __forceinline__ WordOf<V> to_word(const V& value) {
  WordOf<V> word;
  memcpy(&word, &value, sizeof(V));
  return word;
}
}  // namespace detail

// How an access treats the caches.
enum class Cache {
  kDefault,
  kReadOnly,   // ld.global.nc: nobody writes the tensor while the kernel runs
  kStreaming,  // evict first: touched once
  kL2,         // not in L1: written by other blocks of this kernel
};

template <int N, Cache kCache = Cache::kDefault, class T>
__device__ __forceinline__ Vec<T, N> load(const T* p) {
  using V = Vec<T, N>;
  const auto* word = reinterpret_cast<const detail::WordOf<V>*>(p);
  if constexpr (kCache == Cache::kReadOnly) {
    return detail::from_word<V>(__ldg(word));
  } else if constexpr (kCache == Cache::kStreaming) {
    return detail::from_word<V>(__ldcs(word));
  } else if constexpr (kCache == Cache::kL2) {
    return detail::from_word<V>(__ldcg(word));
  } else {
    return detail::from_word<V>(*word);
  }
}

template <Cache kCache = Cache::kDefault, class T, int N>
__device__ __forceinline__ void store(T* p, const Vec<T, N>& value) {
  static_assert(kCache != Cache::kReadOnly, "a store");
  auto* word = reinterpret_cast<detail::WordOf<Vec<T, N>>*>(p);
  if constexpr (kCache == Cache::kStreaming) {
    __stcs(word, detail::to_word(value));
  } else if constexpr (kCache == Cache::kL2) {
    __stcg(word, detail::to_word(value));
  } else {
    *word = detail::to_word(value);
  }
}

// The same, as floats.
template <int N, Cache kCache = Cache::kDefault, class T>
__device__ __forceinline__ Vec<float, N> load_float(const T* p) {
  const Vec<T, N> raw = load<N, kCache>(p);
  Vec<float, N> value;
#pragma unroll
  for (int i = 0; i < N; ++i) value[i] = to_float(raw[i]);
  return value;
}

template <Cache kCache = Cache::kDefault, class T, int N>
__device__ __forceinline__ void store_float(T* p, const Vec<float, N>& value) {
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
  store<kCache>(p, raw);
}

// Whether p is aligned for loads and stores of N elements of T.
template <class T, int N>
inline bool aligned(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % (sizeof(T) * N) == 0;
}

// Host: DType -> template. `fn` takes Type<T> and returns const char* (nullptr = ok):
//     dispatch_float(x.dtype, [&](auto type) { using T = typename decltype(type)::type; return ...; })
template <class T>
struct Type {
  using type = T;
};

template <class F>
const char* dispatch_float(DType dtype, F&& fn) {
  switch (dtype) {
    case DType::kFloat32:
      return fn(Type<float>{});
    case DType::kFloat16:
      return fn(Type<f16>{});
    case DType::kBFloat16:
      return fn(Type<bf16>{});
    default:
      return "expected float32, float16 or bfloat16";
  }
}

// uint8, int16, int32: max_pool2d's offsets.
template <class F>
const char* dispatch_offset(DType dtype, F&& fn) {
  switch (dtype) {
    case DType::kUInt8:
      return fn(Type<uint8_t>{});
    case DType::kInt16:
      return fn(Type<int16_t>{});
    case DType::kInt32:
      return fn(Type<int32_t>{});
    default:
      return "expected uint8, int16 or int32";
  }
}

// bool -> std::true_type or std::false_type: `constexpr bool kFlag = decltype(flag)::value;`
template <class F>
const char* dispatch_bool(bool flag, F&& fn) {
  return flag ? fn(std::true_type{}) : fn(std::false_type{});
}

// A value -> the one of those listed that it equals: dispatch_int<1, 2, 4>(n, [&](auto k) { ...
// decltype(k)::value })
template <int kFirst, int... kRest, class F>
const char* dispatch_int(int64_t value, F&& fn) {
  if (value == kFirst) return fn(std::integral_constant<int, kFirst>{});
  if constexpr (sizeof...(kRest) > 0) {
    return dispatch_int<kRest...>(value, fn);
  } else {
    return "a value that no kernel was compiled for";
  }
}

}  // namespace fastdl
