// Lanes of a warp read what their neighbours write, trusting that they run in step.
#include "fault.h"

using namespace fastdl;

namespace {
__global__ void turn(int* out, bool faulty) {
  __shared__ int tile[32];
  const int i = threadIdx.x;
  tile[i] = i;
  if (!faulty) __syncwarp();
  out[i] = tile[31 - i] + __shfl_sync(kFullMask, 0, 0);
}
}  // namespace

FASTDL_EXPORT const char* missing_syncwarp(bool faulty) {
  Buffer<int> out(32);
  FASTDL_CUDA(launch(turn, 1, 32, 0, nullptr, out.p, faulty));
  for (int i = 0; i < 32; ++i) FASTDL_WRONG(expect(out[i], 31 - i));
  return nullptr;
}
