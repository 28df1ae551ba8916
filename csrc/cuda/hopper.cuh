// Clusters of blocks and their distributed shared memory: compute capability 9.0 on. Kernels that use them
// compile for older ones too, where they must not be launched (device_properties(d).capability >= 90).
#pragma once

#include "runtime.cuh"

namespace fastdl {

#if defined(FASTDL_EMULATED)

__device__ __forceinline__ unsigned cluster_rank() { return emulation::cluster_rank(); }
__device__ __forceinline__ unsigned cluster_size() { return emulation::cluster_size(); }
__device__ __forceinline__ void cluster_arrive() { emulation::cluster_arrive(); }
__device__ __forceinline__ void cluster_wait() { emulation::cluster_wait(); }
template <class T>
__device__ __forceinline__ T* map_shared(T* p, unsigned rank) {
  return static_cast<T*>(emulation::map_shared(p, rank));
}

#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

// This block's number within its cluster, and how many blocks that has.
__device__ __forceinline__ unsigned cluster_rank() {
  unsigned rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ __forceinline__ unsigned cluster_size() {
  unsigned size;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}
// A barrier of all threads of the cluster, in two halves: what comes before arrive is seen after wait.
__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// The address, in block `rank` of the cluster, of what lies at the shared address p in this one. Loads,
// stores and atomics through it are ordinary ones. The other block must have started (a cluster barrier
// before) and may not have left (a cluster barrier after).
template <class T>
__device__ __forceinline__ T* map_shared(T* p, unsigned rank) {
  uint64_t mapped;
  asm volatile("mapa.u64 %0, %1, %2;" : "=l"(mapped) : "l"(reinterpret_cast<uint64_t>(p)), "r"(rank));
  return reinterpret_cast<T*>(mapped);
}

#else

__device__ __forceinline__ unsigned cluster_rank() { return 0; }
__device__ __forceinline__ unsigned cluster_size() { return 1; }
__device__ __forceinline__ void cluster_arrive() {}
__device__ __forceinline__ void cluster_wait() {}
template <class T>
__device__ __forceinline__ T* map_shared(T* p, unsigned) {
  return p;
}

#endif

__device__ __forceinline__ void cluster_barrier() {
  cluster_arrive();
  cluster_wait();
}

}  // namespace fastdl
