// conv2d: out = act(conv(x, weight) + bias), where libraries are weak; and what goes around a library's
// convolution where they are strong. fastdl/native/conv2d.py decides which. See docs/ops/conv2d.md.
#pragma once

#include "library.h"

namespace fastdl {

struct Convolution {
  int64_t stride[2], padding[2], dilation[2];  // (vertical, horizontal)
  int64_t groups;
  Activation activation;
  float activation_param;
};

// The direct kernels.
struct Conv2dForward {
  Tensor x;       // [N, C, H, W] float, any strides
  Tensor weight;  // [K, C / groups, R, S] x's dtype, any strides
  Tensor bias;    // [K] x's dtype, contiguous; or absent
  Tensor out;     // [N, K, OH, OW] x's dtype, contiguous or channels_last
  Convolution convolution;
};

// The gradients by direct kernels, from the gradient of the pre-activation.
struct Conv2dBackward {
  Tensor grad_out;  // [N, K, OH, OW] float, any strides: gradient of the pre-activation,
                    // conv2d_epilogue_backward's
  Tensor x, weight;
  Tensor grad_x;            // [N, C, H, W] contiguous or channels_last; absent: not wanted
  Tensor grad_weight;       // like weight, contiguous or channels_last; absent: not wanted
  Convolution convolution;  // activation kNone
};

// y = act(y + bias) in place, one pass.
struct Conv2dEpilogue {
  Tensor out;   // [N, K, OH, OW] float, contiguous or channels_last: in and out
  Tensor bias;  // [K] or absent
  Activation activation;
  float activation_param;
};

// grad_pre = grad_out * act'(out) and grad_bias = its sum per channel, one pass over both.
struct Conv2dEpilogueBackward {
  Tensor grad_out;   // [N, K, OH, OW] float, any strides
  Tensor out;        // [N, K, OH, OW] contiguous or channels_last; absent without activation
  Tensor grad_pre;   // out's strides (or contiguous or channels_last); absent: not wanted
  Tensor grad_bias;  // [K]; absent: not wanted
  Activation activation;
  float activation_param;
};

// out = act(max_pool2d(conv(x, weight) + bias)): one kernel, nothing in between in memory.
struct Conv2dMaxPool2d {
  Tensor x, weight, bias;
  Tensor out;      // [N, K, PH, PW] pooled, contiguous or channels_last
  Tensor offsets;  // [N, K, PH, PW] uint8: the winner's kh * KW + kw; or absent
  Convolution convolution;
  int64_t pool_kernel_size[2], pool_stride[2];  // no padding, no dilation
};

}  // namespace fastdl

// Whether the library has a direct kernel for these (only shapes, strides and dtypes are read).
FASTDL_EXPORT bool fastdl_conv2d_forward_covers(const fastdl::Conv2dForward*);
FASTDL_EXPORT bool fastdl_conv2d_backward_covers(const fastdl::Conv2dBackward*);
FASTDL_EXPORT bool fastdl_conv2d_max_pool2d_covers(const fastdl::Conv2dMaxPool2d*);

FASTDL_EXPORT const char* fastdl_conv2d_forward(const fastdl::Conv2dForward*, fastdl::Context*);
FASTDL_EXPORT const char* fastdl_conv2d_backward(const fastdl::Conv2dBackward*, fastdl::Context*);
FASTDL_EXPORT const char* fastdl_conv2d_epilogue(const fastdl::Conv2dEpilogue*, fastdl::Context*);
FASTDL_EXPORT const char* fastdl_conv2d_epilogue_backward(const fastdl::Conv2dEpilogueBackward*,
                                                          fastdl::Context*);
FASTDL_EXPORT const char* fastdl_conv2d_max_pool2d(const fastdl::Conv2dMaxPool2d*, fastdl::Context*);
