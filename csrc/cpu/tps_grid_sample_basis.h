// tps_grid_sample: the functions that every spline of a call is a sum of, at the pixels of the output.
//
//   x, y, U_1, ..., U_K  and 1      U_k = s log s, s the square of the distance from control point k
//
// They do not depend on the sample: a call makes them once, as one table for all samples, channels and
// passes, unless that would be large. Then they are made chunk by chunk where they are needed.
#pragma once

#include <algorithm>

#include "log.h"
#include "sampling_geometry.h"

namespace fastdl::cpu::tps {

using namespace sampling;

constexpr int64_t kTableBytes = 16 << 20;

// Functions of a chunk of pixels: at[k * stride + i] is function k of pixel i. i reaches kChunk whatever the
// chunk's size.
struct Rows {
  const float* at;
  int64_t stride;
};

struct Basis {
  const Geometry* geometry;
  int64_t functions;    // 2 + K: without the 1
  const float* points;  // [2][K]
  const float* table;   // [functions][stride], of all output pixels, row by row; or null
  int64_t stride;

  // Scratch of rows().
  int64_t floats() const { return table ? 0 : functions * kChunk; }
  // From output pixel `first` on.
  Rows rows(int64_t first, float* scratch) const;
};

// to [functions][stride]: the functions of kChunk pixels from `first` on, of the point (0, 0) behind the
// last.
inline void fill_rows(const Basis& basis, int64_t first, float* to, int64_t stride) {
  const Geometry& g = *basis.geometry;
  const int64_t count = basis.functions - 2;
  float *x = to, *y = to + stride;
  int64_t h = first / g.ow, w = first % g.ow;
  for (int i = 0; i < kChunk; ++h, w = 0) {
    const int end = static_cast<int>(h < g.oh ? std::min<int64_t>(kChunk, i + g.ow - w) : kChunk);
    for (; i < end; ++i, ++w) {
      x[i] = h < g.oh ? g.xn[w] : 0.0f;
      y[i] = h < g.oh ? g.yn[h] : 0.0f;
    }
  }
  for (int64_t k = 0; k < count; ++k) {
    const Vec cx = splat(basis.points[k]), cy = splat(basis.points[count + k]);
    float* row = to + (2 + k) * stride;
    for (int i = 0; i < kChunk; i += kWidth) {
      const Vec dx = load(x + i) - cx, dy = load(y + i) - cy;
      const Vec s = fma(dx, dx, dy * dy);
      store(row + i, s * log_positive(s));  // 0 at 0, where the logarithm is some number
    }
  }
}

inline Rows Basis::rows(int64_t first, float* scratch) const {
  if (table) return {table + first, stride};
  fill_rows(*this, first, scratch, kChunk);
  return {scratch, kChunk};
}

// False: no memory.
inline bool make_basis(Basis& basis, const Geometry& g, const Tensor& control_points, Context* context) {
  const int64_t count = control_points.size[0], chunks = (g.oh * g.ow + kChunk - 1) / kChunk;
  const int64_t stride = (chunks + 1) * kChunk;  // a chunk may begin anywhere
  float* points = static_cast<float*>(context->allocate(context, 2 * count * 4));
  if (points == nullptr) return false;
  for (int64_t k = 0; k < count; ++k)
    for (int axis = 0; axis < 2; ++axis)
      points[axis * count + k] =
          element(control_points, k * control_points.stride[0] + axis * control_points.stride[1]);
  basis = {&g, 2 + count, points, nullptr, stride};
  if (basis.functions * stride * 4 > kTableBytes) return true;
  float* table = static_cast<float*>(context->allocate(context, basis.functions * stride * 4));
  if (table == nullptr) return false;
  parallel(context, chunks + 1, std::max<int64_t>(1, 1024 / count), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) fill_rows(basis, i * kChunk, table + i * kChunk, stride);
  });
  basis.table = table;
  return true;
}

}  // namespace fastdl::cpu::tps
