// affine_grid_sample, forward.
#include "affine_grid_sample_map.h"
#include "affine_grid_sample_parts.h"
#include "sampling_forward.h"

namespace fastdl::cpu::affine {

const char* sample(const AffineGridSampleForward& p, Context* context) {
  Geometry g;
  if (!make_geometry(g, p.input, p.out.size[2], p.out.size[3], p.mode, p.padding_mode, p.align_corners,
                     context))
    return kNoMemory;
  const AffineMaps maps = {g, p.theta, locate_for(g)};
  return sampling::sample(g, p.input, p.out, maps, context) ? nullptr : kNoMemory;
}

}  // namespace fastdl::cpu::affine
