// The activations behind a kernel: y = act(x), and dx = dy * act'(x) from y or from x, whichever is at hand.
// param: negative_slope of leaky_relu, alpha of elu. The branches are those of fastdl/activations.py; NaN
// passes through every one of them, as in torch.
#pragma once

#include <type_traits>

#include "../library.h"
#include "vec.h"

namespace fastdl::cpu {

// exp(x) - 1 for x <= 88 without cancellation: x = n ln 2 + r, 2^n * (exp(r) - 1) + (2^n - 1); and exp(x).
FASTDL_INLINE Vec expm1(Vec x, Vec& exp) {
  Vec clamped = select(x > 88.0f, splat(88.0f), select(x < -30.0f, splat(-30.0f), x));  // NaN goes through
  Vec n = round(clamped * 1.44269504088896341f);
  Vec r = fma(n, splat(-0.693145751953125f), clamped);
  r = fma(n, splat(-1.42860682030941723e-6f), r);
  Vec p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p, r * r, r);
  Vec scale = as_float((to_int(n) + 127) << 23);
  exp = fma(p, scale, scale);
  Vec y = fma(p, scale, scale - 1.0f);
  return select(x == 0.0f, x, y);  // keeps the sign of zero
}

FASTDL_INLINE Vec expm1(Vec x) {
  Vec exp;
  return expm1(x, exp);
}

// log(1 + x) for 0 <= x <= 1: 2 atanh(s), s = x / (2 + x).
FASTDL_INLINE Vec log1p_unit(Vec x) {
  Vec s = x / (x + 2.0f);
  Vec z = s * s;
  Vec p = splat(2.0f / 15.0f);
  p = fma(p, z, splat(2.0f / 13.0f));
  p = fma(p, z, splat(2.0f / 11.0f));
  p = fma(p, z, splat(2.0f / 9.0f));
  p = fma(p, z, splat(2.0f / 7.0f));
  p = fma(p, z, splat(2.0f / 5.0f));
  p = fma(p, z, splat(2.0f / 3.0f));
  return fma(p, z * s, s + s);
}

FASTDL_INLINE Vec sigmoid(Vec x) {
  Vec e = exp(-abs(x));
  return select(x < 0.0f, e, splat(1.0f)) / (e + 1.0f);
}

// e = exp(-2 |x|), |tanh(x)| = (1 - e) / (1 + e), from 1/2 on as 1 - 2 e / (1 + e): near saturation
// rounded once, since the derivative 1 - y * y is there mostly the rounding of y.
FASTDL_INLINE Vec tanh(Vec x) {
  Vec e, t = expm1(abs(x) * -2.0f, e);
  IVec far = abs(x) > 0.5f;
  Vec part = select(far, e * 2.0f, -t) / (e + 1.0f);
  Vec y = select(far, 1.0f - part, part);
  return as_float((as_int(y) & 0x7fffffff) | (as_int(x) & INT32_MIN));
}

FASTDL_INLINE Vec softplus(Vec x) { return max(Vec{}, x) + log1p_unit(exp(-abs(x))); }

template <Activation activation>
FASTDL_INLINE Vec activate(Vec x, float param) {
  if constexpr (activation == Activation::kReLU) {
    return max(Vec{}, x);  // x where it is NaN or -0
  } else if constexpr (activation == Activation::kLeakyReLU) {
    return select(x > 0.0f, x, x * param);
  } else if constexpr (activation == Activation::kELU) {
    return select(x <= 0.0f, expm1(x) * param, x);
  } else if constexpr (activation == Activation::kSigmoid) {
    return sigmoid(x);
  } else if constexpr (activation == Activation::kTanh) {
    return tanh(x);
  } else if constexpr (activation == Activation::kSoftplus) {
    return select(x > 20.0f, x, softplus(x));
  } else {
    return x;
  }
}

// dy * act'(x) from the output y.
template <Activation activation>
FASTDL_INLINE Vec activation_grad(Vec dy, Vec y, float param) {
  if constexpr (activation == Activation::kReLU) {
    return select(y <= 0.0f, Vec{}, dy);
  } else if constexpr (activation == Activation::kLeakyReLU) {
    return select(y > 0.0f, dy, dy * param);
  } else if constexpr (activation == Activation::kELU) {
    return select(y <= 0.0f, dy * (y + param), dy);
  } else if constexpr (activation == Activation::kSigmoid) {
    return dy * (1.0f - y) * y;
  } else if constexpr (activation == Activation::kTanh) {
    return dy * (1.0f - y * y);
  } else if constexpr (activation == Activation::kSoftplus) {
    return select(y > 20.0f, dy, -dy * expm1(-y));
  } else {
    return dy;
  }
}

// dy * act'(x) from the pre-activation x. The better source where it is at hand: close to saturation 1 - y *
// y is mostly the rounding of y.
template <Activation activation>
FASTDL_INLINE Vec activation_grad_at(Vec dy, Vec x, float param) {
  if constexpr (activation == Activation::kReLU) {
    return select(x <= 0.0f, Vec{}, dy);
  } else if constexpr (activation == Activation::kLeakyReLU) {
    return select(x > 0.0f, dy, dy * param);
  } else if constexpr (activation == Activation::kELU) {
    return select(x <= 0.0f, dy * (exp(x) * param), dy);
  } else if constexpr (activation == Activation::kSigmoid) {
    Vec e = exp(-abs(x));
    return dy * (e / ((e + 1.0f) * (e + 1.0f)));
  } else if constexpr (activation == Activation::kTanh) {
    Vec e = exp(abs(x) * -2.0f);
    return dy * (e * 4.0f / ((e + 1.0f) * (e + 1.0f)));
  } else if constexpr (activation == Activation::kSoftplus) {
    return select(x > 20.0f, dy, dy * sigmoid(x));
  } else {
    return dy;
  }
}

// f(constant) with the activation named at run time as a compile-time constant: decltype(constant)::value.
template <class F>
auto with_activation(Activation activation, const F& f) {
  switch (activation) {
    case Activation::kReLU:
      return f(std::integral_constant<Activation, Activation::kReLU>{});
    case Activation::kLeakyReLU:
      return f(std::integral_constant<Activation, Activation::kLeakyReLU>{});
    case Activation::kELU:
      return f(std::integral_constant<Activation, Activation::kELU>{});
    case Activation::kSigmoid:
      return f(std::integral_constant<Activation, Activation::kSigmoid>{});
    case Activation::kTanh:
      return f(std::integral_constant<Activation, Activation::kTanh>{});
    case Activation::kSoftplus:
      return f(std::integral_constant<Activation, Activation::kSoftplus>{});
    default:
      return f(std::integral_constant<Activation, Activation::kNone>{});
  }
}

}  // namespace fastdl::cpu
