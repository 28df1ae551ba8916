// What the two kernels of cross_entropy share: a call seen as rows, the target of a row, where its loss goes.
#pragma once

#include "../cross_entropy.h"
#include "cross_entropy_math.h"
#include "dispatch.h"
#include "parallel.h"
#include "vec.h"

namespace fastdl::cpu::cross_entropy {

// What the loss of a row is made of beside weight[t] * nll(t): sum_c a[c] * nll(c).
enum class Share {
  kNone,
  kOnes,                   // label smoothing: a[c] = 1
  kWeights,                // label smoothing: a[c] = weight[c]
  kProbabilities,          // the whole loss, with a[c] = (1 - ls) * q[c] + ls / C
  kWeightedProbabilities,  // the same times weight[c]
};
constexpr bool is_soft(Share share) { return share >= Share::kProbabilities; }
constexpr bool has_weights(Share share) {
  return share == Share::kWeights || share == Share::kWeightedProbabilities;
}

// A call, forward or backward. Row r = n * D + d is the C logits of one (n, d).
struct Problem {
  const Tensor* input;
  const Tensor* target;
  int64_t rows, classes, inner;  // N * D, C, D
  int64_t ignore_index;
  const float* weight = nullptr;  // or none
  float weight_sum = 0.0f;        // sum_c a[c] for label smoothing
  float keep = 1.0f;              // 1 - ls
  float share = 0.0f;             // ls / C
  Share kind = Share::kNone;

  template <class Params>
  Problem(const Params& p)
      : input(&p.input),
        target(&p.target),
        rows(p.input.size[0] * p.input.size[2]),
        classes(p.input.size[1]),
        inner(p.input.size[2]),
        ignore_index(p.ignore_index) {
    keep = static_cast<float>(1.0 - p.label_smoothing);
    share = static_cast<float>(p.label_smoothing / static_cast<double>(classes));
    weight_sum = static_cast<float>(classes);
    if (target->dtype != DType::kInt64 && target->dtype != DType::kUInt8) {
      kind = p.weight ? Share::kWeightedProbabilities : Share::kProbabilities;
    } else if (p.label_smoothing != 0.0) {
      kind = p.weight ? Share::kWeights : Share::kOnes;
    }
  }
};

// Sets the problem's weights, as floats; an error, or nullptr.
inline const char* take_weight(const Tensor& weight, Context* context, Problem* problem) {
  if (is_soft(problem->kind) && problem->target->dtype != problem->input->dtype)
    return "expected probabilities of input's dtype";
  if (!weight) return nullptr;
  const bool known = with_float(weight.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* values = static_cast<const T*>(weight.data);
    if constexpr (sizeof(T) == 4) {
      problem->weight = values;
    } else {
      float* wide = static_cast<float*>(context->allocate(context, problem->classes * 4));
      for (int64_t c = 0; wide != nullptr && c < problem->classes; ++c) wide[c] = to_float(values[c]);
      problem->weight = wide;
    }
  });
  if (!known) return "expected a weight of float32, float16 or bfloat16";
  if (problem->weight == nullptr) return "out of memory";
  if (problem->kind == Share::kWeights) {
    double sum = 0.0;
    for (int64_t c = 0; c < problem->classes; ++c) sum += problem->weight[c];
    problem->weight_sum = static_cast<float>(sum);
  }
  return nullptr;
}

// A class target: t is a class (and may be an address) wherever it is kept.
struct Class {
  int64_t t;
  bool kept, ignored;  // neither: no class, the row's loss and gradient are NaN
};

FASTDL_INLINE Class class_of(const Problem& p, int64_t n, int64_t d) {
  const int64_t at = n * p.target->stride[0] + d * p.target->stride[1];
  const int64_t t = p.target->dtype == DType::kInt64 ? static_cast<const int64_t*>(p.target->data)[at]
                                                     : static_cast<const uint8_t*>(p.target->data)[at];
  const bool ignored = t == p.ignore_index;
  const bool kept = !ignored && static_cast<uint64_t>(t) < static_cast<uint64_t>(p.classes);
  return {kept ? t : 0, kept, ignored};
}

FASTDL_INLINE float load_any(const Tensor& x, int64_t at) {
  switch (x.dtype) {
    case DType::kFloat16:
      return to_float(static_cast<const f16*>(x.data)[at]);
    case DType::kBFloat16:
      return to_float(static_cast<const bf16*>(x.data)[at]);
    default:
      return static_cast<const float*>(x.data)[at];
  }
}
FASTDL_INLINE void store_any(const Tensor& x, int64_t at, float value) {
  switch (x.dtype) {
    case DType::kFloat16:
      static_cast<f16*>(x.data)[at] = from_float<f16>(value);
      break;
    case DType::kBFloat16:
      static_cast<bf16*>(x.data)[at] = from_float<bf16>(value);
      break;
    default:
      static_cast<float*>(x.data)[at] = value;
  }
}

// The losses of rows on their way out: each of them, or their sum.
struct Losses {
  const Tensor* loss;  // [N, D], or nullptr: sums only
  double sum = 0.0, weight = 0.0;

  FASTDL_INLINE void add(int64_t n, int64_t d, double row_loss, float row_weight) {
    if (loss != nullptr)
      store_any(*loss, n * loss->stride[0] + d * loss->stride[1], static_cast<float>(row_loss));
    sum += row_loss;
    weight += row_weight;
  }
};

// What the gradient of the loss is multiplied by in the gradient of a row: grad_loss (/ total_weight).
struct Scale {
  const Tensor* grad_loss;  // [N, D] or []
  const Tensor* total_weight;
  bool reduced, mean;

  FASTDL_INLINE float of(int64_t n, int64_t d) const {
    const float g = load_any(*grad_loss, reduced ? 0 : n * grad_loss->stride[0] + d * grad_loss->stride[1]);
    return mean ? g / *static_cast<const float*>(total_weight->data) : g;
  }
};

// Past the caches, for outputs larger than they are. p is aligned to a vector.
FASTDL_INLINE void stream(float* p, Vec v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(p, v);
#elif defined(__AVX2__)
  _mm256_stream_ps(p, v);
#else
  store(p, v);
#endif
}
inline void finish_streams() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

}  // namespace fastdl::cpu::cross_entropy
