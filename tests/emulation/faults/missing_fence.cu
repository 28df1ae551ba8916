// The last block sums up what the others wrote, with no fence between their writes and the counter.
#include "fault.h"

using namespace fastdl;

namespace {
__global__ void sum(float* partial, unsigned* counter, float* out, bool faulty) {
  __shared__ bool last;
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = 1;
    if (!faulty) __threadfence();
    last = atomicAdd(counter, 1u) == gridDim.x - 1;
    if (!faulty) __threadfence();
  }
  __syncthreads();
  if (last && threadIdx.x == 0) {
    float total = 0;
    for (unsigned i = 0; i < gridDim.x; ++i) total += partial[i];
    *out = total;
  }
}
}  // namespace

FASTDL_EXPORT const char* missing_fence(bool faulty) {
  Buffer<float> partial(10), out(1);
  unsigned counter = 0;
  FASTDL_CUDA(launch(sum, 10, 32, 0, nullptr, partial.p, &counter, out.p, faulty));
  return expect(out[0], 10.0f);
}
