// A team of threads for each row, its classes side by side: a warp, or a block, or a cluster of blocks.
//
// Teams read 16 bytes per thread where every row is aligned for it. Backward keeps a row in registers where
// it fits and divides its softmax by its own sum; a longer row is streamed, its softmax taken from lse, or
// read twice.
#pragma once

#include "cross_entropy_problem.cuh"
#include "hopper.cuh"

namespace fastdl {
namespace {

constexpr int kResident = 32;  // logits that a thread keeps in registers
// Up to here the rounding of lse is no worse than that of torch's log-probabilities (of many classes: ten and
// more).
constexpr float kExactLse = 32.0f;
// Logits that a thread takes at a time; with 16-byte loads no less than one of them.
template <Share kShare>
constexpr int kStep = kShare == Share::kNone ? 16 : 8;

// kTeam: 32 or kThreads.
template <int kTeam, class V, class Op>
__device__ __forceinline__ V team_reduce(V value, Op op, V* scratch) {
  if constexpr (kTeam == kWarp) {
    return warp_reduce(value, op);
  } else {
    return block_reduce<kThreads>(value, op, scratch);
  }
}

// Classes [c, c + V) of a row as floats; `other` past its end.
template <int V, Cache kCache, class T>
__device__ __forceinline__ void load_classes(const T* x, int c, int classes, float other, float* value) {
  if (c + V <= classes) {
    const Vec<float, V> loaded = load_float<V, kCache>(x + c);
#pragma unroll
    for (int i = 0; i < V; ++i) value[i] = loaded[i];
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) value[i] = c + i < classes ? to_float(x[c + i]) : other;
  }
}

template <int V, class T>
__device__ __forceinline__ void store_classes(T* out, int c, int classes, const float* value) {
  if (c + V <= classes) {
    Vec<float, V> stored;
#pragma unroll
    for (int i = 0; i < V; ++i) stored[i] = value[i];
    store_float<Cache::kStreaming>(out + c, stored);
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i)
      if (c + i < classes) out[c + i] = from_float<T>(value[i]);
  }
}

// a[c .. c + V), 0 past the end.
template <Share kShare, int V, class T>
__device__ __forceinline__ void load_shares(const Problem& p, const T* q, int c, int classes, float* a) {
  if constexpr (kShare == Share::kSoft) load_classes<V, Cache::kReadOnly>(q, c, classes, 0.0f, a);
#pragma unroll
  for (int i = 0; i < V; ++i) a[i] = c + i < classes ? share_of<kShare>(p, c + i, a[i]) : 0.0f;
}

// What a block of a cluster tells the first.
struct Part {
  float max, sum;
};

// kCluster: a cluster's blocks share one row; else a block takes kThreads / kTeam rows at a time.
template <class T, Share kShare, int kTeam, int V, bool kCluster>
__global__ void __launch_bounds__(kThreads, kCluster || kShare == Share::kSoft ? kOne : kAny)
    cross_entropy_rows_forward(Problem p, Losses losses) {
  constexpr int kVectors = kStep<kShare> / V, kRows = kThreads / kTeam;
  __shared__ float reduced[kThreads / kWarp];
  __shared__ Sums summed[kThreads / kWarp];
  __shared__ Part part;
  __shared__ float spread_part;
  __shared__ bool last;
  const int lane = static_cast<int>(threadIdx.x) % kTeam;
  const unsigned rank = kCluster ? cluster_rank() : 0, ranks = kCluster ? cluster_size() : 1;
  const unsigned group = blockIdx.x / ranks, groups = gridDim.x / ranks;
  const int classes = static_cast<int>(p.classes);
  Sums sums = {0.0, 0.0};

  for (int64_t r = int64_t(group) * kRows + threadIdx.x / kTeam; r < p.rows; r += int64_t(groups) * kRows) {
    const Row row(p, r);
    const Class target = class_of<kShare>(p, row);
    if (!target.kept) {
      if (lane == 0 && rank == 0) losses.put<kShare>(p, row, r, target, 0.0f, 0.0f, 0.0f, 0.0f, &sums);
      continue;
    }
    const T* const x = row.in<const T>(p.input);
    const T* const q = kShare == Share::kSoft ? row.in<const T>(p.target) : x;
    Running mine;
    const int stride = kTeam * V * static_cast<int>(ranks);
    for (int start = (static_cast<int>(rank) * kTeam + lane) * V; start < classes;
         start += kVectors * stride) {
      float value[kVectors * V], a[kVectors * V] = {};
#pragma unroll
      for (int i = 0; i < kVectors; ++i)
        load_classes<V, Cache::kReadOnly>(x, start + i * stride, classes, -infinity(), value + i * V);
      if constexpr (kShare != Share::kNone) {
#pragma unroll
        for (int i = 0; i < kVectors; ++i)
          load_shares<kShare, V>(p, q, start + i * stride, classes, a + i * V);
      }
      mine.template add<kShare>(
          value, [&](int i) { return a[i]; },
          [&](int i) { return start + i / V * stride + i % V < classes; });
    }

    const float team_max = team_reduce<kTeam>(mine.max, Max{}, reduced);
    float max = finite(team_max);
    float sum = team_reduce<kTeam>(mine.sum * fast_exp(mine.max - max), Sum{}, reduced);
    if constexpr (kCluster) {
      if (threadIdx.x == 0) part = {team_max, sum};
      cluster_barrier();
      float highest = -infinity();
      for (unsigned i = 0; i < ranks; ++i) highest = fmaxf(highest, map_shared(&part, i)->max);
      max = finite(highest);
      sum = 0.0f;
      for (unsigned i = 0; i < ranks; ++i) {
        const Part other = *map_shared(&part, i);
        sum += other.sum * fast_exp(other.max - max);
      }
    }
    const float log_sum = logf(sum);
    float spread = 0.0f;
    if constexpr (kShare != Share::kNone) {
      spread = team_reduce<kTeam>(mine.spread_loss(max, log_sum), Sum{}, reduced);
      if constexpr (kCluster) {
        if (threadIdx.x == 0) spread_part = spread;
        cluster_barrier();
        spread = 0.0f;
        for (unsigned i = 0; i < ranks; ++i) spread += *map_shared(&spread_part, i);
      }
    }
    if constexpr (kCluster) cluster_barrier();  // all have read what the next row overwrites
    if (lane == 0 && rank == 0)
      losses.put<kShare>(p, row, r, target, to_float(x[target.t]), max, log_sum, spread, &sums);
  }
  if (rank == 0) losses.finish(sums, group, groups, summed, &last);
}

template <class T, Share kShare, int kTeam, int V, bool kInRegisters>
__global__ void __launch_bounds__(kThreads,
                                  kShare == Share::kSmooth && (!kInRegisters || V == 1) ? kOne : kAny)
    cross_entropy_rows_backward(Problem p, Scale scale_of, const float* lse, Tensor grad) {
  constexpr int kRows = kThreads / kTeam, kVectors = (kInRegisters ? kResident : kStep<kShare>) / V;
  constexpr int kStride = kTeam * V;
  __shared__ float reduced[kThreads / kWarp];
  const int lane = static_cast<int>(threadIdx.x) % kTeam, classes = static_cast<int>(p.classes);

  for (int64_t r = int64_t(blockIdx.x) * kRows + threadIdx.x / kTeam; r < p.rows;
       r += int64_t(gridDim.x) * kRows) {
    const Row row(p, r);
    const Class target = class_of<kShare>(p, row);
    T* const out = row.in<T>(grad);
    if (!target.kept) {
      float fill[V];
#pragma unroll
      for (int i = 0; i < V; ++i) fill[i] = target.ignored ? 0.0f : nan();
      for (int c = lane * V; c < classes; c += kStride) store_classes<V>(out, c, classes, fill);
      continue;
    }
    const T* const x = row.in<const T>(p.input);
    const T* const q = kShare == Share::kSoft ? row.in<const T>(p.target) : x;

    // the loss times its gradient is sum_c a[c] * nll(c)
    const float scale = scale_of.of(row), smooth = scale * p.share;
    const float hit = kShare == Share::kSoft ? 0.0f : scale * (p.keep * weight_of(p, target.t));
    float sum_a = hit;
    if constexpr (kShare != Share::kNone) {
      float mine = 0.0f;
      for (int c = lane * V; c < classes; c += kStride) {
        float a[V];
        load_shares<kShare, V>(p, q, c, classes, a);
#pragma unroll
        for (int i = 0; i < V; ++i) mine += a[i];
      }
      mine = team_reduce<kTeam>(mine, Sum{}, reduced);
      sum_a = kShare == Share::kSoft ? scale * mine : fmaf(smooth, mine, hit);
    }

    const float row_lse = lse[r];
    // dividing by the row's own sum makes up for the rounding of lse; a streamed row is read twice where that
    // matters
    float factor = sum_a;
    if (!kInRegisters && !(fabsf(row_lse) <= kExactLse)) {
      float sum = 0.0f;
      for (int c = lane * V; c < classes; c += kStride) {
        float e[V];
        load_classes<V, Cache::kReadOnly>(x, c, classes, -infinity(), e);
#pragma unroll
        for (int i = 0; i < V; ++i) sum += fast_exp(e[i] - row_lse);
      }
      factor = sum_a / team_reduce<kTeam>(sum, Sum{}, reduced);
    }
    int start = lane * V;
    do {
      float e[kVectors * V];
#pragma unroll
      for (int i = 0; i < kVectors; ++i)
        load_classes<V, Cache::kStreaming>(x, start + i * kStride, classes, -infinity(), e + i * V);
      float sum = 0.0f;
#pragma unroll
      for (int i = 0; i < kVectors * V; ++i) {
        e[i] = fast_exp(e[i] - row_lse);
        sum += e[i];
      }
      if constexpr (kInRegisters) factor = sum_a / team_reduce<kTeam>(sum, Sum{}, reduced);
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        const int c = start + i * kStride;
        if (c >= classes) break;
        float a[V], value[V];
        if constexpr (kShare != Share::kNone) load_shares<kShare, V>(p, q, c, classes, a);
#pragma unroll
        for (int j = 0; j < V; ++j) {
          float share = kShare == Share::kSoft     ? scale * a[j]
                        : kShare == Share::kSmooth ? smooth * a[j]
                                                   : 0.0f;
          if (kShare != Share::kSoft && c + j == target.t)
            share = kShare == Share::kNone ? hit : fmaf(smooth, a[j], hit);
          value[j] = e[i * V + j] * factor - share;
        }
        store_classes<V>(out, c, classes, value);
      }
      start += kVectors * kStride;
    } while (!kInRegisters && start < classes);
  }
}

}  // namespace
}  // namespace fastdl
