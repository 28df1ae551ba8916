// cross_entropy of logits [N, C, D]; a row is the C logits of one (n, d). See docs/ops/cross_entropy.md.
#pragma once

#include "library.h"

namespace fastdl {

enum class Reduction : int32_t { kNone, kMean, kSum };

struct CrossEntropyForward {
  Tensor input;   // [N, C, D] float, any strides
  Tensor target;  // [N, D] int64 or uint8 class indices, or [N, C, D] probabilities of input's dtype; any
                  // strides
  Tensor weight;  // [C] float, contiguous; or absent
  Tensor loss;    // [N, D] or, reduced, []; input's dtype or float32
  Tensor lse;     // [N, D] float32, log(sum(exp(row))); absent: no backward follows
  Tensor total_weight;  // [] float32, what the mean divides by; written for kMean; absent or without elements
                        // where it is not wanted
  int64_t ignore_index;
  double label_smoothing;
  Reduction reduction;
};

struct CrossEntropyBackward {
  Tensor grad_loss;  // [N, D] (any strides) or []
  Tensor input, target, weight, lse, total_weight;
  Tensor grad_input;  // [N, C, D] input's dtype, any dense strides; every element is written
  int64_t ignore_index;
  double label_smoothing;
  Reduction reduction;
};

// grad *= factor, for a gradient that was computed with the loss.
struct CrossEntropyScale {
  Tensor grad;    // [n] float, contiguous
  Tensor factor;  // [] float
};

}  // namespace fastdl

FASTDL_EXPORT const char* fastdl_cross_entropy_forward(const fastdl::CrossEntropyForward*, fastdl::Context*);
FASTDL_EXPORT const char* fastdl_cross_entropy_backward(const fastdl::CrossEntropyBackward*,
                                                        fastdl::Context*);
FASTDL_EXPORT const char* fastdl_cross_entropy_scale(const fastdl::CrossEntropyScale*, fastdl::Context*);
