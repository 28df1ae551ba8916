// A dynamic shared array, written one past its end.
#include "fault.h"

using namespace fastdl;

namespace {
__global__ void fill(float* out, bool faulty) {
  FASTDL_DYNAMIC_SHARED(float, tile);
  const int i = threadIdx.x;
  if (i < (faulty ? 101 : 100)) tile[i] = 1;
  __syncthreads();
  if (i < 100) out[i] = tile[i];
}
}  // namespace

FASTDL_EXPORT const char* dynamic_shared_bounds(bool faulty) {
  Buffer<float> out(100);
  FASTDL_CUDA(launch(fill, 1, 128, 100 * sizeof(float), nullptr, out.p, faulty));
  return expect(out[99], 1.0f);
}
