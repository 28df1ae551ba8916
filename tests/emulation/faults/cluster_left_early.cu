// A block leaves while others of its cluster still read its shared memory.
#include "fault.h"
#include "hopper.cuh"

using namespace fastdl;

namespace {
__global__ void sum(int* out, bool faulty) {
  FASTDL_DYNAMIC_SHARED(int, mine);
  mine[threadIdx.x] = 1;
  cluster_barrier();
  const int* next = map_shared(mine, (cluster_rank() + 1) % cluster_size());
  // The other way round, blocks run in the other order.
  const int* last = map_shared(mine, (cluster_rank() + cluster_size() - 1) % cluster_size());
  out[global_thread()] = next[threadIdx.x] + last[threadIdx.x];
  if (!faulty) cluster_barrier();
}
}  // namespace

FASTDL_EXPORT const char* cluster_left_early(bool faulty) {
  Buffer<int> out(8 * 32);
  Launch how;
  how.grid = 8;
  how.block = 32;
  how.cluster = 4;
  how.shared_bytes = 32 * sizeof(int);
  FASTDL_CUDA(launch(sum, how, out.p, faulty));
  for (int i = 0; i < 8 * 32; ++i) FASTDL_WRONG(expect(out[i], 2));
  return nullptr;
}
