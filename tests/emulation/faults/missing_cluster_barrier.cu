// Blocks of a cluster read each other's shared memory without waiting for it to be written.
#include "fault.h"
#include "hopper.cuh"

using namespace fastdl;

namespace {
__global__ void sum(int* out, bool faulty) {
  __shared__ int mine[32];
  FASTDL_DYNAMIC_SHARED(int, more);
  mine[threadIdx.x] = int(cluster_rank());
  more[threadIdx.x] = 10;
  if (!faulty) cluster_barrier();
  int total = 0;
  for (unsigned rank = 0; rank < cluster_size(); ++rank) {
    total += map_shared(mine, rank)[threadIdx.x] + map_shared(more, rank)[threadIdx.x];
  }
  cluster_barrier();
  out[global_thread()] = total;
}
}  // namespace

FASTDL_EXPORT const char* missing_cluster_barrier(bool faulty) {
  Buffer<int> out(8 * 32);
  Launch how;
  how.grid = 8;
  how.block = 32;
  how.cluster = 4;
  how.shared_bytes = 32 * sizeof(int);
  FASTDL_CUDA(launch(sum, how, out.p, faulty));
  for (int i = 0; i < 8 * 32; ++i) FASTDL_WRONG(expect(out[i], 46));
  return nullptr;
}
