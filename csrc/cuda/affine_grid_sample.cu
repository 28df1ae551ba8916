// affine_grid_sample: the library's functions.
//
//   affine_grid_sample_forward.cu       out[q] = sum over p of weight(p, q) input[p]
//   affine_grid_sample_grad_theta.cu    grad_theta = sum over q and c of grad_out[q] d out[q] / d theta
//   affine_grid_sample_grad_input.cu    grad_input[p] = sum over q of weight(p, q) grad_out[q]
//   affine_grid_sample_map.cuh          where q samples
//   sampling*.cuh                       padding; the pixels around a point; tiles of pixels: any op's that
//   samples
#include "affine_grid_sample_map.cuh"

FASTDL_EXPORT const char* fastdl_affine_grid_sample_forward(const fastdl::AffineGridSampleForward* p,
                                                            fastdl::Context* context) {
  if (p->out.numel() == 0) return nullptr;
  const fastdl::DeviceGuard guard(context->device);
  if (guard.error()) return guard.error();
  return fastdl::affine::sample(*p, context);
}

FASTDL_EXPORT const char* fastdl_affine_grid_sample_backward(const fastdl::AffineGridSampleBackward* p,
                                                             fastdl::Context* context) {
  using namespace fastdl;
  const DeviceGuard guard(context->device);
  if (guard.error()) return guard.error();
  if (p->grad_input && p->grad_input.numel()) {
    if (const char* error = affine::gather_grad_input(*p, context)) return error;
  }
  if (!p->grad_theta) return nullptr;
  if (p->mode == Interpolation::kBilinear && p->grad_out.numel()) return affine::sum_grad_theta(*p, context);
  const size_t bytes =
      static_cast<size_t>(p->grad_theta.numel()) * (p->grad_theta.dtype == DType::kFloat32 ? 4 : 2);
  return describe(cudaMemsetAsync(p->grad_theta.data, 0, bytes, stream_of(context)));
}
