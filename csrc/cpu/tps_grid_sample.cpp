// tps_grid_sample: the library's functions.
//
//   tps_grid_sample_forward.cpp       out[q] = sum over p of weight(p, q) input[p]
//   tps_grid_sample_grad_theta.cpp    grad_theta = sum over q and c of grad_out[q] d out[q] / d theta
//   tps_grid_sample_grad_input.cpp    grad_input[p] = sum over q of weight(p, q) grad_out[q]
//   tps_grid_sample_basis.h           the functions that a spline is a sum of
//   tps_grid_sample_map.h             where q samples
//   sampling_forward.h, sampling_grad_theta.h, sampling_grad_input.h    the same for any map
//   sampling_geometry.h               the pixels; padding; the four around a point
//   sampling_tiles.h                  tiles of output and their part of the input
//   sampling_pixels.h                 pixels from and to tensors of any layout and dtype
#include "../tps_grid_sample.h"

#include <cstring>

#include "tps_grid_sample_parts.h"

namespace fastdl::cpu::tps {
namespace {

const char* kDTypes =
    "tps_grid_sample: expected float32, float16 or bfloat16 and theta and control_points of float32";
const char* kNoMemory = "tps_grid_sample: out of memory";

bool is_float(const Tensor& t) {
  return t.dtype == DType::kFloat32 || t.dtype == DType::kFloat16 || t.dtype == DType::kBFloat16;
}

template <class Params>
bool dtypes_are_right(const Params& p, const Tensor& out) {
  return is_float(p.input) && is_float(out) && p.theta.dtype == DType::kFloat32 &&
         p.control_points.dtype == DType::kFloat32;
}

// False: no memory.
template <class Params>
bool prepare(const Params& p, const Tensor& out, Geometry& g, Basis& basis, Context* context) {
  return make_geometry(g, p.input, out.size[2], out.size[3], p.mode, p.padding_mode, p.align_corners,
                       context) &&
         make_basis(basis, g, p.control_points, context);
}

}  // namespace
}  // namespace fastdl::cpu::tps

FASTDL_EXPORT const char* fastdl_tps_grid_sample_forward(const fastdl::TPSGridSampleForward* p,
                                                         fastdl::Context* context) {
  using namespace fastdl::cpu::tps;
  if (!dtypes_are_right(*p, p->out)) return kDTypes;
  if (p->out.numel() == 0) return nullptr;
  Geometry g;
  Basis basis;
  if (!prepare(*p, p->out, g, basis, context) || !sample(*p, basis, context)) return kNoMemory;
  return nullptr;
}

FASTDL_EXPORT const char* fastdl_tps_grid_sample_backward(const fastdl::TPSGridSampleBackward* p,
                                                          fastdl::Context* context) {
  using namespace fastdl::cpu::tps;
  if (!dtypes_are_right(*p, p->grad_out)) return kDTypes;
  const bool bilinear = p->mode == fastdl::Interpolation::kBilinear, any = p->grad_out.numel() != 0;
  const bool scattered = p->grad_input && p->grad_input.numel(), summed = p->grad_theta && bilinear && any;
  Geometry g;
  Basis basis;
  if ((scattered || summed) && !prepare(*p, p->grad_out, g, basis, context)) return kNoMemory;
  if (scattered && !scatter_grad_input(*p, basis, context)) return kNoMemory;
  if (summed && !sum_grad_theta(*p, basis, context)) return kNoMemory;
  if (p->grad_theta && !summed)
    std::memset(p->grad_theta.data, 0, static_cast<size_t>(p->grad_theta.numel() * 4));
  return nullptr;
}
