// Loops on torch's own threads.
#pragma once

#include "../library.h"

namespace fastdl::cpu {

// f(begin, end) on disjoint ranges that cover [0, n). `grain`: the smallest range worth a thread of its own.
template <class F>
void parallel(const Context* context, int64_t n, int64_t grain, const F& f) {
  if (n <= 0) return;
  if (n <= grain || context->num_threads <= 1) return f(int64_t{0}, n);
  auto call = [](void* data, int64_t begin, int64_t end) { (*static_cast<const F*>(data))(begin, end); };
  context->parallel_for(n, grain, call, const_cast<F*>(&f));
}

// f(begin, end, thread) for `threads` ranges of nearly one length that cover [0, n).
template <class F>
void share_out(const Context* context, int64_t n, int64_t threads, const F& f) {
  parallel(context, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread)
      f(n * thread / threads, n * (thread + 1) / threads, thread);
  });
}

}  // namespace fastdl::cpu
