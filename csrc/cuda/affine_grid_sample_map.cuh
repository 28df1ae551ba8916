// affine_grid_sample: where an output pixel samples the input.
//
//   gx = (xn theta00 + yn theta01) + theta02      each operation rounded, as torch's CPU kernels do; gy
//   likewise
#pragma once

#include "../affine_grid_sample.h"
#include "sampling.cuh"
#include "sampling_tiles.cuh"

namespace fastdl::affine {

using namespace sampling;

// A tensor [N, 2, 3] of any float dtype and strides.
struct Thetas {
  const void* data;
  int64_t stride[3];
  DType dtype;
};

inline Thetas thetas_of(const Tensor& t) {
  return {t.data, {t.stride[0], t.stride[1], t.stride[2]}, t.dtype};
}

struct Theta {
  float x[3], y[3];
};

__device__ __forceinline__ float theta_element(const Thetas& t, int64_t offset) {
  if (t.dtype == DType::kFloat16) return to_float(static_cast<const f16*>(t.data)[offset]);
  if (t.dtype == DType::kBFloat16) return to_float(static_cast<const bf16*>(t.data)[offset]);
  return static_cast<const float*>(t.data)[offset];
}

__device__ __forceinline__ Theta load_theta(const Thetas& t, int64_t n) {
  Theta theta;
#pragma unroll
  for (int k = 0; k < 3; ++k) {
    theta.x[k] = theta_element(t, n * t.stride[0] + k * t.stride[2]);
    theta.y[k] = theta_element(t, n * t.stride[0] + t.stride[1] + k * t.stride[2]);
  }
  return theta;
}

// The coordinate in pixels, before padding, from the row of theta and the products of its first two elements.
__device__ __forceinline__ float unpadded(float product_x, float product_y, float shift, const Axis& axis,
                                          bool align) {
  const float g = __fadd_rn(__fadd_rn(product_x, product_y), shift);
  return __fmaf_rn(__fadd_rn(g, 1.0f), axis.scale, align ? 0.0f : -0.5f);
}

__device__ __forceinline__ Cell locate(const Geometry& g, const Theta& theta, float xn, float yn) {
  const float x = unpadded(__fmul_rn(xn, theta.x[0]), __fmul_rn(yn, theta.x[1]), theta.x[2], g.x, g.align);
  const float y = unpadded(__fmul_rn(xn, theta.y[0]), __fmul_rn(yn, theta.y[1]), theta.y[2], g.y, g.align);
  return cell_at(g, x, y);
}

// ---- What affine_grid_sample.cu calls ----

const char* sample(const AffineGridSampleForward& p, Context* context);
const char* sum_grad_theta(const AffineGridSampleBackward& p, Context* context);
const char* gather_grad_input(const AffineGridSampleBackward& p, Context* context);

}  // namespace fastdl::affine
