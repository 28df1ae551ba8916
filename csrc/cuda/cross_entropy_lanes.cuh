// A thread for each row, neighbours taking neighbouring rows: few classes, or classes that do not lie side by
// side. Where classes are many, several warps of a block share its rows, each taking every so manieth block
// of classes.
#pragma once

#include "cross_entropy_problem.cuh"

namespace fastdl {
namespace {

constexpr int kBlock = 16;  // classes that a thread takes at a time

// Threads t, t + lanes, t + 2 * lanes, ... of a block share row t; lanes: kThreads divided by 1, 2, 4 or 8.
struct Split {
  int lanes, parts;
};

// The first `count` classes at x; -inf beyond.
template <class T, int K>
__device__ __forceinline__ void load_block(const T* x, int64_t stride, int count, float (&value)[K]) {
#pragma unroll
  for (int i = 0; i < K; ++i) value[i] = i < count ? to_float(x[i * stride]) : -infinity();
}
// How many of the `block` classes from `start` on there are.
__device__ __forceinline__ int count_from(int64_t start, int64_t classes, int block) {
  return classes - start < block ? static_cast<int>(classes - start) : block;
}

// a of class start + i; q: the probability of class `start`.
template <Share kShare, class T>
__device__ __forceinline__ float share_at(const Problem& p, const T* q, int64_t start, int i) {
  return share_of<kShare>(p, start + i, kShare == Share::kSoft ? to_float(q[i * p.target.stride[1]]) : 0.0f);
}

// The sum over a row's parts, to all of them. slots: kThreads floats in shared memory.
__device__ __forceinline__ float sum_parts(const Split& split, float value, float* slots) {
  if (split.parts == 1) return value;
  slots[threadIdx.x] = value;
  __syncthreads();
  value = 0.0f;
  for (int part = 0; part < split.parts; ++part)
    value += slots[part * split.lanes + threadIdx.x % split.lanes];
  __syncthreads();
  return value;
}
__device__ __forceinline__ float max_parts(const Split& split, float value, float* slots) {
  if (split.parts == 1) return value;
  slots[threadIdx.x] = value;
  __syncthreads();
  for (int part = 0; part < split.parts; ++part)
    value = fmaxf(value, slots[part * split.lanes + threadIdx.x % split.lanes]);
  __syncthreads();
  return value;
}

template <class T, Share kShare>
__global__ void __launch_bounds__(kThreads, kOne)
    cross_entropy_lanes_forward(Problem p, Losses losses, Split split) {
  __shared__ float slots[kThreads];
  __shared__ Sums summed[kThreads / kWarp];
  __shared__ bool last;
  const int lane = static_cast<int>(threadIdx.x) % split.lanes,
            part = static_cast<int>(threadIdx.x) / split.lanes;
  Sums sums = {0.0, 0.0};
  for (int64_t first = int64_t(blockIdx.x) * split.lanes; first < p.rows;
       first += int64_t(gridDim.x) * split.lanes) {
    const int64_t r = first + lane;
    const bool exists = r < p.rows;
    const Row row(p, exists ? r : 0);
    const Class target = exists ? class_of<kShare>(p, row) : Class{0, false, true};
    const T* const x = row.in<const T>(p.input);
    const T* const q = kShare == Share::kSoft ? row.in<const T>(p.target) : x;
    Running mine;
    for (int64_t start = int64_t(part) * kBlock; target.kept && start < p.classes;
         start += int64_t(split.parts) * kBlock) {
      const int count = count_from(start, p.classes, kBlock);
      float value[kBlock];
      load_block(x + start * p.input.stride[1], p.input.stride[1], count, value);
      const T* const q_start = kShare == Share::kSoft ? q + start * p.target.stride[1] : q;
      mine.template add<kShare>(
          value, [&](int i) { return share_at<kShare>(p, q_start, start, i); },
          [&](int i) { return i < count; });
    }
    const float max = finite(max_parts(split, mine.max, slots));
    const float log_sum = logf(sum_parts(split, mine.sum * fast_exp(mine.max - max), slots));
    float spread = 0.0f;
    if constexpr (kShare != Share::kNone) spread = sum_parts(split, mine.spread_loss(max, log_sum), slots);
    if (part == 0 && exists) {
      const float x_t = to_float(x[target.t * p.input.stride[1]]);
      losses.put<kShare>(p, row, r, target, x_t, max, log_sum, spread, &sums);
    }
  }
  losses.finish(sums, blockIdx.x, gridDim.x, summed, &last);
}

// kInRegisters: C <= kBlock and one part; the softmax is taken from the row itself. Else the row is read
// twice.
template <class T, Share kShare, bool kInRegisters>
__global__ void __launch_bounds__(kThreads, kShare == Share::kNone && !kInRegisters ? kAny : kOne)
    cross_entropy_lanes_backward(Problem p, Scale scale_of, const float* lse, Tensor grad, Split split) {
  constexpr int kTaken = kInRegisters ? kBlock : kBlock / 2;  // few registers, many threads
  __shared__ float slots[kThreads];
  const int lane = static_cast<int>(threadIdx.x) % split.lanes,
            part = static_cast<int>(threadIdx.x) / split.lanes;
  const int64_t step = int64_t(split.parts) * kTaken;
  for (int64_t first = int64_t(blockIdx.x) * split.lanes; first < p.rows;
       first += int64_t(gridDim.x) * split.lanes) {
    const int64_t r = first + lane;
    const bool exists = r < p.rows;
    const Row row(p, exists ? r : 0);
    const Class target = exists ? class_of<kShare>(p, row) : Class{0, false, true};
    const T* const x = row.in<const T>(p.input);
    const T* const q = kShare == Share::kSoft ? row.in<const T>(p.target) : x;

    // the loss times its gradient is sum_c a[c] * nll(c)
    const float scale = target.kept      ? scale_of.of(row)
                        : target.ignored ? 0.0f
                                         : nan();  // not kept: the gradient
    const float smooth = scale * p.share;
    const float hit = kShare == Share::kSoft ? 0.0f : scale * (p.keep * weight_of(p, target.t));
    float sum_a = hit;
    if constexpr (kShare != Share::kNone) {
      float mine = 0.0f;
      for (int64_t start = int64_t(part) * kTaken; target.kept && start < p.classes; start += step) {
        const int count = count_from(start, p.classes, kTaken);
        const T* const q_start = kShare == Share::kSoft ? q + start * p.target.stride[1] : q;
        float block = 0.0f;
#pragma unroll
        for (int i = 0; i < kTaken; ++i)
          if (i < count) block += share_at<kShare>(p, q_start, start, i);
        mine += block;
      }
      mine = sum_parts(split, mine, slots);
      sum_a = kShare == Share::kSoft ? scale * mine : fmaf(smooth, mine, hit);
    }
    // dividing by the row's own sum makes up for the rounding of lse; what is read here is in the cache
    // afterwards
    const float row_lse = exists ? lse[r] : 0.0f;
    float factor = 0.0f;
    if constexpr (!kInRegisters) {
      float sum = 0.0f;
      for (int64_t start = int64_t(part) * kTaken; target.kept && start < p.classes; start += step) {
        float e[kTaken], block = 0.0f;
        load_block(x + start * p.input.stride[1], p.input.stride[1], count_from(start, p.classes, kTaken), e);
#pragma unroll
        for (int i = 0; i < kTaken; ++i) block += fast_exp(e[i] - row_lse);
        sum += block;
      }
      factor = sum_a / sum_parts(split, sum, slots);
    }
    if (!exists) continue;

    T* const out = row.in<T>(grad);
    for (int64_t start = int64_t(part) * kTaken; start < p.classes; start += step) {
      const int count = count_from(start, p.classes, kTaken);
      const T* const q_start = kShare == Share::kSoft ? q + start * p.target.stride[1] : q;
      const int64_t past = target.t - start;
      const int hit_at = kShare != Share::kSoft && past >= 0 && past < kTaken ? static_cast<int>(past) : -1;
      float e[kTaken], sum = 0.0f;
      load_block(x + start * p.input.stride[1], p.input.stride[1], target.kept ? count : 0, e);
      float shift = row_lse;
      if constexpr (kInRegisters) {
        shift = e[0];
#pragma unroll
        for (int i = 1; i < kTaken; ++i) shift = fmaxf(shift, e[i]);
        shift = finite(shift);
      }
#pragma unroll
      for (int i = 0; i < kTaken; ++i) {
        e[i] = fast_exp(e[i] - shift);
        sum += e[i];
      }
      if constexpr (kInRegisters) factor = sum_a / sum;
      T* const out_start = out + start * grad.stride[1];
#pragma unroll
      for (int i = 0; i < kTaken; ++i) {
        if (i < count) {
          const float a = kShare == Share::kNone ? 0.0f : share_at<kShare>(p, q_start, start, i);
          float share = (kShare == Share::kSoft ? scale : smooth) * a;
          if (i == hit_at) share = kShare == Share::kNone ? hit : fmaf(smooth, a, hit);
          out_start[i * grad.stride[1]] = from_float<T>(target.kept ? e[i] * factor - share : scale);
        }
      }
    }
  }
}

}  // namespace
}  // namespace fastdl
