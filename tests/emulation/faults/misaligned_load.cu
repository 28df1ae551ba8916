// 16 bytes read at an address that is a multiple of 4.
#include "fault.h"

using namespace fastdl;

namespace {
__global__ void copy(const float* x, float* out) { store(out, load<4>(x)); }
}  // namespace

FASTDL_EXPORT const char* misaligned_load(bool faulty) {
  Buffer<float> x(8), out(4);
  for (int i = 0; i < 8; ++i) x[i] = 1;
  FASTDL_CUDA(launch(copy, 1, 1, 0, nullptr, x.p + faulty, out.p));
  return expect(out[3], 1.0f);
}
