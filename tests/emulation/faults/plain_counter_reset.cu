// The last block sets the counter back by a plain store, which races with the atomics of the others.
#include "fault.h"

using namespace fastdl;

namespace {
__global__ void count(unsigned* counter, unsigned* out, bool faulty) {
  if (atomicAdd(counter, 1u) != gridDim.x - 1) return;
  if (faulty) {
    *counter = 0;
  } else {
    atomicExch(counter, 0u);
  }
  *out = 1;
}
}  // namespace

FASTDL_EXPORT const char* plain_counter_reset(bool faulty) {
  Buffer<unsigned> out(1);
  unsigned counter = 0;
  FASTDL_CUDA(launch(count, 10, 1, 0, nullptr, &counter, out.p, faulty));
  FASTDL_WRONG(expect(counter, 0u));
  return expect(out[0], 1u);
}
