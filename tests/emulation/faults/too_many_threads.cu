// A block of more than 1024 threads.
#include "fault.h"

using namespace fastdl;

namespace {
__global__ void fill(int* out) {
  if (threadIdx.x == 0 && threadIdx.y == 0) *out = int(blockDim.x * blockDim.y);
}
}  // namespace

FASTDL_EXPORT const char* too_many_threads(bool faulty) {
  Buffer<int> out(1);
  FASTDL_CUDA(launch(fill, 1, dim3(32, faulty ? 33 : 32), 0, nullptr, out.p));
  return expect(out[0], 1024);
}
