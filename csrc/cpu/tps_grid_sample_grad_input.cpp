// tps_grid_sample, the gradient of the input.
#include "sampling_grad_input.h"
#include "tps_grid_sample_map.h"
#include "tps_grid_sample_parts.h"

namespace fastdl::cpu::tps {

bool scatter_grad_input(const TPSGridSampleBackward& p, const Basis& basis, Context* context) {
  const TPSMaps maps = {basis, p.theta};
  return sampling::scatter_grad_input(*basis.geometry, p.grad_out, p.grad_input, maps, context);
}

}  // namespace fastdl::cpu::tps
