// Arithmetic intrinsics. The approximate ones (__expf, ...) are exact here: compare with tolerances of some
// ulp.
#pragma once

#include <math.h>
#include <string.h>

#include <cstdint>
#include <limits>

namespace emulation {
template <class To, class From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

// Round to nearest even; overflow gives infinity, NaN a quiet NaN.
inline uint16_t float_to_half(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7fff;
  if (magnitude >= 0x47800000) return sign | 0x7c00;  // 65536 and more; 65520 .. 65536 rounds up to it below
  if (magnitude < 0x38800000) {  // subnormal in half: adding 0.5 puts its last bit at the end
    const float shifted = bit_cast<float>(magnitude) + 0.5f;
    return sign | (bit_cast<uint32_t>(shifted) - 0x3f000000);
  }
  return sign | ((magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13);
}

inline float half_to_float(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000) << 16, magnitude = half & 0x7fff;
  if (magnitude >= 0x7c00) return bit_cast<float>(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  if (magnitude < 0x400) {  // zero or subnormal: magnitude * 2^-24
    const float value = float(magnitude) * 0x1p-24f;
    return sign ? -value : value;
  }
  return bit_cast<float>(sign | ((magnitude << 13) + 0x38000000));
}

inline uint16_t float_to_bfloat16(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

// To an integer as the GPU does it: out of range goes to the nearest end, NaN to 0 (64 bits: to the
// smallest).
template <class To>
inline To saturate(double value) {
  using Limits = std::numeric_limits<To>;
  if (value != value) return sizeof(To) == 4 ? 0 : To(1) << 63;
  if (value <= double(Limits::min())) return Limits::min();
  if (value >= double(Limits::max())) return Limits::max();
  return To(value);
}
}  // namespace emulation

inline int __float_as_int(float x) { return emulation::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return emulation::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return emulation::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return emulation::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return emulation::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return emulation::bit_cast<double>(x); }

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __frsqrt_rn(float x) { return float(1.0 / sqrt(double(x))); }
inline float rsqrtf(float x) { return float(1.0 / sqrt(double(x))); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float __expf(float x) { return expf(x); }
inline float __exp10f(float x) { return powf(10.0f, x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __log10f(float x) { return log10f(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __tanhf(float x) { return tanhf(x); }
inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1.0f) : 0.0f; }

inline int __float2int_rn(float x) { return emulation::saturate<int>(nearbyint(double(x))); }
inline int __float2int_rz(float x) { return emulation::saturate<int>(trunc(double(x))); }
inline int __float2int_rd(float x) { return emulation::saturate<int>(floor(double(x))); }
inline int __float2int_ru(float x) { return emulation::saturate<int>(ceil(double(x))); }
inline unsigned __float2uint_rn(float x) { return emulation::saturate<unsigned>(nearbyint(double(x))); }
inline unsigned __float2uint_rz(float x) { return emulation::saturate<unsigned>(trunc(double(x))); }
inline long long __float2ll_rn(float x) { return emulation::saturate<long long>(nearbyint(double(x))); }
inline long long __float2ll_rz(float x) { return emulation::saturate<long long>(trunc(double(x))); }
inline long long __float2ll_rd(float x) { return emulation::saturate<long long>(floor(double(x))); }
inline float __int2float_rn(int x) { return float(x); }
inline float __uint2float_rn(unsigned x) { return float(x); }
inline float __ll2float_rn(long long x) { return float(x); }
inline float __double2float_rn(double x) { return float(x); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
inline unsigned __brev(unsigned x) {
  unsigned r = 0;
  for (int i = 0; i < 32; ++i) r |= (x >> i & 1u) << (31 - i);
  return r;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((unsigned long long)a * b >> 32); }
inline int __mulhi(int a, int b) { return int((long long)a * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned long long)((unsigned __int128)a * b >> 64);
}
inline unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned n) {
  return n & 31 ? hi << (n & 31) | lo >> (32 - (n & 31)) : hi;
}
inline unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned n) {
  return n & 31 ? lo >> (n & 31) | hi << (32 - (n & 31)) : lo;
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const unsigned long long both = (unsigned long long)b << 32 | a;
  unsigned r = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned s = selector >> 4 * i & 0xf;
    unsigned byte = unsigned(both >> 8 * (s & 7)) & 0xff;
    if (s & 8) byte = byte & 0x80 ? 0xff : 0;
    r |= byte << 8 * i;
  }
  return r;
}

// CUDA's global min and max, with its mixed overloads.
#define FASTDL_MIN_MAX(a_type, b_type, type)                              \
  inline constexpr type min(a_type left, b_type right) {                  \
    const type a = static_cast<type>(left), b = static_cast<type>(right); \
    return a < b ? a : b;                                                 \
  }                                                                       \
  inline constexpr type max(a_type left, b_type right) {                  \
    const type a = static_cast<type>(left), b = static_cast<type>(right); \
    return a > b ? a : b;                                                 \
  }
FASTDL_MIN_MAX(int, int, int)
FASTDL_MIN_MAX(unsigned, unsigned, unsigned)
FASTDL_MIN_MAX(int, unsigned, unsigned)
FASTDL_MIN_MAX(unsigned, int, unsigned)
FASTDL_MIN_MAX(long, long, long)
FASTDL_MIN_MAX(unsigned long, unsigned long, unsigned long)
FASTDL_MIN_MAX(long, unsigned long, unsigned long)
FASTDL_MIN_MAX(unsigned long, long, unsigned long)
FASTDL_MIN_MAX(long long, long long, long long)
FASTDL_MIN_MAX(unsigned long long, unsigned long long, unsigned long long)
#undef FASTDL_MIN_MAX
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
