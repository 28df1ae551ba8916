// The tail of the output is forgotten.
#include "fault.h"

using namespace fastdl;

namespace {
__global__ void fill(float* out, int n, bool faulty) {
  const int end = faulty ? n / 4 * 4 : n;
  for (int i = threadIdx.x; i < end; i += blockDim.x) out[i] = 0;
}
}  // namespace

FASTDL_EXPORT const char* unwritten_output(bool faulty) {
  Buffer<float> out(101);
  FASTDL_CUDA(launch(fill, 1, 32, 0, nullptr, out.p, 101, faulty));
  for (int i = 0; i < 101; ++i) FASTDL_WRONG(expect(out[i], 0.0f));
  return nullptr;
}
