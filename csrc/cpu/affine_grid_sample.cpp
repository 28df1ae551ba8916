// affine_grid_sample: the library's functions.
//
//   affine_grid_sample_forward.cpp       out[q] = sum over p of weight(p, q) input[p]
//   affine_grid_sample_grad_theta.cpp    grad_theta = sum over q and c of grad_out[q] d out[q] / d theta
//   affine_grid_sample_grad_input.cpp    grad_input[p] = sum over q of weight(p, q) grad_out[q]
//   affine_grid_sample_map.h             where q samples
//   sampling_forward.h, sampling_grad_theta.h, sampling_grad_input.h    the same for any map
//   sampling_geometry.h                  the pixels; padding; the four around a point
//   sampling_tiles.h                     tiles of output and their part of the input
//   sampling_pixels.h                    pixels from and to tensors of any layout and dtype
#include "../affine_grid_sample.h"

#include <cstring>

#include "affine_grid_sample_parts.h"

namespace fastdl::cpu::affine {
namespace {

bool is_float(const Tensor& t) {
  return t.dtype == DType::kFloat32 || t.dtype == DType::kFloat16 || t.dtype == DType::kBFloat16;
}

const char* kDTypes = "affine_grid_sample: expected float32, float16 or bfloat16";

}  // namespace
}  // namespace fastdl::cpu::affine

FASTDL_EXPORT const char* fastdl_affine_grid_sample_forward(const fastdl::AffineGridSampleForward* p,
                                                            fastdl::Context* context) {
  using namespace fastdl::cpu::affine;
  if (!is_float(p->input) || !is_float(p->theta) || !is_float(p->out)) return kDTypes;
  return p->out.numel() ? sample(*p, context) : nullptr;
}

FASTDL_EXPORT const char* fastdl_affine_grid_sample_backward(const fastdl::AffineGridSampleBackward* p,
                                                             fastdl::Context* context) {
  using namespace fastdl::cpu::affine;
  if (!is_float(p->input) || !is_float(p->theta) || !is_float(p->grad_out)) return kDTypes;
  if (p->grad_input && p->grad_input.numel()) {
    if (const char* error = scatter_grad_input(*p, context)) return error;
  }
  if (!p->grad_theta) return nullptr;
  if (p->mode == fastdl::Interpolation::kBilinear && p->grad_out.numel()) return sum_grad_theta(*p, context);
  const int64_t bytes = p->grad_theta.numel() * (p->grad_theta.dtype == fastdl::DType::kFloat32 ? 4 : 2);
  std::memset(p->grad_theta.data, 0, static_cast<size_t>(bytes));
  return nullptr;
}
