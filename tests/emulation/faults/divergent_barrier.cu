// Some threads leave before the barrier.
#include "fault.h"

using namespace fastdl;

namespace {
__global__ void fill(int* out, int n, bool faulty) {
  const int i = threadIdx.x;
  if (faulty && i >= n) return;
  __syncthreads();
  if (i < n) out[i] = i;
}
}  // namespace

FASTDL_EXPORT const char* divergent_barrier(bool faulty) {
  Buffer<int> out(50);
  FASTDL_CUDA(launch(fill, 1, 64, 0, nullptr, out.p, 50, faulty));
  return expect(out[49], 49);
}
