// tps_grid_sample: what tps_grid_sample.cpp calls.
#pragma once

#include "../tps_grid_sample.h"
#include "tps_grid_sample_basis.h"

namespace fastdl::cpu::tps {

// False: no memory.
bool sample(const TPSGridSampleForward& p, const Basis& basis, Context* context);
bool sum_grad_theta(const TPSGridSampleBackward& p, const Basis& basis, Context* context);
bool scatter_grad_input(const TPSGridSampleBackward& p, const Basis& basis, Context* context);

}  // namespace fastdl::cpu::tps
