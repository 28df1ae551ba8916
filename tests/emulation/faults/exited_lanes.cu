// A shuffle names lanes that have left.
#include "fault.h"

using namespace fastdl;

namespace {
__global__ void sum(int* out, int n, bool faulty) {
  const int i = threadIdx.x;
  if (faulty && i >= n) return;
  const int total = warp_reduce(i < n ? i : 0, Sum{});
  if (i < n) out[i] = total;
}
}  // namespace

FASTDL_EXPORT const char* exited_lanes(bool faulty) {
  Buffer<int> out(20);
  FASTDL_CUDA(launch(sum, 1, 32, 0, nullptr, out.p, 20, faulty));
  return expect(out[19], 190);
}
