// What the kernels of cross_entropy share: a call seen as rows, a row's target and weights, the running
// softmax sums, and the sum of the losses. Row r = n * D + d is the C logits of one (n, d).
#pragma once

#include "../cross_entropy.h"
#include "runtime.cuh"

namespace fastdl {
namespace {

constexpr int kThreads = 256;
// Least blocks on a multiprocessor. Where ptxas is left to choose, it may spill a few bytes to have one block
// more.
constexpr int kAny = 0, kOne = 1;
constexpr float kLog2E = 1.4426950408889634f;

// What the loss of a row is made of beside weight[t] * nll(t).
enum class Share {
  kNone,
  kSmooth,  // label smoothing: ls / C * sum_c weight[c] * nll(c)
  kSoft,    // probabilities, the whole loss: sum_c weight[c] * ((1 - ls) * q[c] + ls / C) * nll(c)
};

struct Problem {
  Tensor input, target;
  const float* weight = nullptr;  // or none
  int64_t rows, classes, inner;   // N * D, C, D
  int64_t ignore_index;
  float keep, share;  // 1 - ls, ls / C

  template <class Params>
  explicit Problem(const Params& p)
      : input(p.input),
        target(p.target),
        rows(p.input.size[0] * p.input.size[2]),
        classes(p.input.size[1]),
        inner(p.input.size[2]),
        ignore_index(p.ignore_index),
        keep(static_cast<float>(1.0 - p.label_smoothing)),
        share(static_cast<float>(p.label_smoothing / double(p.input.size[1]))) {}

  Share kind(double label_smoothing) const {
    if (target.dtype != DType::kInt64 && target.dtype != DType::kUInt8) return Share::kSoft;
    return label_smoothing > 0.0 ? Share::kSmooth : Share::kNone;
  }
};

// An element of a tensor whose dtype is known at run time only: what is read or written once per row or
// class.
__device__ __forceinline__ float load_any(const Tensor& t, int64_t at) {
  if (t.dtype == DType::kFloat16) return to_float(static_cast<const f16*>(t.data)[at]);
  if (t.dtype == DType::kBFloat16) return to_float(static_cast<const bf16*>(t.data)[at]);
  return static_cast<const float*>(t.data)[at];
}
__device__ __forceinline__ void store_any(const Tensor& t, int64_t at, float value) {
  if (t.dtype == DType::kFloat16) {
    static_cast<f16*>(t.data)[at] = to_f16(value);
  } else if (t.dtype == DType::kBFloat16) {
    static_cast<bf16*>(t.data)[at] = to_bf16(value);
  } else {
    static_cast<float*>(t.data)[at] = value;
  }
}

struct Row {
  int64_t n, d;

  __device__ Row(const Problem& p, int64_t r) {
    n = p.inner == 1 ? r : r / p.inner;
    d = r - n * p.inner;
  }
  // Where its logits start in a tensor [N, C, D].
  template <class T>
  __device__ __forceinline__ T* in(const Tensor& t) const {
    return static_cast<T*>(t.data) + n * t.stride[0] + d * t.stride[2];
  }
};

// A class target: t is a class (and may be an address) wherever it is kept.
struct Class {
  int64_t t;
  bool kept, ignored;  // neither: no class, the row's loss and gradient are NaN
};

template <Share kShare>
__device__ __forceinline__ Class class_of(const Problem& p, const Row& row) {
  if constexpr (kShare == Share::kSoft) return {0, true, false};
  const int64_t at = row.n * p.target.stride[0] + row.d * p.target.stride[1];
  const int64_t t = p.target.dtype == DType::kInt64 ? static_cast<const int64_t*>(p.target.data)[at]
                                                    : static_cast<const uint8_t*>(p.target.data)[at];
  const bool ignored = t == p.ignore_index;
  const bool kept = !ignored && uint64_t(t) < uint64_t(p.classes);
  return {kept ? t : 0, kept, ignored};
}

__device__ __forceinline__ float weight_of(const Problem& p, int64_t c) {
  return p.weight ? __ldg(p.weight + c) : 1.0f;
}

// a[c], the factor of nll(c) (times share where smoothing); q: probability of c.
template <Share kShare>
__device__ __forceinline__ float share_of(const Problem& p, int64_t c, float q) {
  const float weight = weight_of(p, c);
  return kShare == Share::kSoft ? weight * (p.keep * q + p.share) : weight;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    cross_entropy_widen(const T* weight, float* wide, int64_t classes) {
  for (int64_t c = global_thread(); c < classes; c += grid_threads()) wide[c] = to_float(weight[c]);
}

// Sets the problem's weight, as floats.
inline const char* take_weight(const Tensor& weight, Context* context, Problem* p) {
  if (!weight) return nullptr;
  return dispatch_float(weight.dtype, [&](auto type) -> const char* {
    using T = typename decltype(type)::type;
    const T* values = static_cast<const T*>(weight.data);
    if constexpr (std::is_same_v<T, float>) {
      p->weight = values;
      return nullptr;
    } else {
      auto* wide = static_cast<float*>(context->allocate(context, p->classes * 4));
      if (wide == nullptr) return "out of memory";
      p->weight = wide;
      const auto blocks =
          static_cast<unsigned>(ceil_div(p->classes < 65536 ? p->classes : 65536, int64_t(kThreads)));
      return describe(launch(cross_entropy_widen<T>, dim3(blocks), dim3(kThreads), 0, stream_of(context),
                             values, wide, p->classes));
    }
  });
}

__device__ __forceinline__ float infinity() { return __int_as_float(0x7f800000); }
__device__ __forceinline__ float nan() { return __int_as_float(0x7fc00000); }
// x, or 0 where it is -inf: what may be subtracted from -inf without giving NaN.
__device__ __forceinline__ float finite(float x) { return x == -infinity() ? 0.0f : x; }
__device__ __forceinline__ float fast_exp(float x) { return exp2f(x * kLog2E); }

// Of the logits that a thread has seen: the maximum (a NaN does not count), sum exp(x - max), and for the
// shares sum a * (shift - x) and sum a, the shift being near the logits lest they cancel.
struct Running {
  float max = -infinity(), sum = 0.0f;
  float shift = 0.0f, spread = 0.0f, share = 0.0f;

  // K logits x, -inf where inside(i) is false and there is none; a(i): the share of each.
  template <Share kShare, int K, class A, class Inside>
  __device__ __forceinline__ void add(const float (&x)[K], const A& a, const Inside& inside) {
    float highest = x[0];
#pragma unroll
    for (int i = 1; i < K; ++i) highest = fmaxf(highest, x[i]);
    if (max == -infinity()) shift = finite(highest);
    if (highest > max) {
      sum *= fast_exp(max - highest);
      max = highest;
    }
    const float now = finite(max);
    float s = 0.0f;
#pragma unroll
    for (int i = 0; i < K; ++i) s += fast_exp(x[i] - now);
    sum += s;
    if constexpr (kShare != Share::kNone) {
      float moved = 0.0f, total = 0.0f;
#pragma unroll
      for (int i = 0; i < K; ++i) {
        const float one = inside(i) ? a(i) : 0.0f;
        moved += inside(i) ? one * (shift - x[i]) : 0.0f;
        total += one;
      }
      spread += moved;
      share += total;
    }
  }
  // sum over what the thread has seen of a * nll, once the row's max and log(sum) are known.
  __device__ __forceinline__ float spread_loss(float row_max, float log_sum) const {
    return spread + share * ((row_max - shift) + log_sum);
  }
};

// ---- The losses on their way out: each of them, or their sum ----

struct Sums {
  double loss, weight;
  __device__ __forceinline__ Sums operator+(const Sums& o) const {
    return {loss + o.loss, weight + o.weight};
  }
};

struct Losses {
  Tensor loss;          // [N, D] or []
  float* lse;           // [N, D], or nullptr
  float* total_weight;  // [] for the mean, or none
  bool reduced, mean;
  Sums* partials;     // one per block, where there is more than one
  unsigned* counter;  // 0

  template <Share kShare>
  __device__ void put(const Problem& p, const Row& row, int64_t r, const Class& target, float x_t, float max,
                      float log_sum, float spread, Sums* sums) const {
    const float weight = kShare == Share::kSoft ? 1.0f : target.kept ? weight_of(p, target.t) : 0.0f;
    float value = spread;
    if constexpr (kShare != Share::kSoft) {
      value = weight * (log_sum - (x_t - max));
      if constexpr (kShare == Share::kSmooth) value = p.keep * value + p.share * spread;
      if (!target.kept) value = target.ignored ? 0.0f : nan();
    }
    if (lse) lse[r] = max + log_sum;
    if (!reduced) store_any(loss, row.n * loss.stride[0] + row.d * loss.stride[1], value);
    *sums = *sums + Sums{double(value), double(weight)};
  }

  // The last of `blocks` blocks adds up what all of them summed, in their order.
  __device__ void finish(Sums sums, unsigned block, unsigned blocks, Sums* scratch, bool* last) const {
    if (!reduced) return;
    sums = block_reduce<kThreads>(sums, Sum{}, scratch);
    if (blocks > 1) {
      if (threadIdx.x == 0) partials[block] = sums;
      if (!last_block_done(counter, blocks, last)) return;
      sums = {0.0, 0.0};
      for (unsigned i = threadIdx.x; i < blocks; i += kThreads) {
        const auto one = load<2, Cache::kL2>(reinterpret_cast<const double*>(partials + i));
        sums = sums + Sums{one[0], one[1]};
      }
      sums = block_reduce<kThreads>(sums, Sum{}, scratch);
    }
    if (threadIdx.x != 0) return;
    // NaN over no weight at all, though smoothing gives such rows a loss
    if (mean && total_weight != nullptr) *total_weight = float(sums.weight);
    store_any(loss, 0,
              !mean                ? float(sums.loss)
              : sums.weight == 0.0 ? nan()
                                   : float(sums.loss / sums.weight));
  }
};

// What the gradient of the loss is multiplied by in the gradient of a row: grad_loss (/ total_weight).
struct Scale {
  Tensor grad_loss;  // [N, D] or []
  const float* total_weight;
  bool reduced, mean;

  __device__ __forceinline__ float of(const Row& row) const {
    const float g =
        load_any(grad_loss, reduced ? 0 : row.n * grad_loss.stride[0] + row.d * grad_loss.stride[1]);
    return mean ? g / *total_weight : g;
  }
};

// fn(std::integral_constant<Share, ...>).
template <class F>
const char* dispatch_share(Share share, F&& fn) {
  switch (share) {
    case Share::kNone:
      return fn(std::integral_constant<Share, Share::kNone>{});
    case Share::kSmooth:
      return fn(std::integral_constant<Share, Share::kSmooth>{});
    default:
      return fn(std::integral_constant<Share, Share::kSoft>{});
  }
}

}  // namespace
}  // namespace fastdl
