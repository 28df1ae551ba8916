// tps_grid_sample: an image sampled through thin-plate splines, without the grid. See
// docs/ops/tps_grid_sample.md.
#pragma once

#include "library.h"
#include "sampling.h"

namespace fastdl {

struct TPSGridSampleForward {
  Tensor input;  // [N or 1, C, IH, IW] float, any strides
  Tensor theta;  // [N, 2, 3 + K] float32, any strides: of (x, y, 1), then of U for each control point
  Tensor control_points;  // [K, 2] float32, any strides
  Tensor out;             // [N, C, OH, OW] contiguous; input's dtype or float32
  Interpolation mode;
  PaddingMode padding_mode;
  bool align_corners;
};

struct TPSGridSampleBackward {
  Tensor grad_out;  // [N, C, OH, OW] float, any strides
  Tensor input, theta, control_points;
  Tensor grad_input;  // [N or 1, C, IH, IW] contiguous, input's dtype; absent: not wanted
  Tensor grad_theta;  // [N, 2, 3 + K] contiguous float32; absent: not wanted
  Interpolation mode;
  PaddingMode padding_mode;
  bool align_corners;
};

}  // namespace fastdl

FASTDL_EXPORT const char* fastdl_tps_grid_sample_forward(const fastdl::TPSGridSampleForward*,
                                                         fastdl::Context*);
FASTDL_EXPORT const char* fastdl_tps_grid_sample_backward(const fastdl::TPSGridSampleBackward*,
                                                          fastdl::Context*);
