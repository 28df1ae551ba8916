// max_pool2d: out = max over the window of x; offsets = the winner's kh * KW + kw. See
// docs/ops/max_pool2d.md.
#pragma once

#include "library.h"

namespace fastdl {

struct Window {
  int64_t kernel_size[2], stride[2], padding[2], dilation[2];  // (vertical, horizontal)
};

struct MaxPool2dForward {
  Tensor x;        // [N, C, H, W] float, any strides
  Tensor out;      // [N, C, OH, OW] x's dtype, contiguous or channels_last
  Tensor offsets;  // [N, C, OH, OW] uint8, int16 or int32, out's strides; or absent
  Window window;
};

struct MaxPool2dBackward {
  Tensor grad_out;  // [N, C, OH, OW] float, any strides
  Tensor offsets;   // [N, C, OH, OW] uint8, int16 or int32, contiguous or channels_last
  Tensor grad_x;    // [N, C, H, W] grad_out's dtype, contiguous or channels_last; every element is written
  Window window;
};

}  // namespace fastdl

FASTDL_EXPORT const char* fastdl_max_pool2d_forward(const fastdl::MaxPool2dForward*, fastdl::Context*);
FASTDL_EXPORT const char* fastdl_max_pool2d_backward(const fastdl::MaxPool2dBackward*, fastdl::Context*);
