// affine_grid_sample: what affine_grid_sample.cpp calls.
#pragma once

#include "../affine_grid_sample.h"

namespace fastdl::cpu::affine {

inline const char* kNoMemory = "affine_grid_sample: out of memory";

const char* sample(const AffineGridSampleForward& p, Context* context);
const char* sum_grad_theta(const AffineGridSampleBackward& p, Context* context);
const char* scatter_grad_input(const AffineGridSampleBackward& p, Context* context);

}  // namespace fastdl::cpu::affine
