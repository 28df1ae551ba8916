// A global array, read one past its end.
#include "fault.h"

using namespace fastdl;

namespace {
__global__ void copy(const float* x, float* out, int n, bool faulty) {
  const int i = threadIdx.x;
  if (faulty ? i <= n : i < n) out[i] = x[i];
}
}  // namespace

FASTDL_EXPORT const char* global_bounds(bool faulty) {
  Buffer<float> x(100), out(101);
  for (int i = 0; i < 100; ++i) x[i] = 1;
  FASTDL_CUDA(launch(copy, 1, 128, 0, nullptr, x.p, out.p, 100, faulty));
  return expect(out[99], 1.0f);
}
