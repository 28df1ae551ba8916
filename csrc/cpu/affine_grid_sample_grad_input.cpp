// affine_grid_sample, the gradient of the input.
#include "affine_grid_sample_map.h"
#include "affine_grid_sample_parts.h"
#include "sampling_grad_input.h"

namespace fastdl::cpu::affine {

const char* scatter_grad_input(const AffineGridSampleBackward& p, Context* context) {
  Geometry g;
  const int64_t oh = p.grad_out.size[2], ow = p.grad_out.size[3];
  if (!make_geometry(g, p.grad_input, oh, ow, p.mode, p.padding_mode, p.align_corners, context))
    return kNoMemory;
  const AffineMaps maps = {g, p.theta, locate_for(g)};
  return sampling::scatter_grad_input(g, p.grad_out, p.grad_input, maps, context) ? nullptr : kNoMemory;
}

}  // namespace fastdl::cpu::affine
