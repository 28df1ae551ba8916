// Shared memory is taken to start with zeros.
#include "fault.h"

using namespace fastdl;

namespace {
__global__ void count(int* out, bool faulty) {
  __shared__ int bins[4];
  const int i = threadIdx.x;
  if (!faulty && i < 4) bins[i] = 0;
  __syncthreads();
  atomicAdd(&bins[i % 4], 1);
  __syncthreads();
  if (i < 4) out[4 * blockIdx.x + i] = bins[i];
}
}  // namespace

FASTDL_EXPORT const char* uninitialised_shared(bool faulty) {
  Buffer<int> out(12);
  FASTDL_CUDA(launch(count, 3, 64, 0, nullptr, out.p, faulty));
  for (int i = 0; i < 12; ++i) FASTDL_WRONG(expect(out[i], 16));
  return nullptr;
}
