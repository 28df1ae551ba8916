// One row at a time, vectors along its classes: rows whose classes lie side by side.
//
// Forward takes the maximum of a block of classes and then, from the cache, the sum of exp against it; what
// earlier blocks summed is rescaled when the maximum grows. Backward writes e[c] = exp(x[c] - lse) to
// scratch, which stays in the cache, and from there the gradient: dividing by the sum of e makes up for the
// rounding of lse.
#pragma once

#include <algorithm>

#include "cross_entropy_problem.h"

namespace fastdl::cpu::cross_entropy {

constexpr int64_t kBlock = 2048;  // classes between two looks at the maximum: they fit the smallest cache
constexpr int kUnroll = 4;

// f(i, u, n) for i = 0, kWidth, ... below `size`: n lanes (kWidth but for the last) for accumulator u.
template <class F>
FASTDL_INLINE void for_vectors(int64_t size, const F& f) {
  int64_t i = 0;
  for (; i + kUnroll * kWidth <= size; i += kUnroll * kWidth)
    for (int u = 0; u < kUnroll; ++u) f(i + u * kWidth, u, int64_t{kWidth});
  for (; i + kWidth <= size; i += kWidth) f(i, 0, int64_t{kWidth});
  if (i < size) f(i, 1, size - i);
}

FASTDL_INLINE float add_up(const Vec (&v)[kUnroll]) { return cpu::sum((v[0] + v[1]) + (v[2] + v[3])); }

// NaN classes do not count; NaN if there are no others.
template <class T>
FASTDL_INLINE float highest_of(const T* x, int64_t size) {
  Vec top[kUnroll] = {splat(-kInfinity), splat(-kInfinity), splat(-kInfinity), splat(-kInfinity)};
  for_vectors(size,
              [&](int64_t i, int u, int64_t n) { top[u] = cpu::max(load(x + i, n, -kInfinity), top[u]); });
  return cpu::max(cpu::max(cpu::max(top[0], top[1]), cpu::max(top[2], top[3])));
}

// a[c .. c + n), 0 beyond; `q` is the row's probabilities.
template <Share kShare, class T>
FASTDL_INLINE Vec share_of(const Problem& p, const T* q, int64_t c, int64_t n) {
  Vec a = splat(1.0f);
  if constexpr (is_soft(kShare)) {
    a = fma(load(q + c, n), splat(p.keep), splat(p.share));
    if (n < kWidth) a = select(iota() < static_cast<int32_t>(n), a, Vec{});
  }
  if constexpr (has_weights(kShare)) {
    Vec w = load(p.weight + c, n);
    a = is_soft(kShare) ? a * w : w;
  }
  return a;
}

// lse = max + log_sum; sums of a[c] * (shift - x[c]) and of a[c], the shift being near the logits lest they
// cancel.
struct RowSums {
  float max;
  double log_sum, shift, spread, spread_weight;

  float lse() const { return static_cast<float>(max + log_sum); }
  double nll(float x) const { return log_sum - (x - static_cast<double>(max)); }
  // sum_c a[c] * nll(c)
  double spread_loss() const { return spread + spread_weight * ((max - shift) + log_sum); }
};

// `next`: what is read after this row.
template <Share kShare, class T>
RowSums row_sums(const Problem& p, const T* x, const T* q, const T* next) {
  float max = -kInfinity, first = 0.0f;
  double sum = 0.0, spread = 0.0, spread_weight = 0.0;
  for (int64_t start = 0; start < p.classes; start += kBlock) {
    const int64_t size = std::min(kBlock, p.classes - start);
    const T* block = x + start;
    const T* ahead = start + size < p.classes ? block + size : next;

    const float highest = highest_of(block, size);
    const float before = finite(max);
    if (highest > max) max = highest;
    const float shift = finite(max);
    if (start == 0) first = shift;
    if (before != shift && sum != 0.0) sum *= std::exp(before - shift);

    Vec s[kUnroll] = {}, moved[kUnroll] = {}, total[kUnroll] = {};
    for_vectors(size, [&](int64_t i, int u, int64_t n) {
      __builtin_prefetch(ahead + i);
      s[u] += exp_nonpositive(load(block + i, n, -kInfinity) - shift);
      if constexpr (kShare != Share::kNone) {
        const Vec away = first - load(block + i, n, first);
        if constexpr (kShare == Share::kOnes) {
          moved[u] += away;
        } else {
          const Vec a = share_of<kShare>(p, q, start + i, n);
          moved[u] = fma(a, away, moved[u]);
          if constexpr (is_soft(kShare)) total[u] += a;
        }
      }
    });
    sum += add_up(s);
    if constexpr (kShare != Share::kNone) spread += add_up(moved);
    if constexpr (is_soft(kShare)) spread_weight += add_up(total);
  }
  if constexpr (!is_soft(kShare)) spread_weight = p.weight_sum;
  return {finite(max), std::log(sum), first, spread, spread_weight};
}

// Rows [begin, end) of at most kBlock classes, without a share: of such rows the logarithm costs as much as
// the exponentials, so it is taken of a vector of them.
template <class T>
void short_rows_forward(const Problem& p, float* lse, Losses* losses, int64_t begin, int64_t end) {
  const Tensor& input = *p.input;
  alignas(64) float max[kWidth] = {}, sum[kWidth] = {}, nll[kWidth] = {};
  Class target[kWidth];
  for (int64_t first = begin; first < end; first += kWidth) {
    const int count = static_cast<int>(std::min<int64_t>(kWidth, end - first));
    for (int i = 0; i < count; ++i) {
      const int64_t n = p.inner == 1 ? first + i : (first + i) / p.inner, d = first + i - n * p.inner;
      const T* x = static_cast<const T*>(input.data) + n * input.stride[0] + d * input.stride[2];
      target[i] = class_of(p, n, d);
      if (!target[i].kept) {
        max[i] = nll[i] = 0.0f;
        sum[i] = 1.0f;
        continue;
      }
      const T* next = x + (p.inner > 1 ? input.stride[2] : input.stride[0]);
      const float shift = finite(highest_of(x, p.classes));
      Vec s[kUnroll] = {};
      for_vectors(p.classes, [&](int64_t c, int u, int64_t n) {
        __builtin_prefetch(next + c);
        s[u] += exp_nonpositive(load(x + c, n, -kInfinity) - shift);
      });
      max[i] = shift;
      sum[i] = add_up(s);
      nll[i] = to_float(x[target[i].t]) - shift;
    }
    const Vec log_sum = log_normal(load(sum));
    if (lse != nullptr) store(lse + first, load(max) + log_sum, count);
    store(nll, log_sum - load(nll));
    for (int i = 0; i < count; ++i) {
      const int64_t n = p.inner == 1 ? first + i : (first + i) / p.inner, d = first + i - n * p.inner;
      const Class& c = target[i];
      if (!c.kept) {
        losses->add(n, d, c.ignored ? 0.0f : kNaN, 0.0f);
      } else {
        const float weight = p.weight != nullptr ? p.weight[c.t] : 1.0f;
        losses->add(n, d, double{weight} * nll[i], weight);
      }
    }
  }
}

// Rows [begin, end).
template <Share kShare, class T>
void rows_forward(const Problem& p, float* lse, Losses* losses, int64_t begin, int64_t end) {
  if constexpr (kShare == Share::kNone) {
    if (p.classes <= kBlock) return short_rows_forward<T>(p, lse, losses, begin, end);
  }
  const Tensor& input = *p.input;
  const int64_t* q_stride = p.target->stride;
  for (int64_t r = begin; r < end; ++r) {
    const int64_t n = r / p.inner, d = r - n * p.inner;
    const T* x = static_cast<const T*>(input.data) + n * input.stride[0] + d * input.stride[2];
    const T* next = x + (p.inner > 1 ? input.stride[2] : input.stride[0]);
    if constexpr (is_soft(kShare)) {
      const T* q = static_cast<const T*>(p.target->data) + n * q_stride[0] + d * q_stride[2];
      const RowSums row = row_sums<kShare>(p, x, q, next);
      if (lse != nullptr) lse[r] = row.lse();
      losses->add(n, d, row.spread_loss(), 1.0f);
    } else {
      const Class c = class_of(p, n, d);
      if (!c.kept) {
        if (lse != nullptr) lse[r] = 0.0f;
        losses->add(n, d, c.ignored ? 0.0f : kNaN, 0.0f);
        continue;
      }
      const RowSums row = row_sums<kShare>(p, x, x, next);
      const float weight = p.weight != nullptr ? p.weight[c.t] : 1.0f;
      double loss = weight * row.nll(to_float(x[c.t]));
      if constexpr (kShare != Share::kNone) loss = p.keep * loss + p.share * row.spread_loss();
      if (lse != nullptr) lse[r] = row.lse();
      losses->add(n, d, loss, weight);
    }
  }
}

// ---------------------------------------------------------------------------------------- backward

// out[c] = f(c, n) for all c < size.
template <bool kStream, class T, class F>
FASTDL_INLINE void write(T* out, int64_t size, const F& f) {
  int64_t c = 0;
  if constexpr (kStream && sizeof(T) == 4) {
    const int64_t past = static_cast<int64_t>(reinterpret_cast<uintptr_t>(out) / 4 % kWidth);
    if (past != 0) {
      c = std::min(size, kWidth - past);
      store(out, f(0, c), c);
    }
    for (; c + kWidth <= size; c += kWidth) stream(out + c, f(c, kWidth));
  } else {
    for (; c + kWidth <= size; c += kWidth) store(out + c, f(c, kWidth));
  }
  if (c < size) store(out + c, f(c, size - c), size - c);
}

// Rows [begin, end). scratch: C floats.
template <Share kShare, bool kStream, class T>
void rows_backward(const Problem& p, const Scale& scale_of, const float* lse, const Tensor& grad,
                   float* scratch, int64_t begin, int64_t end) {
  const Tensor& input = *p.input;
  const int64_t* q_stride = p.target->stride;
  for (int64_t r = begin; r < end; ++r) {
    const int64_t n = r / p.inner, d = r - n * p.inner;
    const T* x = static_cast<const T*>(input.data) + n * input.stride[0] + d * input.stride[2];
    T* out = static_cast<T*>(grad.data) + n * grad.stride[0] + d * grad.stride[2];
    const T* q = x;
    if constexpr (is_soft(kShare))
      q = static_cast<const T*>(p.target->data) + n * q_stride[0] + d * q_stride[2];

    Class target{0, true, false};
    if constexpr (!is_soft(kShare)) target = class_of(p, n, d);
    if (!target.kept) {
      const Vec fill = splat(target.ignored ? 0.0f : kNaN);
      write<kStream>(out, p.classes, [&](int64_t, int64_t) { return fill; });
      continue;
    }

    const float shift = lse[r];
    double e_sum = 0.0, a_sum = 0.0;
    for (int64_t start = 0; start < p.classes; start += kBlock) {
      Vec e_block[kUnroll] = {}, a_block[kUnroll] = {};
      for_vectors(std::min(kBlock, p.classes - start), [&](int64_t i, int u, int64_t n) {
        const int64_t c = start + i;
        const Vec e = exp_nonpositive(load(x + c, n, -kInfinity) - shift);
        e_block[u] += e;
        store(scratch + c, e, n);
        if constexpr (is_soft(kShare)) a_block[u] += share_of<kShare>(p, q, c, n);
      });
      e_sum += add_up(e_block);
      if constexpr (is_soft(kShare)) a_sum += add_up(a_block);
    }

    // the loss times its gradient is sum_c a[c] * nll(c)
    const float scale = scale_of.of(n, d), smooth = scale * p.share;
    float a_t = 0.0f, sum_a;  // a_t: the target's a
    if constexpr (is_soft(kShare)) {
      sum_a = scale * static_cast<float>(a_sum);
    } else {
      const float weight = p.weight != nullptr ? p.weight[target.t] : 1.0f;
      const float hit = scale * (p.keep * weight);
      sum_a = kShare == Share::kNone ? hit : fma(smooth, p.weight_sum, hit);
      a_t = kShare == Share::kNone ? hit : fma(smooth, kShare == Share::kOnes ? 1.0f : weight, hit);
    }
    const float factor = sum_a / static_cast<float>(e_sum);
    auto gradient = [&](int64_t c, int64_t n) {
      const Vec e = load(scratch + c, n);
      if constexpr (kShare == Share::kNone) {
        return e * factor;
      } else if constexpr (kShare == Share::kOnes) {
        return fma(e, splat(factor), splat(-smooth));
      } else {
        const Vec a = share_of<kShare>(p, q, c, n);
        return fma(e, splat(factor), a * -(is_soft(kShare) ? scale : smooth));
      }
    };
    write<kStream>(out, p.classes, gradient);
    if constexpr (!is_soft(kShare)) out[target.t] = from_float<T>(scratch[target.t] * factor - a_t);
  }
  if constexpr (kStream) finish_streams();
}

}  // namespace fastdl::cpu::cross_entropy
