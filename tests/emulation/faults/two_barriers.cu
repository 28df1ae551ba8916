// The halves of a block wait at different barriers.
#include "fault.h"

using namespace fastdl;

namespace {
__global__ void fill(int* out, bool faulty) {
  const int i = threadIdx.x;
  if (faulty && i < 32) {
    out[i] = i;
    __syncthreads();
  } else {
    out[i] = i;
    __syncthreads();
  }
}
}  // namespace

FASTDL_EXPORT const char* two_barriers(bool faulty) {
  Buffer<int> out(64);
  FASTDL_CUDA(launch(fill, 1, 64, 0, nullptr, out.p, faulty));
  return expect(out[63], 63);
}
