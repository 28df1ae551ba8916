// tps_grid_sample: the library's functions.
//
//   tps_grid_sample_forward.cu       out[q] = sum over p of weight(p, q) input[p]
//   tps_grid_sample_grad_theta.cu    grad_theta = sum over q and c of grad_out[q] d out[q] / d theta
//   tps_grid_sample_grad_input.cu    grad_input[p] = sum over q of weight(p, q) grad_out[q]
//   tps_grid_sample_spline.cuh       where q samples
//   sampling*.cuh                    padding; the pixels around a point; tiles of pixels: any op's that
//   samples
#include "tps_grid_sample_spline.cuh"

namespace {

const char* refuse(const fastdl::Tensor& control_points) {
  return control_points.size[0] <= fastdl::tps::kMostPoints ? nullptr
                                                            : "tps_grid_sample: at most 256 control points";
}

}  // namespace

FASTDL_EXPORT const char* fastdl_tps_grid_sample_forward(const fastdl::TPSGridSampleForward* p,
                                                         fastdl::Context* context) {
  if (const char* error = refuse(p->control_points)) return error;
  if (p->out.numel() == 0) return nullptr;
  const fastdl::DeviceGuard guard(context->device);
  if (guard.error()) return guard.error();
  return fastdl::tps::sample(*p, context);
}

FASTDL_EXPORT const char* fastdl_tps_grid_sample_backward(const fastdl::TPSGridSampleBackward* p,
                                                          fastdl::Context* context) {
  using namespace fastdl;
  if (const char* error = refuse(p->control_points)) return error;
  const DeviceGuard guard(context->device);
  if (guard.error()) return guard.error();
  if (p->grad_input && p->grad_input.numel()) {
    if (const char* error = tps::gather_grad_input(*p, context)) return error;
  }
  if (!p->grad_theta) return nullptr;
  if (p->mode == Interpolation::kBilinear && p->grad_out.numel()) return tps::sum_grad_theta(*p, context);
  const size_t bytes = static_cast<size_t>(p->grad_theta.numel()) * sizeof(float);
  return describe(cudaMemsetAsync(p->grad_theta.data, 0, bytes, stream_of(context)));
}
