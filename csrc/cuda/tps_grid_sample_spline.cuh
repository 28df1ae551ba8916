// tps_grid_sample: where an output pixel samples the input.
//
//   gx = (xn, yn, 1) . theta[n, 0, :3] + sum over k of theta[n, 0, 3 + k] U(|(xn, yn) - control_points[k]|^2)
//   U(s) = s log s, U(0) = 0                                                          the same for gy
//
// Every operation is spelled out: the gradient of the input asks one kernel which pixels are sampled, and
// another for the weights.
#pragma once

#include "../tps_grid_sample.h"
#include "sampling.cuh"
#include "sampling_tiles.cuh"

namespace fastdl::tps {

using namespace sampling;

constexpr int kMostPoints = 256;
static_assert(kMostPoints <= kThreads, "a thread loads a point");

// theta [N, 2, 3 + K] and control_points [K, 2], float32 of any strides.
struct Splines {
  const float *theta, *points;
  int64_t theta_stride[3], points_stride[2];
  int count;  // K
};

inline Splines splines_of(const Tensor& theta, const Tensor& points) {
  return {static_cast<const float*>(theta.data),
          static_cast<const float*>(points.data),
          {theta.stride[0], theta.stride[1], theta.stride[2]},
          {points.stride[0], points.stride[1]},
          static_cast<int>(points.size[0])};
}

// A control point and what it adds to gx and gy, in multiples of U.
struct alignas(16) Knot {
  float x, y, to_x, to_y;
};

// The spline of a sample, in shared memory.
struct Spline {
  Knot knots[kMostPoints];
  float x[3], y[3];
};

// By a whole block, with barriers around.
__device__ __forceinline__ void load_spline(const Splines& s, int64_t n, Spline* spline) {
  const float* theta = s.theta + n * s.theta_stride[0];
  const int k = static_cast<int>(threadIdx.x);
  __syncthreads();
  if (k < s.count) {
    const float* element = theta + (k + 3) * s.theta_stride[2];
    spline->knots[k] = {__ldg(s.points + k * s.points_stride[0]),
                        __ldg(s.points + k * s.points_stride[0] + s.points_stride[1]), __ldg(element),
                        __ldg(element + s.theta_stride[1])};
  }
  if (k < 3) {
    spline->x[k] = __ldg(theta + k * s.theta_stride[2]);
    spline->y[k] = __ldg(theta + s.theta_stride[1] + k * s.theta_stride[2]);
  }
  __syncthreads();
}

// U of the distance from a control point. __logf errs by 4e-7 near 1, as much as three roundings of U.
__device__ __forceinline__ float kernel_of(const Knot& knot, float xn, float yn) {
  const float dx = __fadd_rn(xn, -knot.x), dy = __fadd_rn(yn, -knot.y);
  const float square = __fmaf_rn(dx, dx, __fmul_rn(dy, dy));
  return __fmul_rn(square, logf(square == 0.0f ? 1.0f : square));
}

// A sum and what its roundings lost, for the terms of many control points cancel.
struct Compensated {
  float sum, lost;

  __device__ __forceinline__ void add(float term) {
    const float next = __fadd_rn(sum, term);
    lost = __fadd_rn(lost, __fadd_rn(term, -__fadd_rn(next, -sum)));
    sum = next;
  }
  __device__ __forceinline__ void add_product(float a, float b) {
    const float term = __fmul_rn(a, b);
    lost = __fadd_rn(lost, __fmaf_rn(a, b, -term));
    add(term);
  }
  // An infinite sum lost NaN.
  __device__ __forceinline__ float total() const { return lost == lost ? __fadd_rn(sum, lost) : sum; }
};

// The coordinate in pixels, before padding, from what the control points add up to.
__device__ __forceinline__ float unpadded(Compensated g, const float* affine, float xn, float yn,
                                          const Axis& axis, bool align) {
  g.add_product(xn, affine[0]);
  g.add_product(yn, affine[1]);
  g.add(affine[2]);
  g.add(1.0f);
  const float shift = align ? 0.0f : -0.5f;
  const float rest =
      g.lost == g.lost ? __fmaf_rn(g.lost, axis.scale, shift) : shift;  // an infinite g lost NaN
  return __fmaf_rn(g.sum, axis.scale, rest);
}

__device__ __forceinline__ Cell locate(const Geometry& g, const Spline& spline, int count, float xn,
                                       float yn) {
  Compensated x = {0.0f, 0.0f}, y = {0.0f, 0.0f};
#pragma unroll 2
  for (int k = 0; k < count; ++k) {
    const Knot knot = spline.knots[k];
    const float u = kernel_of(knot, xn, yn);
    x.add(__fmul_rn(knot.to_x, u));
    y.add(__fmul_rn(knot.to_y, u));
  }
  return cell_at(g, unpadded(x, spline.x, xn, yn, g.x, g.align), unpadded(y, spline.y, xn, yn, g.y, g.align));
}

// ---- What tps_grid_sample.cu calls ----

const char* sample(const TPSGridSampleForward& p, Context* context);
const char* sum_grad_theta(const TPSGridSampleBackward& p, Context* context);
const char* gather_grad_input(const TPSGridSampleBackward& p, Context* context);

}  // namespace fastdl::tps
