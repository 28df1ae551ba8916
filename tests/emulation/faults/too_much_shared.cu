// More shared memory than a block has by default, without asking.
#include "fault.h"

using namespace fastdl;

namespace {
__global__ void fill(int* out) {
  FASTDL_DYNAMIC_SHARED(int, tile);
  tile[threadIdx.x] = 1;
  out[threadIdx.x] = tile[threadIdx.x];
}
}  // namespace

FASTDL_EXPORT const char* too_much_shared(bool faulty) {
  Buffer<int> out(32);
  cudaLaunchConfig_t config = {};
  config.gridDim = 1;
  config.blockDim = 32;
  config.dynamicSmemBytes = (48 << 10) + 16;
  if (!faulty) FASTDL_CUDA(allow_shared(fill, int64_t(config.dynamicSmemBytes)));
  FASTDL_CUDA(cudaLaunchKernelEx(&config, fill, out.p));
  return expect(out[31], 1);
}

// And more than there is.
FASTDL_EXPORT const char* far_too_much_shared(bool faulty) {
  Buffer<int> out(32);
  FASTDL_CUDA(launch(fill, 1, 32, (227 << 10) + faulty, nullptr, out.p));
  return expect(out[31], 1);
}
