// affine_grid_sample: which output pixels may sample an input pixel.
//
// An output pixel samples input pixel p if its coordinate, padded, comes within one pixel of p along both
// axes. Before padding that is one interval per axis, open at the edges under border, and one more for each
// reflection of p. With the coordinate x = a w + b h + c, each output row has an interval of w for x's
// interval and one for y's; what lies in both is looked at, with the weights of forward deciding. So the
// intervals only have to be wide enough. No theta needs a case of its own: where the map is singular, just
// more rows have to be visited.
#pragma once

#include "affine_grid_sample_map.cuh"

namespace fastdl::affine {

constexpr float kFar = 1e30f;
constexpr int kMostReflections = 64;  // along an axis; with more of them all coordinates are looked at

// x = a w + b h + c, roughly, with (w, h) from 0.
struct Line {
  float a, b, c;
  float inverse;  // 1 / a, or 0 where a counts as 0
  float slack;    // more than x errs by
  bool finite;
};

__device__ __forceinline__ Line line_of(const float* theta, const Geometry& g, const Axis& axis) {
  // gx = t0 (2 w + 1 - OW) / size + ..., size = OW, or OW - 1 with align_corners
  const float across = static_cast<float>(g.align ? (g.x.out > 1 ? g.x.out - 1 : 1) : g.x.out);
  const float down = static_cast<float>(g.align ? (g.y.out > 1 ? g.y.out - 1 : 1) : g.y.out);
  const float size = fabsf(theta[0]) + fabsf(theta[1]) + fabsf(theta[2]) + 1.0f;
  Line line;
  line.a = theta[0] * (2.0f * axis.scale / across);
  line.b = theta[1] * (2.0f * axis.scale / down);
  line.c = (theta[2] + 1.0f + theta[0] * (1.0f - g.x.out) / across + theta[1] * (1.0f - g.y.out) / down) *
               axis.scale -
           (g.align ? 0.0f : 0.5f);
  line.inverse = fabsf(line.a) > 1e-20f ? 1.0f / line.a : 0.0f;
  line.slack = 2e-3f + 4e-6f * size * (axis.scale + 1.0f);
  line.finite = size < kFar;
  return line;
}

// Where along an axis unpadded coordinates lie that sample a pixel: [low, high], if `fold` is theirs (any
// fold if so).
struct Interval {
  float low, high;
  float fold;
  bool any_fold;
};

// The first and last reflection that any coordinate of the sample lies in; first > last: not to be told
// apart.
struct Folds {
  int first, last;
};

__device__ __forceinline__ Folds folds_of(const Line& line, const Geometry& g, const Axis& axis) {
  if (g.padding != PaddingMode::kReflection) return {0, 0};
  const float right = line.a * static_cast<float>(g.x.out - 1),
              below = line.b * static_cast<float>(g.y.out - 1);
  const float low = line.c + fminf(right, 0.0f) + fminf(below, 0.0f) - line.slack;
  const float high = line.c + fmaxf(right, 0.0f) + fmaxf(below, 0.0f) + line.slack;
  const float edge = g.align ? 0.0f : -0.5f, span = static_cast<float>(g.align ? axis.in - 1 : axis.in);
  const float first = floorf((low - edge) / span), last = floorf((high - edge) / span);
  if (!(last - first < kMostReflections && fabsf(first) < 1e6f)) return {1, 0};
  return {static_cast<int>(first), static_cast<int>(last)};
}

__device__ __forceinline__ Interval interval_of(int pixel, int fold, const Folds& folds, const Line& line,
                                                const Geometry& g, const Axis& axis) {
  constexpr float kAll = 3e38f;
  const float at = static_cast<float>(pixel);
  if (!line.finite || folds.first > folds.last) return {-kAll, kAll, 0.0f, true};
  if (g.padding == PaddingMode::kReflection) {
    const float edge = g.align ? 0.0f : -0.5f, span = static_cast<float>(g.align ? axis.in - 1 : axis.in);
    const float mirrored = fold % 2 ? static_cast<float>(fold + 1) * span - (at - edge) + edge
                                    : static_cast<float>(fold) * span + at;
    // clamped coordinates, up to half a pixel out, have the second pixel as a neighbour
    return {mirrored - 1.5f - line.slack, mirrored + 1.5f + line.slack, static_cast<float>(fold), false};
  }
  Interval i = {at - 1.0f - line.slack, at + 1.0f + line.slack, 0.0f, true};
  if (g.padding == PaddingMode::kBorder) {
    if (pixel <= 1) i.low = -kAll;
    if (pixel >= axis.in - 1) i.high = kAll;
  }
  return i;
}

// The first and last w of row h whose coordinate may lie in the interval, narrowing [first, last].
__device__ __forceinline__ void narrow(const Interval& i, const Line& line, int h, int& first, int& last) {
  const float start = line.b * static_cast<float>(h) + line.c;
  if (line.inverse == 0.0f) {
    if (start < i.low || start > i.high) last = -1;  // NaN: nothing is known
    return;
  }
  const float one = (i.low - start) * line.inverse, other = (i.high - start) * line.inverse;
  const float wide = 0.01f + 1e-6f * static_cast<float>(last);
  const float low = ceilf(fminf(one, other) - wide), high = floorf(fmaxf(one, other) + wide);
  if (low > static_cast<float>(first))
    first = low < static_cast<float>(last) + 1.0f ? static_cast<int>(low) : last + 1;
  if (high < static_cast<float>(last)) last = high > -1.0f ? static_cast<int>(high) : -1;
}

// The first and last row that may have such pixels.
struct Rows {
  int first, last;
  __device__ __forceinline__ int count() const { return last >= first ? last - first + 1 : 0; }
};

__device__ __forceinline__ Rows rows_of(const Interval& x, const Interval& y, const Line& lx, const Line& ly,
                                        const Geometry& g) {
  const int bottom = g.y.out - 1;
  const float det = lx.a * ly.b - lx.b * ly.a, size = fabsf(lx.a * ly.b) + fabsf(lx.b * ly.a);
  const bool open = fmaxf(fmaxf(x.high, -x.low), fmaxf(y.high, -y.low)) > kFar;
  if (open || !(fabsf(det) > 1e-3f * size)) return {0, bottom};
  // h = (a (y - cy) - d (x - cx)) / det over the rectangle
  const float middle_x = 0.5f * (x.low + x.high) - lx.c, half_x = 0.5f * (x.high - x.low);
  const float middle_y = 0.5f * (y.low + y.high) - ly.c, half_y = 0.5f * (y.high - y.low);
  const float middle = (lx.a * middle_y - ly.a * middle_x) / det;
  const float half = (fabsf(lx.a) * half_y + fabsf(ly.a) * half_x) / fabsf(det);
  const float wide =
      0.01f + 1e-3f * half + 2e-6f * (fabsf(lx.a * middle_y) + fabsf(ly.a * middle_x)) / fabsf(det);
  const float low = ceilf(middle - half - wide), high = floorf(middle + half + wide);
  Rows rows = {0, bottom};
  if (low > 0.0f) rows.first = low <= static_cast<float>(bottom) ? static_cast<int>(low) : bottom + 1;
  if (high < static_cast<float>(bottom)) rows.last = high > -1.0f ? static_cast<int>(high) : -1;
  return rows;
}

// The map of a sample, prepared for searching.
struct Search {
  Theta theta;
  Line x, y;
  Folds folds_x, folds_y;
};

__device__ __forceinline__ Search search_of(const Theta& theta, const Geometry& g) {
  Search s;
  s.theta = theta;
  s.x = line_of(theta.x, g, g.x);
  s.y = line_of(theta.y, g, g.y);
  s.folds_x = folds_of(s.x, g, g.x);
  s.folds_y = folds_of(s.y, g, g.y);
  return s;
}

// f(intervals, rows) for each pair of reflections of pixel (py, px).
template <class F>
__device__ __forceinline__ void for_each_image(const Search& s, const Geometry& g, int py, int px, F&& f) {
  const int last_x = s.folds_x.first > s.folds_x.last ? s.folds_x.first : s.folds_x.last;
  const int last_y = s.folds_y.first > s.folds_y.last ? s.folds_y.first : s.folds_y.last;
  for (int fold_y = s.folds_y.first; fold_y <= last_y; ++fold_y) {
    const Interval y = interval_of(py, fold_y, s.folds_y, s.y, g, g.y);
    for (int fold_x = s.folds_x.first; fold_x <= last_x; ++fold_x) {
      const Interval x = interval_of(px, fold_x, s.folds_x, s.x, g, g.x);
      f(x, y, rows_of(x, y, s.x, s.y, g));
    }
  }
}

// f(h, w, weight) for the output pixels of row h that sample input pixel (py, px).
template <class F>
__device__ __forceinline__ void search_row(const Search& s, const Geometry& g, int py, int px,
                                           const Interval& x, const Interval& y, int h, F&& f) {
  int first = 0, last = g.x.out - 1;
  narrow(x, s.x, h, first, last);
  narrow(y, s.y, h, first, last);
  if (first > last) return;
  const float yn = centre(g.y, h, g.align);
  for (int w = first; w <= last; ++w) {
    const Cell c = locate(g, s.theta, centre(g.x, w, g.align), yn);
    if (!(x.any_fold || x.fold == c.fold_x) || !(y.any_fold || y.fold == c.fold_y)) continue;
    const int dx = px - c.x, dy = py - c.y;
    if (g.nearest) {
      if (dx == 0 && dy == 0) f(h, w, 1.0f);
    } else if ((dx == 0 || dx == 1) && (dy == 0 || dy == 1)) {
      f(h, w, weight_of(c, dx + 2 * dy));
    }
  }
}

}  // namespace fastdl::affine
