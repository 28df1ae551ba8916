// What the ops that sample an image share: from a coordinate to the pixels around it.
//
//   xn = linspace(-1, 1, OW)[w], times (OW - 1) / OW unless align_corners           the same for yn
//   (gx, gy) = the op's map of (xn, yn)
//   ix = (gx + 1) (IW - 1) / 2    or, unless align_corners,  (gx + 1) IW / 2 - 1/2     the same for iy
//
// Rounded as csrc/cpu and torch's CPU kernels round, spelled out, so that every kernel finds the same
// coordinates: under the identity every sample lies on a pixel, where the gradient jumps.
//
// Non-finite coordinates: padding moves them to the edge under border and reflection, where they then sample;
// under zeros their cell is a pixel outside, and its weights are NaN (nearest: none).
#pragma once

#include "../sampling.h"
#include "runtime.cuh"

namespace fastdl::sampling {

// An axis of `in` input and `out` output pixels.
struct Axis {
  int in, out;
  float step;   // between the centres of output pixels, from -1 to 1
  float scale;  // d ix / d gx
};

struct Geometry {
  Axis x, y;
  bool align, nearest;
  PaddingMode padding;
};

inline Axis make_axis(int64_t in, int64_t out, bool align) {
  return {static_cast<int>(in), static_cast<int>(out), 2.0f / static_cast<float>(out - 1),
          static_cast<float>(align ? in - 1 : in) / 2};
}

inline Geometry make_geometry(const Tensor& image, const Tensor& result, Interpolation mode,
                              PaddingMode padding, bool align) {
  return {make_axis(image.size[3], result.size[3], align), make_axis(image.size[2], result.size[2], align),
          align, mode == Interpolation::kNearest, padding};
}

// A tensor of four dimensions of any strides.
struct View {
  const void* data;
  int64_t stride[4];
};

template <class T>
__device__ __forceinline__ const T* element(const View& v, int64_t n, int64_t c, int64_t h = 0,
                                            int64_t w = 0) {
  return static_cast<const T*>(v.data) + n * v.stride[0] + c * v.stride[1] + h * v.stride[2] +
         w * v.stride[3];
}

// `repeated`: a batch of one stands for any.
inline View view_of(const Tensor& t, bool repeated = false) {
  return {t.data, {repeated && t.size[0] == 1 ? 0 : t.stride[0], t.stride[1], t.stride[2], t.stride[3]}};
}

// The centre of output pixel i: torch.linspace goes from both ends to the middle.
__device__ __forceinline__ float centre(const Axis& axis, int i, bool align) {
  if (axis.out == 1) return 0.0f;
  const float left = __fmaf_rn(axis.step, static_cast<float>(i), -1.0f);
  const float right = __fmaf_rn(-axis.step, static_cast<float>(axis.out - 1 - i), 1.0f);
  const float at = i < axis.out / 2 ? left : right;
  return align ? at
               : __fdiv_rn(__fmul_rn(at, static_cast<float>(axis.out - 1)), static_cast<float>(axis.out));
}

// torch's padding. slope: 1, -1 where reflected, 0 where clamped. fold: which reflection of the image x lies
// in, 0 for the image itself, counted by whole periods of two images, mirrored ones odd, and negative before
// the image.
__device__ __forceinline__ float pad(float x, const Axis& axis, PaddingMode padding, bool align, float& slope,
                                     float& fold) {
  slope = 1.0f;
  fold = 0.0f;
  if (padding == PaddingMode::kZeros) return x;
  if (padding == PaddingMode::kReflection) {
    const float low = align ? 0.0f : -0.5f,
                period = static_cast<float>(2 * int64_t{align ? axis.in - 1 : axis.in});
    const float shifted = __fadd_rn(x, -low), distance = fabsf(shifted),
                turns = floorf(__fdiv_rn(distance, period));
    const float there = __fmaf_rn(-turns, period, distance), back = __fadd_rn(period, -there);
    const bool flipped = there > back, negative = shifted < 0.0f;
    x = __fadd_rn(flipped ? back : there, low);
    slope = flipped != negative ? -1.0f : 1.0f;
    fold = 2.0f * turns + (flipped ? 1.0f : 0.0f);
    if (negative) fold = -1.0f - fold;
  }
  const float last = static_cast<float>(axis.in - 1);
  if (!(x > 0.0f && x < last)) slope = 0.0f;
  x = x > 0.0f ? x : 0.0f;  // NaN becomes 0
  return x < last ? x : last;
}

// The pixel before x (nearest: the one x rounds to, halves to even) and x's distance from it. Far away, or
// NaN, it is a pixel outside whose successor is outside too.
__device__ __forceinline__ int cell_of(float x, const Axis& axis, bool nearest, float& part) {
  const float cell = nearest ? rintf(x) : floorf(x);
  part = __fadd_rn(x, -cell);
  if (!(cell > -2.0f)) return -2;
  return cell < static_cast<float>(axis.in) ? static_cast<int>(cell) : axis.in;
}

// Where an output pixel samples.
struct Cell {
  int x, y;      // the first of the four pixels around the point (nearest: the one)
  float fx, fy;  // distance from it
  float slope_x, slope_y;
  float fold_x, fold_y;
};

// From the coordinates in pixels, before padding.
__device__ __forceinline__ Cell cell_at(const Geometry& g, float x, float y) {
  Cell c;
  x = pad(x, g.x, g.padding, g.align, c.slope_x, c.fold_x);
  y = pad(y, g.y, g.padding, g.align, c.slope_y, c.fold_y);
  c.x = cell_of(x, g.x, g.nearest, c.fx);
  c.y = cell_of(y, g.y, g.nearest, c.fy);
  return c;
}

// The weights of the four pixels: (x, y), (x + 1, y), (x, y + 1), (x + 1, y + 1).
__device__ __forceinline__ float weight_of(const Cell& c, int tap) {
  return (tap % 2 ? c.fx : 1.0f - c.fx) * (tap / 2 ? c.fy : 1.0f - c.fy);
}

// Which of the four pixels lie inside, and where: offsets from the start of a plane.
struct Taps {
  int64_t offset[4];
  unsigned inside;
};

__device__ __forceinline__ Taps taps_of(const Cell& c, const Geometry& g, int64_t row_stride,
                                        int64_t pixel_stride) {
  Taps taps;
  taps.inside = 0;
#pragma unroll
  for (int tap = 0; tap < 4; ++tap) {
    const int x = c.x + tap % 2, y = c.y + tap / 2;
    taps.offset[tap] = y * row_stride + x * pixel_stride;
    if (x >= 0 && x < g.x.in && y >= 0 && y < g.y.in) taps.inside |= 1u << tap;
  }
  return taps;
}

// N channels of a tap; zeros outside.
template <int N, class T>
__device__ __forceinline__ Vec<float, N> load_tap(const T* plane, const Taps& taps, int tap) {
  if (taps.inside >> tap & 1u) return load_float<N, Cache::kReadOnly>(plane + taps.offset[tap]);
  Vec<float, N> zeros;
#pragma unroll
  for (int i = 0; i < N; ++i) zeros[i] = 0.0f;
  return zeros;
}

}  // namespace fastdl::sampling
