// The activations of fastdl/activations.py in float32: y = act(x), and dx = dy * act'(x) from y or from x.
//
// `act` is a constant of the kernel, and the switch folds, or an argument, and it is a branch that all
// threads take together. `param` is negative_slope of leaky_relu, alpha of elu. NaN passes through every
// forward, as in torch: hence comparisons that are false for NaN in the branch that changes x, and no fmaxf.
#pragma once

#include "runtime.cuh"

namespace fastdl {

// 1 / (1 + exp(-x)), without overflow on either side.
__device__ __forceinline__ float sigmoid(float x) {
  const float e = expf(-fabsf(x));
  return (x >= 0.0f ? 1.0f : e) / (1.0f + e);
}

// log(1 + exp(x)), without overflow.
__device__ __forceinline__ float softplus(float x) {
  const float positive = x < 0.0f ? 0.0f : x;
  return positive + log1pf(expf(-fabsf(x)));
}

__device__ __forceinline__ float activate(float x, Activation act, float param) {
  switch (act) {
    case Activation::kNone:
      return x;
    case Activation::kReLU:
      return x < 0.0f ? 0.0f : x;
    case Activation::kLeakyReLU:
      return x > 0.0f ? x : x * param;
    case Activation::kELU:
      return x <= 0.0f ? param * expm1f(x) : x;
    case Activation::kSigmoid:
      return sigmoid(x);
    case Activation::kTanh:
      return tanhf(x);
    case Activation::kSoftplus:
      return x > 20.0f ? x : softplus(x);
  }
  return x;
}

// dy * act'(x) from the output y.
__device__ __forceinline__ float activation_grad(float dy, float y, Activation act, float param) {
  switch (act) {
    case Activation::kNone:
      return dy;
    case Activation::kReLU:
      return y <= 0.0f ? 0.0f : dy;
    case Activation::kLeakyReLU:
      return y > 0.0f ? dy : dy * param;
    case Activation::kELU:
      return y <= 0.0f ? dy * (y + param) : dy;
    case Activation::kSigmoid:
      return dy * (1.0f - y) * y;
    case Activation::kTanh:
      return dy * (1.0f - y * y);
    case Activation::kSoftplus:
      return y > 20.0f ? dy : -dy * expm1f(-y);
  }
  return dy;
}

// dy * act'(x) from the pre-activation x, which is the better source where it is at hand: close to saturation
// 1 - y * y is mostly the rounding of y.
__device__ __forceinline__ float activation_grad_at(float dy, float x, Activation act, float param) {
  switch (act) {
    case Activation::kNone:
      return dy;
    case Activation::kReLU:
      return x <= 0.0f ? 0.0f : dy;
    case Activation::kLeakyReLU:
      return x > 0.0f ? dy : dy * param;
    case Activation::kELU:
      return x <= 0.0f ? dy * (param * expf(x)) : dy;
    case Activation::kSigmoid: {
      const float e = expf(-fabsf(x));
      return dy * (e / ((1.0f + e) * (1.0f + e)));
    }
    case Activation::kTanh: {
      const float e = expf(-2.0f * fabsf(x));
      return dy * (4.0f * e / ((1.0f + e) * (1.0f + e)));
    }
    case Activation::kSoftplus:
      return x > 20.0f ? dy : dy * sigmoid(x);
  }
  return dy;
}

}  // namespace fastdl
