// Multiplies a gradient that forward has computed by the incoming one, unless that is 1: read on the device,
// so that nobody waits, and all blocks leave at once.
#include <algorithm>

#include "cross_entropy_problem.cuh"

namespace fastdl {
namespace {

template <class T, int V>
__global__ void __launch_bounds__(kThreads) cross_entropy_scale(T* grad, int64_t size, Tensor factor) {
  const float by = load_any(factor, 0);
  if (by == 1.0f) return;
  for (int64_t i = global_thread() * V; i < size; i += grid_threads() * V) {
    if (i + V <= size) {
      Vec<float, V> value = load_float<V, Cache::kStreaming>(grad + i);
#pragma unroll
      for (int j = 0; j < V; ++j) value[j] *= by;
      store_float<Cache::kStreaming>(grad + i, value);
    } else {
      for (int64_t j = i; j < size; ++j) grad[j] = from_float<T>(to_float(grad[j]) * by);
    }
  }
}

template <class T>
const char* run(const CrossEntropyScale& params, Context* context) {
  constexpr int kBlocksEach = 8;  // per multiprocessor: enough loads in flight
  T* const grad = static_cast<T*>(params.grad.data);
  const int64_t size = params.grad.size[0];
  const bool wide = aligned<T, kVec<T>>(grad);
  const int64_t needed = ceil_div(size, int64_t(kThreads) * (wide ? kVec<T> : 1));
  const int64_t most = int64_t(device_properties(context->device).multiprocessors) * kBlocksEach;
  const dim3 grid(static_cast<unsigned>(std::min(needed, most))), block(kThreads);
  return describe(wide ? launch(cross_entropy_scale<T, kVec<T>>, grid, block, 0, stream_of(context), grad,
                                size, params.factor)
                       : launch(cross_entropy_scale<T, 1>, grid, block, 0, stream_of(context), grad, size,
                                params.factor));
}

}  // namespace
}  // namespace fastdl

const char* fastdl_cross_entropy_scale(const fastdl::CrossEntropyScale* params, fastdl::Context* context) {
  using namespace fastdl;
  const DeviceGuard guard(context->device);
  if (guard.error()) return guard.error();
  return dispatch_float(params->grad.dtype,
                        [&](auto type) { return run<typename decltype(type)::type>(*params, context); });
}
