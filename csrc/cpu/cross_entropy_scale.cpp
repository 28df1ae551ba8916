// Multiplies a gradient that forward has computed by the incoming one, unless that is 1.
#include "cross_entropy_problem.h"

const char* fastdl_cross_entropy_scale(const fastdl::CrossEntropyScale* params, fastdl::Context* context) {
  using namespace fastdl::cpu;
  constexpr int64_t kGrain = 65536;  // elements worth a thread
  const float by = cross_entropy::load_any(params->factor, 0);
  if (by == 1.0f) return nullptr;
  const bool known = with_float(params->grad.dtype, [&](auto zero) {
    using T = decltype(zero);
    T* grad = static_cast<T*>(params->grad.data);
    parallel(context, params->grad.size[0], kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i += kWidth) store(grad + i, load(grad + i, end - i) * by, end - i);
    });
  });
  return known ? nullptr : "expected float32, float16 or bfloat16";
}
