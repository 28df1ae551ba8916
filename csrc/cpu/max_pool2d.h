// What the max-pool kernels share: windows, the comparison that decides a maximum, cells in memory, lanes
// taken apart and put together.
#pragma once

#include "../max_pool2d.h"
#include "dispatch.h"
#include "parallel.h"
#include "vec.h"

namespace fastdl::cpu {

constexpr float kMinusInf = -__builtin_inff();

// f(O{}) with the type of the offsets.
template <class F>
bool with_offset(DType dtype, const F& f) {
  switch (dtype) {
    case DType::kUInt8:
      return f(uint8_t{}), true;
    case DType::kInt16:
      return f(int16_t{}), true;
    case DType::kInt32:
      return f(int32_t{}), true;
    default:
      return false;
  }
}

// The windows along one axis: window o covers the inputs o * stride - padding + k * dilation, 0 <= k <
// kernel.
struct Axis {
  int64_t size, outputs, kernel, stride, padding, dilation;

  int64_t start(int64_t o) const { return o * stride - padding; }
  // The first and one past the last k of a window that begins at `start` which lie inside [0, size).
  int64_t first(int64_t start) const { return start < 0 ? (dilation - 1 - start) / dilation : 0; }
  int64_t end(int64_t start) const {
    const int64_t inside = start < size ? (size - 1 - start) / dilation + 1 : 0;
    return inside < kernel ? inside : kernel;
  }
  int64_t span() const { return (kernel - 1) * dilation + 1; }
  bool is(int64_t k, int64_t s, int64_t p) const {
    return kernel == k && stride == s && padding == p && dilation == 1;
  }
};

inline Axis axis(const Window& w, int i, int64_t size, int64_t outputs) {
  // one cell has no dilation and one window no stride, whatever huge numbers say so
  return {size,
          outputs,
          w.kernel_size[i],
          outputs > 1 ? w.stride[i] : 1,
          w.padding[i],
          w.kernel_size[i] > 1 ? w.dilation[i] : 1};
}

// Lanes where the value beats the best so far: it is greater, or NaN. So the last NaN wins, and of equals the
// first. Starts from -inf and the first cell inside the input.
FASTDL_INLINE void take(Vec& best, IVec& winner, Vec value, IVec cell) {
#if defined(__AVX512F__)
  const __mmask16 better =
      _mm512_cmp_ps_mask(value, best, _CMP_GT_OQ) | _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
  best = _mm512_mask_mov_ps(best, better, value);
  winner = reinterpret_cast<IVec>(
      _mm512_mask_mov_epi32(reinterpret_cast<__m512i>(winner), better, reinterpret_cast<__m512i>(cell)));
#elif defined(__AVX2__)
  const __m256 better =
      _mm256_or_ps(_mm256_cmp_ps(value, best, _CMP_GT_OQ), _mm256_cmp_ps(value, value, _CMP_UNORD_Q));
  best = _mm256_blendv_ps(best, value, better);
  winner = as_int(_mm256_blendv_ps(as_float(winner), as_float(cell), better));
#else
  const IVec better = (value > best) | (value != value);
  best = select(better, value, best);
  winner = select(better, cell, winner);
#endif
}
inline void take(float& best, int64_t& winner, float value, int64_t cell) {
  if (value > best || value != value) best = value, winner = cell;
}

// The value where the cell is the wanted one, else 0.
FASTDL_INLINE Vec where_equal(IVec cell, IVec wanted, Vec value) {
#if defined(__AVX512F__)
  const __mmask16 equal =
      _mm512_cmpeq_epi32_mask(reinterpret_cast<__m512i>(cell), reinterpret_cast<__m512i>(wanted));
  return _mm512_maskz_mov_ps(equal, value);
#else
  return as_float((cell == wanted) & as_int(value));
#endif
}

// sum + where_equal(cell, wanted, value), of a sum that is not -0.
FASTDL_INLINE Vec add_where_equal(Vec sum, IVec cell, IVec wanted, Vec value) {
#if defined(__AVX512F__)
  const __mmask16 equal =
      _mm512_cmpeq_epi32_mask(reinterpret_cast<__m512i>(cell), reinterpret_cast<__m512i>(wanted));
  return _mm512_mask_add_ps(sum, equal, sum, value);
#else
  return sum + where_equal(cell, wanted, value);
#endif
}

// ---------------------------------------------------------------------------- lanes of two vectors

// a0 a2 a4 ... b0 b2 b4 ...
FASTDL_INLINE Vec even(Vec a, Vec b) {
#if defined(__AVX512F__)
  const __m512i order = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  return _mm512_permutex2var_ps(a, order, b);
#elif defined(__AVX2__)
  return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(_mm256_shuffle_ps(a, b, 0x88)), 0xd8));
#else
  return Vec{a[0], a[2], b[0], b[2]};
#endif
}
// a1 a3 a5 ... b1 b3 b5 ...
FASTDL_INLINE Vec odd(Vec a, Vec b) {
#if defined(__AVX512F__)
  const __m512i order = _mm512_set_epi32(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
  return _mm512_permutex2var_ps(a, order, b);
#elif defined(__AVX2__)
  return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(_mm256_shuffle_ps(a, b, 0xdd)), 0xd8));
#else
  return Vec{a[1], a[3], b[1], b[3]};
#endif
}
// low: a0 b0 a1 b1 ...; high: the other half.
FASTDL_INLINE void interleave(Vec a, Vec b, Vec& low, Vec& high) {
#if defined(__AVX512F__)
  low =
      _mm512_permutex2var_ps(a, _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0), b);
  high = _mm512_permutex2var_ps(
      a, _mm512_set_epi32(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8), b);
#elif defined(__AVX2__)
  const __m256 even_pairs = _mm256_unpacklo_ps(a, b), odd_pairs = _mm256_unpackhi_ps(a, b);
  low = _mm256_permute2f128_ps(even_pairs, odd_pairs, 0x20);
  high = _mm256_permute2f128_ps(even_pairs, odd_pairs, 0x31);
#else
  low = Vec{a[0], b[0], a[1], b[1]};
  high = Vec{a[2], b[2], a[3], b[3]};
#endif
}
// first a0 a1 a2 ...: every lane one up.
FASTDL_INLINE Vec shift_in(float first, Vec a) {
#if defined(__AVX512F__)
  const __m512i lanes = reinterpret_cast<__m512i>(a);
  return reinterpret_cast<Vec>(_mm512_alignr_epi32(lanes, reinterpret_cast<__m512i>(splat(first)), 15));
#elif defined(__AVX2__)
  const __m256i up = _mm256_set_epi32(6, 5, 4, 3, 2, 1, 0, 0);
  return _mm256_blend_ps(_mm256_permutevar8x32_ps(a, up), splat(first), 1);
#else
  return Vec{first, a[0], a[1], a[2]};
#endif
}

// -------------------------------------------------------------------- first lanes, cells in memory

// load(p, n, other) of any n: none for n <= 0.
template <class T>
FASTDL_INLINE Vec load_first(const T* p, int64_t n, float other) {
  return n <= 0 ? splat(other) : load(p, n, other);
}

template <class O>
FASTDL_INLINE void store_cells(O* p, IVec v) {
#if defined(__AVX512F__)
  const __m512i lanes = reinterpret_cast<__m512i>(v);
  if constexpr (sizeof(O) == 1) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(lanes));
  } else if constexpr (sizeof(O) == 2) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(lanes));
  } else {
    std::memcpy(p, &v, sizeof v);
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(O) == 4) {
    std::memcpy(p, &v, sizeof v);
  } else {  // cells are not negative, so saturation changes nothing
    const __m256i lanes = reinterpret_cast<__m256i>(v);
    const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
    if constexpr (sizeof(O) == 2) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p), words);
    } else {
      _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(words, words));
    }
  }
#else
  for (int i = 0; i < kWidth; ++i) p[i] = static_cast<O>(v[i]);
#endif
}
template <class O>
FASTDL_INLINE void store_cells(O* p, IVec v, int64_t n) {
  if (n >= kWidth) return store_cells(p, v);
#if defined(__AVX512F__)
  if constexpr (sizeof(O) == 1) {
    _mm512_mask_cvtepi32_storeu_epi8(p, static_cast<__mmask16>((1u << n) - 1), reinterpret_cast<__m512i>(v));
    return;
  }
#endif
  for (int64_t i = 0; i < n; ++i) p[i] = static_cast<O>(v[i]);
}

template <class O>
FASTDL_INLINE IVec load_cells(const O* p) {
#if defined(__AVX512F__)
  if constexpr (sizeof(O) == 1) {
    return reinterpret_cast<IVec>(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  } else if constexpr (sizeof(O) == 2) {
    return reinterpret_cast<IVec>(
        _mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(O) == 1) {
    return reinterpret_cast<IVec>(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  } else if constexpr (sizeof(O) == 2) {
    return reinterpret_cast<IVec>(
        _mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
#endif
  IVec v{};
  for (int i = 0; i < kWidth; ++i) v[i] = p[i];
  return v;
}
// Lanes from n on name no cell.
template <class O>
FASTDL_INLINE IVec load_cells(const O* p, int64_t n) {
  if (n >= kWidth) return load_cells(p);
  IVec v = splat(-1);
#if defined(__AVX512F__)
  if constexpr (sizeof(O) == 1) {
    const __mmask16 mask = n > 0 ? static_cast<__mmask16>((1u << n) - 1) : 0;
    return reinterpret_cast<IVec>(
        _mm512_mask_cvtepu8_epi32(reinterpret_cast<__m512i>(v), mask, _mm_maskz_loadu_epi8(mask, p)));
  }
#endif
  for (int64_t i = 0; i < n; ++i) v[i] = p[i];
  return v;
}

}  // namespace fastdl::cpu
