// batch_norm: out = act((x - mean) * invstd * weight + bias + residual). See docs/ops/batch_norm.md.
#pragma once

#include "library.h"

namespace fastdl {

// x, out, residual, grad_*: [N, C, ...], two to five dimensions, dense and of the same strides: contiguous or
// channels-last. weight, bias, running_*: [C] contiguous, float32 or x's dtype; each may be absent.
struct BatchNormForward {
  Tensor x, weight, bias, residual;
  Tensor running_mean, running_var;  // moved in place when training
  Tensor out;
  Tensor mean, invstd;  // [C] float32: the batch's (training) or the running ones; absent in evaluation
                        // without backward
  Tensor mask;          // [ceil(numel / 8)] uint8, x's memory order: bit i % 8 of byte i / 8 is
                        // !(out[i] <= 0); or absent
  bool training;
  double momentum, eps;
  Activation activation;
  float activation_param;
};

struct BatchNormBackward {
  Tensor grad_out, x, weight, bias;
  Tensor out;           // saved for an activation other than relu behind a residual; else absent
  Tensor mean, invstd;  // [C] float32
  Tensor mask;          // saved for relu behind a residual; else absent
  Tensor grad_x, grad_weight, grad_bias, grad_residual;  // absent: not wanted
  bool training;
  Activation activation;
  float activation_param;
};

}  // namespace fastdl

FASTDL_EXPORT const char* fastdl_batch_norm_forward(const fastdl::BatchNormForward*, fastdl::Context*);
FASTDL_EXPORT const char* fastdl_batch_norm_backward(const fastdl::BatchNormBackward*, fastdl::Context*);
