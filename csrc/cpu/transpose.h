// Squares of floats, turned in registers.
#pragma once

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "vec.h"

namespace fastdl::cpu {

// to[j][i] = from[i][j], i and j below B; the strides are those of i in from and of j in to.
template <int B>
FASTDL_INLINE void transpose(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
#if defined(__AVX512F__)
  if constexpr (B == 16) {
    __m512 a[16], b[16];
    for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_ps(from + i * from_stride);
    for (int i = 0; i < 16; i += 2) {
      b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
      b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
      for (int k = 0; k < 2; ++k) {
        const __m512d upper = _mm512_castps_pd(b[i + k]), lower = _mm512_castps_pd(b[i + 2 + k]);
        a[i + 2 * k] = _mm512_castpd_ps(_mm512_unpacklo_pd(upper, lower));
        a[i + 2 * k + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(upper, lower));
      }
    }
    for (int k = 0; k < 4; ++k) {  // a[4 i + k]: column 4 l + k of rows 4 i to 4 i + 3 in its 128-bit lane l
      b[k] = _mm512_shuffle_f32x4(a[k], a[4 + k], 0x88);
      b[4 + k] = _mm512_shuffle_f32x4(a[k], a[4 + k], 0xdd);
      b[8 + k] = _mm512_shuffle_f32x4(a[8 + k], a[12 + k], 0x88);
      b[12 + k] = _mm512_shuffle_f32x4(a[8 + k], a[12 + k], 0xdd);
    }
    for (int k = 0; k < 4; ++k) {
      _mm512_storeu_ps(to + k * to_stride, _mm512_shuffle_f32x4(b[k], b[8 + k], 0x88));
      _mm512_storeu_ps(to + (4 + k) * to_stride, _mm512_shuffle_f32x4(b[4 + k], b[12 + k], 0x88));
      _mm512_storeu_ps(to + (8 + k) * to_stride, _mm512_shuffle_f32x4(b[k], b[8 + k], 0xdd));
      _mm512_storeu_ps(to + (12 + k) * to_stride, _mm512_shuffle_f32x4(b[4 + k], b[12 + k], 0xdd));
    }
    return;
  }
#endif
#if defined(__AVX2__)
  if constexpr (B == 8) {
    __m256 a[8], b[8];
    for (int i = 0; i < 8; ++i) a[i] = _mm256_loadu_ps(from + i * from_stride);
    for (int i = 0; i < 8; i += 2) {
      b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
      b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
      for (int k = 0; k < 2; ++k) {
        const __m256d upper = _mm256_castps_pd(b[i + k]), lower = _mm256_castps_pd(b[i + 2 + k]);
        a[i + 2 * k] = _mm256_castpd_ps(_mm256_unpacklo_pd(upper, lower));
        a[i + 2 * k + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(upper, lower));
      }
    }
    for (int k = 0; k < 4; ++k) {
      _mm256_storeu_ps(to + k * to_stride, _mm256_permute2f128_ps(a[k], a[4 + k], 0x20));
      _mm256_storeu_ps(to + (4 + k) * to_stride, _mm256_permute2f128_ps(a[k], a[4 + k], 0x31));
    }
    return;
  }
#endif
#if defined(__SSE2__)
  if constexpr (B == 4) {
    __m128 a = _mm_loadu_ps(from), b = _mm_loadu_ps(from + from_stride);
    __m128 c = _mm_loadu_ps(from + 2 * from_stride), d = _mm_loadu_ps(from + 3 * from_stride);
    _MM_TRANSPOSE4_PS(a, b, c, d);
    _mm_storeu_ps(to, a);
    _mm_storeu_ps(to + to_stride, b);
    _mm_storeu_ps(to + 2 * to_stride, c);
    _mm_storeu_ps(to + 3 * to_stride, d);
    return;
  }
#endif
  for (int i = 0; i < B; ++i)
    for (int j = 0; j < B; ++j) to[j * to_stride + i] = from[i * from_stride + j];
}

}  // namespace fastdl::cpu
