// The logarithm of Vec.
#pragma once

#include "vec.h"

namespace fastdl::cpu {

// log(x) for normal x > 0 to about 1 ulp, 88.7 for infinity; for all else some number below 100 in magnitude.
// x = 2^k * (1 + f), 1 + f about 1.
FASTDL_INLINE Vec log_positive(Vec x) {
  IVec bits = as_int(x);
  IVec k = (bits - 0x3f3504f3) >> 23;
  Vec f = as_float(bits - (k << 23)) - 1.0f;
  Vec exponent = to_float(k), z = f * f;
  Vec p = splat(7.0376836292e-2f);
  p = fma(p, f, splat(-1.1514610310e-1f));
  p = fma(p, f, splat(1.1676998740e-1f));
  p = fma(p, f, splat(-1.2420140846e-1f));
  p = fma(p, f, splat(1.4249322787e-1f));
  p = fma(p, f, splat(-1.6668057665e-1f));
  p = fma(p, f, splat(2.0000714765e-1f));
  p = fma(p, f, splat(-2.4999993993e-1f));
  p = fma(p, f, splat(3.3333331174e-1f));
  Vec y = fma(exponent, splat(-2.12194440e-4f), p * f * z);
  y = fma(z, splat(-0.5f), y) + f;
  return fma(exponent, splat(0.693359375f), y);
}

}  // namespace fastdl::cpu
