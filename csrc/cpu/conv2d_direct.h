// The direct kernels, each in a file of its own, and what they share. They are for float32.
#pragma once

#include "../conv2d.h"

namespace fastdl::cpu {

// conv2d_planar.cpp: contiguous out, strides of at most kMaxStep (half of that with a pool).
const char* planar_forward(const Conv2dForward&, Context*);
const char* planar_max_pool2d(const Conv2dMaxPool2d&, Context*);

// conv2d_wgrad.cpp: rows of grad_out contiguous, strides of at most kMaxStep.
const char* planar_wgrad(const Conv2dBackward&, Context*);

// conv2d_channels.cpp: out channels_last, no groups.
const char* channels_forward(const Conv2dForward&, Context*);

// conv2d_pointwise_planar.cpp, conv2d_pointwise_channels.cpp: 1x1 without padding or groups, out contiguous;
// or x and out channels_last.
const char* pointwise_planar_forward(const Conv2dForward&, Context*);
const char* pointwise_channels_forward(const Conv2dForward&, Context*);

// conv2d_pointwise_wgrad.cpp: 1x1 without padding or groups, grad_out contiguous or channels_last.
const char* pointwise_wgrad(const Conv2dBackward&, Context*);

// conv2d_depthwise_channels.cpp: 3x3, x and out channels_last.
bool depthwise_channels_fits(const Conv2dForward&);
const char* depthwise_channels_forward(const Conv2dForward&, Context*);

// conv2d_depthwise_channels_wgrad.cpp: 3x3, x and grad_out with channels next to each other.
bool depthwise_channels_wgrad_fits(const Conv2dBackward&);
const char* depthwise_channels_wgrad(const Conv2dBackward&, Context*);

// relu is max(floor, sum) as the sums are stored (NaN stays: max gives its second operand); any other
// activation is a pass over what has just been stored.
inline float floor_of(Activation activation) {
  return activation == Activation::kReLU ? 0.0f : -__builtin_inff();
}
void activate_behind_floor(Activation activation, float param, float* y, int64_t n);  // conv2d_epilogue.cpp

}  // namespace fastdl::cpu
