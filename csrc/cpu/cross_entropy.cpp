// Softmax cross-entropy, forward and backward: which kernel takes a call, how rows are spread over threads,
// and the sum of their losses. The formulas are those of docs/ops/cross_entropy.md.
//
// Rows are cut into chunks that depend on the shape alone and the chunks' sums are added in their order: the
// loss does not depend on the number of threads.
#include "../cross_entropy.h"

#include <algorithm>
#include <type_traits>

#include "cross_entropy_lanes.h"
#include "cross_entropy_rows.h"
#include "parts.h"

namespace fastdl::cpu::cross_entropy {
namespace {

constexpr int64_t kGrain = 8192;             // logits worth a thread of their own
constexpr int64_t kChunk = 16384;            // logits whose losses are summed together
constexpr int64_t kStreamBytes = 16 << 20;   // outputs of this size do not stay in the cache anyway
constexpr int64_t kFewClasses = 2 * kWidth;  // too few to fill vectors with one row

// f(begin, end, thread) on disjoint ranges that cover [0, n).
template <class F>
void each_thread(const Context* context, int64_t n, int64_t grain, const F& f) {
  const int64_t threads = std::min<int64_t>(std::max<int32_t>(context->num_threads, 1), ceil_div(n, grain));
  if (threads <= 1) return f(int64_t{0}, n, int64_t{0});
  share_out(context, n, threads, f);
}

// Whether a row's classes fill vectors.
template <class... Tensors>
bool row_by_row(const Problem& p, const Tensors&... all) {
  return p.classes > kFewClasses && (... && (all.stride[1] == 1));
}

// f(T{}, share) with dtype and kind of loss as constants; an error, or nullptr.
template <class F>
const char* dispatch(const Problem& p, const F& f) {
  const bool known = with_float(p.input->dtype, [&](auto zero) {
    switch (p.kind) {
      case Share::kNone:
        return f(zero, std::integral_constant<Share, Share::kNone>{});
      case Share::kOnes:
        return f(zero, std::integral_constant<Share, Share::kOnes>{});
      case Share::kWeights:
        return f(zero, std::integral_constant<Share, Share::kWeights>{});
      case Share::kProbabilities:
        return f(zero, std::integral_constant<Share, Share::kProbabilities>{});
      case Share::kWeightedProbabilities:
        return f(zero, std::integral_constant<Share, Share::kWeightedProbabilities>{});
    }
  });
  return known ? nullptr : "expected float32, float16 or bfloat16";
}

const char* forward(const CrossEntropyForward& params, Context* context) {
  Problem p(params);
  if (const char* error = take_weight(params.weight, context, &p)) return error;
  const bool by_row =
      is_soft(p.kind) ? row_by_row(p, params.input, params.target) : row_by_row(p, params.input);
  // items: what a chunk is made of
  const Groups groups(p);
  const int64_t items = by_row ? p.rows : groups.count();
  const int64_t item_size = p.classes * (by_row ? 1 : groups.lanes);
  const int64_t per_chunk = std::max<int64_t>(1, kChunk / item_size), chunks = ceil_div(items, per_chunk);
  const int64_t grain = std::max<int64_t>(1, kGrain / (per_chunk * item_size));

  const bool reduced = params.reduction != Reduction::kNone, mean = params.reduction == Reduction::kMean;
  Losses one{reduced ? nullptr : &params.loss};
  Losses* sums = &one;
  if (chunks > 1) {
    sums = static_cast<Losses*>(context->allocate(context, chunks * static_cast<int64_t>(sizeof(Losses))));
    if (sums == nullptr) return "out of memory";
    std::fill(sums, sums + chunks, one);
  }
  float* lse = static_cast<float*>(params.lse.data);
  const char* error = dispatch(p, [&](auto zero, auto share) {
    using T = decltype(zero);
    each_thread(context, chunks, grain, [&](int64_t begin, int64_t end, int64_t) {
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        const int64_t from = chunk * per_chunk, to = std::min(items, from + per_chunk);
        Losses local = one;
        if (by_row) {
          rows_forward<share.value, T>(p, lse, &local, from, to);
        } else {
          lanes_forward<share.value, T>(p, lse, &local, from, to);
        }
        sums[chunk] = local;
      }
    });
  });
  if (error != nullptr || !reduced) return error;

  double sum = 0.0, weight = 0.0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    sum += sums[chunk].sum;
    weight += sums[chunk].weight;
  }
  if (mean) {
    if (params.total_weight) *static_cast<float*>(params.total_weight.data) = static_cast<float>(weight);
    sum = weight == 0.0 ? kNaN
                        : sum / weight;  // NaN over no weight at all, though smoothing gives such rows a loss
  }
  store_any(params.loss, 0, static_cast<float>(sum));
  return nullptr;
}

const char* backward(const CrossEntropyBackward& params, Context* context) {
  Problem p(params);
  if (const char* error = take_weight(params.weight, context, &p)) return error;
  const Tensor& grad = params.grad_input;
  const bool by_row =
      is_soft(p.kind) ? row_by_row(p, params.input, params.target, grad) : row_by_row(p, params.input, grad);
  const Scale scale{&params.grad_loss, &params.total_weight, params.reduction != Reduction::kNone,
                    params.reduction == Reduction::kMean};
  const Groups groups(p);
  const int64_t items = by_row ? p.rows : groups.count();
  const int64_t item_size = p.classes * (by_row ? 1 : groups.lanes);
  const int64_t grain = std::max<int64_t>(1, kGrain / item_size);
  const bool streamed = p.rows * p.classes * 4 >= kStreamBytes;

  // e of one row or group for each thread; of few classes, on the stack
  alignas(64) float small[2 * kScattered * kFewClasses];
  const int64_t tile = item_size * (!by_row && is_soft(p.kind) ? 2 : 1);
  const bool alone = items <= grain || context->num_threads <= 1;
  float* scratch = small;
  if (!alone || tile > static_cast<int64_t>(sizeof small / sizeof *small)) {
    const int64_t threads = alone ? 1 : context->num_threads;
    scratch = static_cast<float*>(context->allocate(context, threads * tile * 4));
    if (scratch == nullptr) return "out of memory";
  }
  const float* lse = static_cast<const float*>(params.lse.data);
  return dispatch(p, [&](auto zero, auto share) {
    using T = decltype(zero);
    each_thread(context, items, grain, [&](int64_t begin, int64_t end, int64_t thread) {
      float* mine = scratch + thread * tile;
      if (!by_row) {
        lanes_backward<share.value, T>(p, scale, grad, streamed, mine, begin, end);
      } else if (streamed) {
        rows_backward<share.value, true, T>(p, scale, lse, grad, mine, begin, end);
      } else {
        rows_backward<share.value, false, T>(p, scale, lse, grad, mine, begin, end);
      }
    });
  });
}

}  // namespace
}  // namespace fastdl::cpu::cross_entropy

const char* fastdl_cross_entropy_forward(const fastdl::CrossEntropyForward* params,
                                         fastdl::Context* context) {
  return fastdl::cpu::cross_entropy::forward(*params, context);
}
const char* fastdl_cross_entropy_backward(const fastdl::CrossEntropyBackward* params,
                                          fastdl::Context* context) {
  return fastdl::cpu::cross_entropy::backward(*params, context);
}
