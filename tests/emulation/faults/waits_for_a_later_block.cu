// A block waits for one that need not be resident; a cooperative launch would see to it.
#include "fault.h"

using namespace fastdl;

namespace {
__global__ void meet(unsigned* arrived, int* out) {
  unsigned phase = 0;
  grid_barrier(arrived, phase);
  if (threadIdx.x == 0) out[blockIdx.x] = 1;
}
}  // namespace

FASTDL_EXPORT const char* waits_for_a_later_block(bool faulty) {
  Buffer<int> out(4);
  unsigned arrived = 0;
  Launch how;
  how.grid = 4;
  how.block = 32;
  how.cooperative = !faulty;
  FASTDL_CUDA(launch(meet, how, &arrived, out.p));
  return expect(out[3], 1);
}
