// Mean and variance per channel, and the running statistics.
#pragma once

#include "batch_norm_channel.cuh"
#include "batch_norm_reduce.cuh"

namespace fastdl {
namespace batch_norm {

// Of the elements that one block of threads sees of a channel: their count, mean = pivot + shift in two
// parts, and m2 = sum (x - mean)^2.
struct Moments {
  float count, pivot, shift, m2;
};

// What the statistics of a batch are written to.
struct Statistics {
  float *mean, *invstd;
  Param running_mean, running_var;
  double momentum, eps;
};

// The moments of this block's elements, per thread those of its V channels (in planes: V times the same
// ones).
//
// One pass of sums about a pivot: sum (x - p) and sum (x - p)^2. With the mean of the first tile as p, (p -
// mean)^2 is at most var * tiles, which bounds the cancellation in m2 by the number of tiles. That mean is
// taken about the channel's first element, so a constant channel gets m2 = 0 exactly; the mean stays in two
// parts, so that it can be far larger than what sets the blocks' means apart. The pivot is rounded to x's
// dtype: half-precision x - p is then on a coarse grid, where sums are exact for long; else all of them would
// be rounded to the same side.
template <class T, int V, int kBatch, class Fetch>
__device__ __forceinline__ void moments_of(const Cut& cut, const Place& place, const T* x, Fetch fetch,
                                           double* scratch, Moments (&moments)[V]) {
  const Walk walk = walk_of<V>(cut, place, false);
  const float count = static_cast<float>(elements_of<V>(cut, place));
  Vec<float, V> pivot = {}, total = {}, squares = {};
  if (place.exists) {
#pragma unroll
    for (int i = 0; i < V; ++i)
      pivot[i] = to_float(x[place.channel * cut.channel_stride + (cut.rows ? i : 0)]);
  }
  if (place.exists && walk.item < cut.items) {
    const Vec<T, V> first = fetch(walk.offset, 0);
#pragma unroll
    for (int i = 0; i < V; ++i) total[i] = to_float(first[i]) - pivot[i];
  }
  const int64_t left = cut.items - int64_t(place.split) * cut.tile_items();
  const int64_t items = left < cut.tile_items() ? left : cut.tile_items();
  const float in_tile = static_cast<float>(cut.rows ? items : items * V);
  total = tile_sum<V>(total, cut, scratch);
#pragma unroll
  for (int i = 0; i < V; ++i) {
    pivot[i] += total[i] / in_tile;
    pivot[i] = rounded<T>(pivot[i]);
    if (!(fabsf(pivot[i]) < __int_as_float(0x7f800000)))
      pivot[i] = 0.0f;  // inf - inf would make the mean NaN
    total[i] = 0.0f;
  }
  for_items<kBatch>(cut, place, walk, false, fetch,
                    [&](const Vec<T, V>& value, int64_t, bool inside, int64_t) {
                      if (!inside) return;
#pragma unroll
                      for (int i = 0; i < V; ++i) {
                        const float shifted = to_float(value[i]) - pivot[i];
                        total[i] += shifted;
                        squares[i] = __fmaf_rn(shifted, shifted, squares[i]);
                      }
                    });
  total = tile_sum<V>(total, cut, scratch);
  squares = tile_sum<V>(squares, cut, scratch);
#pragma unroll
  for (int i = 0; i < V; ++i) {
    const float infinity = __int_as_float(0x7f800000), shift = total[i] / count;
    float m2 = squares[i] - shift * total[i];
    if (m2 < 0.0f) m2 = 0.0f;
    // Finite values whose squares overflow have infinite variance, as in torch, not inf - inf.
    if (squares[i] == infinity && fabsf(total[i]) < infinity) m2 = squares[i];
    moments[i] = {count, pivot[i], shift, m2};
  }
}

// The first row of threads writes them.
template <int V>
__device__ __forceinline__ void put_moments(const Cut& cut, const Place& place, const Moments (&moments)[V],
                                            Moments* slot) {
  if (place.row != 0) return;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    if (i == 0 || cut.rows) slot[(cut.rows ? place.lane * V : 0) + i] = moments[i];
  }
}

struct Combined {
  double count, mean, m2;
};

// The moments of column threadIdx.x % columns, from those of all splits in a fixed order:
// mean = sum n_i mean_i / n, m2 = sum m2_i + sum n_i (mean_i - mean)^2.
template <class Get>
__device__ __forceinline__ Combined combine_moments(int columns, int splits, double count, Get get,
                                                    double* scratch) {
  const int column = static_cast<int>(threadIdx.x) % columns;
  const double pivot = get(0, column).pivot;
  Wide<4> sums = {};
  for (int split = static_cast<int>(threadIdx.x) / columns; split < splits; split += kThreads / columns) {
    const Moments part = get(split, column);
    const double apart = part.pivot - pivot + part.shift, n = part.count;
    sums = add(sums, Wide<4>{{n, n * apart, n * apart * apart, part.m2}});
  }
  sums = column_sum(sums, columns, scratch);
  const double shift = sums.v[1] / sums.v[0];
  double between = sums.v[2] - sums.v[1] * shift;
  if (between < 0.0) between = 0.0;
  return {count, pivot + shift, sums.v[3] + between};
}

// Writes the statistics of channel c, moves the running ones; returns mean and invstd.
template <class T>
__device__ __forceinline__ float2 write_statistics(const Statistics& to, int64_t c, const Combined& from) {
  const float mean = static_cast<float>(from.mean);
  const float invstd = static_cast<float>(1.0 / sqrt(from.m2 / from.count + to.eps));
  to.mean[c] = mean;
  to.invstd[c] = invstd;
  const auto move = [&](const Param& running, double value) {
    if (!running.data) return;
    const double old = read<T>(running, c, 0.0f);
    write<T>(running, c, static_cast<float>(to.momentum * value + (1.0 - to.momentum) * old));
  };
  move(to.running_mean, from.mean);
  move(to.running_var, from.m2 / (from.count - 1.0));
  return {mean, invstd};
}

}  // namespace batch_norm
}  // namespace fastdl
