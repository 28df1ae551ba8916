// Vectors of floats for the CPU kernels: Vec, as wide as the capability this file is compiled for. Loads and
// stores convert from and to float16 and bfloat16, so that all arithmetic is float32.
//
// Built on the compiler's own vector types (GCC, clang): a + b, a < b and a[i] work on Vec as they do on
// floats, on any machine; intrinsics appear here alone, where the compiler would not find the instruction by
// itself.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define FASTDL_INLINE inline __attribute__((always_inline))

namespace fastdl::cpu {

struct f16 {
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

typedef float Vec __attribute__((vector_size(kWidth * 4)));
typedef int32_t IVec __attribute__((vector_size(kWidth * 4)));  // also what comparisons of Vec give: 0 or -1

FASTDL_INLINE Vec splat(float x) { return x - Vec{}; }  // not x + 0: that loses the sign of -0
FASTDL_INLINE IVec splat(int32_t x) { return IVec{} + x; }
FASTDL_INLINE IVec as_int(Vec x) { return reinterpret_cast<IVec>(x); }
FASTDL_INLINE Vec as_float(IVec x) { return reinterpret_cast<Vec>(x); }
FASTDL_INLINE Vec to_float(IVec x) { return __builtin_convertvector(x, Vec); }
FASTDL_INLINE IVec to_int(Vec x) { return __builtin_convertvector(x, IVec); }  // towards zero
FASTDL_INLINE Vec select(IVec condition, Vec yes, Vec no) { return condition ? yes : no; }
FASTDL_INLINE IVec select(IVec condition, IVec yes, IVec no) { return condition ? yes : no; }

// 0, 1, 2, ...
FASTDL_INLINE IVec iota() {
  IVec v{};
  for (int i = 0; i < kWidth; ++i) v[i] = i;
  return v;
}

// x * y + z with one rounding where the machine can (AVX2 and later); the same bits wherever it is called.
FASTDL_INLINE Vec fma(Vec x, Vec y, Vec z) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(x, y, z);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(x, y, z);
#else
  return x * y + z;
#endif
}

// The same with one rounding also where the machine cannot, which is slow there.
FASTDL_INLINE Vec fused(Vec x, Vec y, Vec z) {
#if defined(__AVX2__)
  return fma(x, y, z);
#else
  for (int i = 0; i < kWidth; ++i) z[i] = static_cast<float>(static_cast<double>(x[i]) * y[i] + z[i]);
  return z;
#endif
}

// As the instruction: b where either is NaN. Not what torch's max means by NaN.
FASTDL_INLINE Vec max(Vec a, Vec b) {
#if defined(__AVX512F__)
  return _mm512_max_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}
FASTDL_INLINE Vec min(Vec a, Vec b) {
#if defined(__AVX512F__)
  return _mm512_min_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_min_ps(a, b);
#else
  return a < b ? a : b;
#endif
}
FASTDL_INLINE Vec abs(Vec x) { return as_float(as_int(x) & 0x7fffffff); }
FASTDL_INLINE Vec sqrt(Vec x) {
#if defined(__AVX512F__)
  return _mm512_sqrt_ps(x);
#elif defined(__AVX2__)
  return _mm256_sqrt_ps(x);
#else
  for (int i = 0; i < kWidth; ++i) x[i] = std::sqrt(x[i]);
  return x;
#endif
}
FASTDL_INLINE Vec floor(Vec x) {
#if defined(__AVX512F__)
  return _mm512_floor_ps(x);
#elif defined(__AVX2__)
  return _mm256_floor_ps(x);
#else
  for (int i = 0; i < kWidth; ++i) x[i] = std::floor(x[i]);
  return x;
#endif
}
// To the nearest integer, halves to even.
FASTDL_INLINE Vec round(Vec x) {
#if defined(__AVX512F__)
  return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
  return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  for (int i = 0; i < kWidth; ++i) x[i] = std::nearbyint(x[i]);
  return x;
#endif
}

FASTDL_INLINE bool any(IVec condition) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask(reinterpret_cast<__m512i>(condition)) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps(reinterpret_cast<__m256>(condition)) != 0;
#else
  int32_t found = 0;
  for (int i = 0; i < kWidth; ++i) found |= condition[i];
  return found != 0;
#endif
}
// Bit i is set where condition[i] is true.
FASTDL_INLINE uint32_t bits(IVec condition) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask(reinterpret_cast<__m512i>(condition));
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(condition)));
#else
  uint32_t found = 0;
  for (int i = 0; i < kWidth; ++i) found |= static_cast<uint32_t>(condition[i] != 0) << i;
  return found;
#endif
}

// Lane i as i ^ kHalf. By hand: the compiler takes the lanes through memory.
template <int kHalf>
FASTDL_INLINE Vec swapped(Vec x) {
#if defined(__AVX512F__)
  if constexpr (kHalf == 8) return _mm512_shuffle_f32x4(x, x, 0b01001110);
  if constexpr (kHalf == 4) return _mm512_shuffle_f32x4(x, x, 0b10110001);
  if constexpr (kHalf == 2) return _mm512_permute_ps(x, 0b01001110);
  if constexpr (kHalf == 1) return _mm512_permute_ps(x, 0b10110001);
#elif defined(__AVX2__)
  if constexpr (kHalf == 4) return _mm256_permute2f128_ps(x, x, 1);
  if constexpr (kHalf == 2) return _mm256_permute_ps(x, 0b01001110);
  if constexpr (kHalf == 1) return _mm256_permute_ps(x, 0b10110001);
#else
  Vec y;
  for (int i = 0; i < kWidth; ++i) y[i] = x[i ^ kHalf];
  return y;
#endif
}

// op(lanes [0, half), lanes [half, 2 * half)) and so on, until there is one: a fixed tree.
template <class Op>
FASTDL_INLINE float over_lanes(Vec x, const Op& op) {
  if constexpr (kWidth >= 16) x = op(x, swapped<8>(x));
  if constexpr (kWidth >= 8) x = op(x, swapped<4>(x));
  x = op(x, swapped<2>(x));
  x = op(x, swapped<1>(x));
  return x[0];
}

FASTDL_INLINE float sum(Vec x) {
  return over_lanes(x, [](Vec a, Vec b) { return a + b; });
}
// NaN lanes do not count; NaN if there are no others.
FASTDL_INLINE float max(Vec x) {
  return over_lanes(x, [](Vec a, Vec b) { return select((a >= b) | (b != b), a, b); });
}

// ----------------------------------------------------------------------------------------- float64

typedef double DVec __attribute__((vector_size(kWidth * 4)));

// The lanes of a Vec as float64, for sums that must not round.
struct Wide {
  DVec low{}, high{};
  FASTDL_INLINE void operator+=(const Wide& other) { low += other.low, high += other.high; }
};
FASTDL_INLINE Wide operator-(const Wide& a, const Wide& b) { return {a.low - b.low, a.high - b.high}; }

FASTDL_INLINE Wide widen(Vec x) {
#if defined(__AVX512F__)
  return {_mm512_cvtps_pd(_mm512_castps512_ps256(x)), _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1))};
#elif defined(__AVX2__)
  return {_mm256_cvtps_pd(_mm256_castps256_ps128(x)), _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1))};
#else
  Wide wide;
  for (int i = 0; i < kWidth / 2; ++i) wide.low[i] = x[i], wide.high[i] = x[i + kWidth / 2];
  return wide;
#endif
}

FASTDL_INLINE Vec narrow(const Wide& x) {
#if defined(__AVX512F__)
  return _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(x.low)), _mm512_cvtpd_ps(x.high), 1);
#elif defined(__AVX2__)
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm256_cvtpd_ps(x.low)), _mm256_cvtpd_ps(x.high), 1);
#else
  Vec v;
  for (int i = 0; i < kWidth / 2; ++i) {
    v[i] = static_cast<float>(x.low[i]);
    v[i + kWidth / 2] = static_cast<float>(x.high[i]);
  }
  return v;
#endif
}

FASTDL_INLINE DVec fma(DVec x, DVec y, DVec z) {
#if defined(__AVX512F__)
  return _mm512_fmadd_pd(x, y, z);
#elif defined(__AVX2__)
  return _mm256_fmadd_pd(x, y, z);
#else
  return x * y + z;
#endif
}
FASTDL_INLINE Wide fma(const Wide& x, const Wide& y, const Wide& z) {
  return {fma(x.low, y.low, z.low), fma(x.high, y.high, z.high)};
}

FASTDL_INLINE Wide wide_splat(double x) { return {DVec{} + x, DVec{} + x}; }

FASTDL_INLINE Wide load(const double* p) {
  Wide v;
  std::memcpy(static_cast<void*>(&v), p, sizeof v);
  return v;
}
FASTDL_INLINE void store(double* p, const Wide& v) { std::memcpy(p, &v, sizeof v); }

template <int kHalf>
FASTDL_INLINE DVec swapped(DVec x) {
#if defined(__AVX512F__)
  if constexpr (kHalf == 4) return _mm512_shuffle_f64x2(x, x, 0b01001110);
  if constexpr (kHalf == 2) return _mm512_shuffle_f64x2(x, x, 0b10110001);
  if constexpr (kHalf == 1) return _mm512_permute_pd(x, 0b01010101);
#elif defined(__AVX2__)
  if constexpr (kHalf == 2) return _mm256_permute2f128_pd(x, x, 1);
  if constexpr (kHalf == 1) return _mm256_permute_pd(x, 0b0101);
#else
  return DVec{x[1], x[0]};
#endif
}

// Over the lanes, in a fixed tree.
FASTDL_INLINE double sum(const Wide& x) {
  DVec v = x.low + x.high;
  if constexpr (kWidth >= 16) v += swapped<4>(v);
  if constexpr (kWidth >= 8) v += swapped<2>(v);
  v += swapped<1>(v);
  return v[0];
}

// ------------------------------------------------------------------------------ scalars and dtypes

FASTDL_INLINE float to_float(float x) { return x; }
FASTDL_INLINE float to_float(bf16 x) {
  uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}
FASTDL_INLINE float to_float(f16 x) {
#if defined(__F16C__)
  return _cvtsh_ss(x.bits);
#else
  // the exponent moves to float32's place; what was subnormal is scaled, which normalises it
  uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16, rest = x.bits & 0x7fff, bits = rest << 13;
  float y;
  if (rest >= 0x7c00) {
    bits |= 0x7f800000u;
    if (rest > 0x7c00) bits |= 0x00400000u;
    std::memcpy(&y, &bits, 4);
  } else {
    std::memcpy(&y, &bits, 4);
    y *= 0x1p112f;
  }
  std::memcpy(&bits, &y, 4);
  bits |= sign;
  std::memcpy(&y, &bits, 4);
  return y;
#endif
}

template <class T>
T from_float(float x);  // to the nearest, halves to even; NaN stays NaN
template <>
FASTDL_INLINE float from_float<float>(float x) {
  return x;
}
template <>
FASTDL_INLINE bf16 from_float<bf16>(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (x != x) return {0x7fc0};
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}
template <>
FASTDL_INLINE f16 from_float<f16>(float x) {
#if defined(__F16C__)
  return {static_cast<uint16_t>(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT))};
#else
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return {static_cast<uint16_t>(sign | 0x7e00)};
  if (bits >= 0x477ff000) return {static_cast<uint16_t>(sign | 0x7c00)};  // 65520 and more round to infinity
  if (bits < 0x38800000) {  // below 2^-14: subnormal, units of 2^-24
    float magnitude;
    std::memcpy(&magnitude, &bits, 4);
    return {static_cast<uint16_t>(sign | static_cast<uint16_t>(std::nearbyint(magnitude * 0x1p24f)))};
  }
  bits += 0xfff + ((bits >> 13) & 1);
  return {static_cast<uint16_t>(sign | ((bits - 0x38000000) >> 13))};
#endif
}

// -------------------------------------------------------------------------------- loads and stores

FASTDL_INLINE Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
FASTDL_INLINE void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }

FASTDL_INLINE IVec load(const int32_t* p) {
  IVec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
FASTDL_INLINE void store(int32_t* p, IVec v) { std::memcpy(p, &v, sizeof v); }

FASTDL_INLINE Vec load(const bf16* p) {
#if defined(__AVX512F__)
  __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return reinterpret_cast<Vec>(_mm512_slli_epi32(wide, 16));
#elif defined(__AVX2__)
  __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return reinterpret_cast<Vec>(_mm256_slli_epi32(wide, 16));
#else
  Vec v{};
  for (int i = 0; i < kWidth; ++i) v[i] = to_float(p[i]);
  return v;
#endif
}
FASTDL_INLINE void store(bf16* p, Vec v) {
#if defined(__AVX2__)
  IVec bits = as_int(v);
  IVec rounded = bits + 0x7fff + ((bits >> 16) & 1);
  rounded = select(v != v, splat(0x7fc00000), rounded);
#if defined(__AVX512F__)
  __m512i high = _mm512_srli_epi32(reinterpret_cast<__m512i>(rounded), 16);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(high));
#else
  __m256i high = _mm256_srli_epi32(reinterpret_cast<__m256i>(rounded), 16);
  __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
#endif
#else
  for (int i = 0; i < kWidth; ++i) p[i] = from_float<bf16>(v[i]);
#endif
}

FASTDL_INLINE Vec load(const f16* p) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__) && defined(__AVX2__)
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  Vec v{};
  for (int i = 0; i < kWidth; ++i) v[i] = to_float(p[i]);
  return v;
#endif
}
FASTDL_INLINE void store(f16* p, Vec v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__) && defined(__AVX2__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < kWidth; ++i) p[i] = from_float<f16>(v[i]);
#endif
}

#if defined(__AVX512F__)
FASTDL_INLINE __mmask16 first_lanes(int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }
#endif

// The first n lanes (0 <= n <= kWidth); the others are `other` and memory beyond is not touched.
template <class T>
FASTDL_INLINE Vec load(const T* p, int64_t n, float other = 0.0f) {
  if (n >= kWidth) return load(p);
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    return _mm512_mask_loadu_ps(splat(other), first_lanes(n), p);
  } else {
    const __m256i raw = _mm256_maskz_loadu_epi16(first_lanes(n), p);
    T lanes[kWidth];
    std::memcpy(lanes, &raw, sizeof lanes);
    return _mm512_mask_mov_ps(splat(other), first_lanes(n), load(lanes));
  }
#endif
  Vec v = splat(other);
  for (int64_t i = 0; i < n; ++i) v[i] = to_float(p[i]);
  return v;
}
template <class T>
FASTDL_INLINE void store(T* p, Vec v, int64_t n) {
  if (n >= kWidth) return store(p, v);
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    return _mm512_mask_storeu_ps(p, first_lanes(n), v);
  } else {
    T lanes[kWidth];
    store(lanes, v);
    __m256i raw;
    std::memcpy(&raw, lanes, sizeof raw);
    return _mm256_mask_storeu_epi16(p, first_lanes(n), raw);
  }
#endif
  for (int64_t i = 0; i < n; ++i) p[i] = from_float<T>(v[i]);
}

// Rounded to T and back: what a later load of a stored T would give.
template <class T>
FASTDL_INLINE Vec narrow(Vec v) {
  if constexpr (sizeof(T) == 4) {
    return v;
  } else {
    T stored[kWidth];
    store(stored, v);
    return load(stored);
  }
}

// --------------------------------------------------------------------------------------- functions

// exp(x) to about 1 ulp: x = n ln 2 + r, exp(r) by a polynomial. 0 far below, inf far above, NaN for NaN.
FASTDL_INLINE Vec exp(Vec x) {
  Vec clamped = select(x > 89.0f, splat(89.0f), select(x < -104.0f, splat(-104.0f), x));  // NaN goes through
  Vec n = round(clamped * 1.44269504088896341f);
  Vec r = fma(n, splat(-0.693145751953125f), clamped);
  r = fma(n, splat(-1.42860682030941723e-6f), r);
  Vec p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p, r * r, r + 1.0f);
#if defined(__AVX512F__)
  return _mm512_scalef_ps(p, n);
#else
  // 2^n in two factors: n reaches -150 and 128, where 2^n itself is no normal float; NaN has p = NaN, any n
  // does
  IVec whole = to_int(select(n == n, n, Vec{}));
  IVec half = whole >> 1;
  return p * as_float((half + 127) << 23) * as_float((whole - half + 127) << 23);
#endif
}

}  // namespace fastdl::cpu
