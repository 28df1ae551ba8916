// A shared tile, used for the next step while slow threads may still read it.
#include "fault.h"

using namespace fastdl;

namespace {
__global__ void turn_twice(int* out, bool faulty) {
  __shared__ int tile[64];
  const int i = threadIdx.x;
  int sum = 0;
  for (int step = 0; step < 2; ++step) {
    tile[i] = i + step;
    __syncthreads();
    sum += tile[63 - i];
    if (!faulty) __syncthreads();
  }
  out[i] = sum;
}
}  // namespace

FASTDL_EXPORT const char* missing_barrier_write_after_read(bool faulty) {
  Buffer<int> out(64);
  FASTDL_CUDA(launch(turn_twice, 1, 64, 0, nullptr, out.p, faulty));
  for (int i = 0; i < 64; ++i) FASTDL_WRONG(expect(out[i], 2 * (63 - i) + 1));
  return nullptr;
}
