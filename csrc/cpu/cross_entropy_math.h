// exp and log for softmax: cheaper than the general ones, since x - max(x) is never positive and their sum
// never small.
#pragma once

#include <limits>

#include "log.h"
#include "vec.h"

namespace fastdl::cpu::cross_entropy {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// x, or 0 where it is -inf: what may be subtracted from -inf without giving NaN.
FASTDL_INLINE float finite(float m) { return m == -kInfinity ? 0.0f : m; }
FASTDL_INLINE Vec finite(Vec m) { return select(m == -kInfinity, Vec{}, m); }

using cpu::fma;

// x * y + z of one lane, rounded as fma of Vec rounds.
FASTDL_INLINE float fma(float x, float y, float z) {
#if defined(__AVX2__)
  return __builtin_fmaf(x, y, z);
#else
  return x * y + z;
#endif
}

// exp(x) for x <= 0 (or barely above) to about 1 ulp; 0 where that is denormal, NaN for NaN. x = n ln 2 + r.
FASTDL_INLINE Vec exp_nonpositive(Vec x) {
  constexpr float kMagic = 12582912.0f + 127.0f;  // the last bits of t are n + 127, the exponent of 2^n
  Vec t = fma(x, splat(1.44269504088896341f), splat(kMagic));
  Vec n = t - kMagic;
#if defined(__AVX2__)
  Vec r = fma(n, splat(-0.693147180559945f), x);
#else
  Vec r = x - n * 0.693145751953125f - n * 1.42860682030941723e-6f;
#endif
  Vec p = splat(1.3814598593e-3f);
  p = fma(p, r, splat(8.3687169071e-3f));
  p = fma(p, r, splat(4.1668388049e-2f));
  p = fma(p, r, splat(1.6666520631e-1f));
  p = fma(p, r, splat(4.9999993448e-1f));
  p = fma(p, r, splat(1.0f));
  p = fma(p, r, splat(1.0f));
  return select(x < -87.0f, Vec{}, p * as_float(as_int(t) << 23));
}

// log(x) for normal x to about 1 ulp; -inf for 0, NaN for NaN.
FASTDL_INLINE Vec log_normal(Vec x) {
  return select(x == 0.0f, splat(-kInfinity), select(x != x, x, log_positive(x)));
}

}  // namespace fastdl::cpu::cross_entropy
