// Threads read what their neighbours write, without a barrier in between.
#include "fault.h"

using namespace fastdl;

namespace {
__global__ void turn(int* out, bool faulty) {
  __shared__ int tile[64];
  const int i = threadIdx.x;
  tile[i] = i;
  if (!faulty) __syncthreads();
  out[i] = tile[63 - i];
}
}  // namespace

FASTDL_EXPORT const char* missing_barrier_read_after_write(bool faulty) {
  Buffer<int> out(64);
  FASTDL_CUDA(launch(turn, 1, 64, 0, nullptr, out.p, faulty));
  for (int i = 0; i < 64; ++i) FASTDL_WRONG(expect(out[i], 63 - i));
  return nullptr;
}
