// affine_grid_sample: grid_sample(input, affine_grid(theta)) without the grid. See
// docs/ops/affine_grid_sample.md.
#pragma once

#include "library.h"
#include "sampling.h"

namespace fastdl {

struct AffineGridSampleForward {
  Tensor input;  // [N or 1, C, IH, IW] float, any strides
  Tensor theta;  // [N, 2, 3] float32, float16 or bfloat16, whatever input's dtype; any strides
  Tensor out;    // [N, C, OH, OW] contiguous; input's dtype or float32
  Interpolation mode;
  PaddingMode padding_mode;
  bool align_corners;
};

struct AffineGridSampleBackward {
  Tensor grad_out;  // [N, C, OH, OW] float, any strides
  Tensor input, theta;
  Tensor grad_input;  // [N or 1, C, IH, IW] contiguous, input's dtype; absent: not wanted
  Tensor grad_theta;  // [N, 2, 3] contiguous, theta's dtype; absent: not wanted
  Interpolation mode;
  PaddingMode padding_mode;
  bool align_corners;
};

}  // namespace fastdl

FASTDL_EXPORT const char* fastdl_affine_grid_sample_forward(const fastdl::AffineGridSampleForward*,
                                                            fastdl::Context*);
FASTDL_EXPORT const char* fastdl_affine_grid_sample_backward(const fastdl::AffineGridSampleBackward*,
                                                             fastdl::Context*);
