// A static shared array, written one past its end through a pointer.
#include "fault.h"

using namespace fastdl;

namespace {
__device__ void put(float* p, int i) { p[i] = 1; }

__global__ void fill(float* out, bool faulty) {
  __shared__ float tile[100];
  const int i = threadIdx.x;
  if (i < (faulty ? 101 : 100)) put(tile, i);
  __syncthreads();
  if (i < 100) out[i] = tile[i];
}
}  // namespace

FASTDL_EXPORT const char* static_shared_bounds(bool faulty) {
  Buffer<float> out(100);
  FASTDL_CUDA(launch(fill, 1, 128, 0, nullptr, out.p, faulty));
  return expect(out[99], 1.0f);
}
