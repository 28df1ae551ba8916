// tps_grid_sample, forward.
#include "sampling_forward.h"
#include "tps_grid_sample_map.h"
#include "tps_grid_sample_parts.h"

namespace fastdl::cpu::tps {

bool sample(const TPSGridSampleForward& p, const Basis& basis, Context* context) {
  return sampling::sample(*basis.geometry, p.input, p.out, TPSMaps{basis, p.theta}, context);
}

}  // namespace fastdl::cpu::tps
