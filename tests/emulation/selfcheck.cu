// What the emulated intrinsics compute, against what CUDA's documentation says. Exports functions that return
// what went wrong, or nullptr.
#include <cstdio>

#include "hopper.cuh"
#include "runtime.cuh"

namespace {

using namespace fastdl;

__device__ char said[200] = "";

// Of a kernel: the first thing that is not so.
#define CHECK(condition)                                                                      \
  do {                                                                                        \
    if (!(condition) && !said[0]) {                                                           \
      snprintf(said, sizeof(said), "thread %u, line %d: " #condition, threadIdx.x, __LINE__); \
    }                                                                                         \
  } while (false)

__global__ void warps() {
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  CHECK(__shfl_sync(kFullMask, lane * 10, 5) == 50);
  CHECK(__shfl_sync(kFullMask, lane * 10, 37) == 50);
  CHECK(__shfl_sync(kFullMask, lane, 2, 8) == lane / 8 * 8 + 2);
  CHECK(__shfl_up_sync(kFullMask, lane, 3) == (lane < 3 ? lane : lane - 3));
  CHECK(__shfl_up_sync(kFullMask, lane, 3, 16) == (lane % 16 < 3 ? lane : lane - 3));
  CHECK(__shfl_down_sync(kFullMask, lane, 3) == (lane > 28 ? lane : lane + 3));
  CHECK(__shfl_down_sync(kFullMask, lane, 1, 4) == (lane % 4 == 3 ? lane : lane + 1));
  CHECK(__shfl_xor_sync(kFullMask, lane, 16) == (lane ^ 16));
  CHECK(__shfl_xor_sync(kFullMask, lane, 4, 4) == (lane < 4 || lane % 8 < 4 ? lane : lane - 4));
  CHECK(__shfl_xor_sync(kFullMask, 0.5 + lane, 1) == 0.5 + (lane ^ 1));
  CHECK(__shfl_sync(kFullMask, -1ll - lane, 7) == -8ll);
  CHECK(__ballot_sync(kFullMask, lane % 3 == 0) == 0x49249249u);
  CHECK(__any_sync(kFullMask, lane == 31) && !__any_sync(kFullMask, lane == 32));
  CHECK(__all_sync(kFullMask, lane < 32) && !__all_sync(kFullMask, lane != 4));
  CHECK(__reduce_add_sync(kFullMask, 2u) == 64u);
  CHECK(__reduce_min_sync(kFullMask, -lane) == -31);
  CHECK(__reduce_or_sync(kFullMask, 1u << lane) == kFullMask);
  CHECK(__match_any_sync(kFullMask, lane / 16) == (lane < 16 ? 0xffffu : 0xffff0000u));
  if (lane < 8) {  // part of a warp, the rest elsewhere
    CHECK(__shfl_xor_sync(0xffu, lane, 1) == (lane ^ 1));
    CHECK(__reduce_add_sync(0xffu, lane) == 28);
  } else {
    CHECK(__reduce_max_sync(0xffffff00u, unsigned(lane)) == 31u);
    __syncwarp(0xffffff00u);
  }
  __syncwarp();
  const int all = int(blockDim.x);
  CHECK(__syncthreads_count(lane == 0) == all / 32);
  CHECK(__syncthreads_and(1) == 1 && __syncthreads_and(threadIdx.x != 7) == 0);
  CHECK(__syncthreads_or(threadIdx.x == 7) == 1 && __syncthreads_or(0) == 0);
  CHECK(warp_reduce(float(lane), Sum{}) == 496);
  CHECK((warp_reduce<8>(lane, Sum{}) == lane / 8 * 64 + 28));
  struct Pair {
    float a, b;
  };
  const Pair pair = shuffle_xor(Pair{float(lane), float(warp)}, 2);
  CHECK(pair.a == float(lane ^ 2) && pair.b == float(warp));
  __shared__ float scratch[4];
  CHECK(block_reduce<128>(float(threadIdx.x), Sum{}, scratch) == 8128);
  CHECK(block_reduce<128>(float(threadIdx.x), Max{}, scratch) == 127);
}

__global__ void counts(unsigned* u, int* i, float* f, double* d, unsigned long long* l) {
  atomicAdd(u, 1u);
  CHECK(atomicInc(u + 1, 9u) < 10);
  atomicMax(i, int(threadIdx.x) - 64);
  atomicMin(i + 1, int(threadIdx.x) - 64);
  atomicOr(u + 2, 1u << threadIdx.x % 32);
  atomicAnd(u + 3, ~(1u << threadIdx.x % 32));
  atomicAdd(f, 0.5f);
  atomicAdd(d, 0.25);
  atomicAdd(l, 1ull << 32);
  unsigned old = u[4];  // a lock-free multiplication, as kernels write them
  while (true) {
    const unsigned seen = atomicCAS(u + 4, old, old * 3);
    if (seen == old) break;
    old = seen;
  }
}

__global__ void bits() {
  CHECK(__popc(0xf0f0u) == 8 && __ffs(0x40) == 7 && __ffs(0) == 0 && __clz(1) == 31 && __clz(0) == 32);
  CHECK(__brev(1u) == 0x80000000u && __brev(0x0000f0f0u) == 0x0f0f0000u);
  CHECK(__umulhi(0x80000000u, 6u) == 3u && __mulhi(-2, 1 << 30) == -1);
  CHECK(__funnelshift_l(0x80000001u, 0x2u, 1) == 5u && __funnelshift_r(0x2u, 0x1u, 1) == 0x80000001u);
  CHECK(__byte_perm(0x33221100u, 0x77665544u, 0x7410) == 0x77441100u);
  CHECK(__float2int_rn(2.5f) == 2 && __float2int_rd(-0.5f) == -1 && __float2int_rz(1e20f) == 0x7fffffff);
  CHECK(__float2int_rz(NAN) == 0 && __float2uint_rz(-3.0f) == 0);
  CHECK(min(3, -1) == -1 && max(3u, 7u) == 7u && max(NAN, 1.0f) == 1.0f);
}

__global__ void places(unsigned* seen) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  seen[block * blockDim.x * blockDim.y * blockDim.z + thread] += 1;
}

__global__ void clusters(unsigned* rank) {
  rank[blockIdx.x + gridDim.x * blockIdx.y] = cluster_rank() + 100 * cluster_size();
}

const char* finish(cudaError_t error) {
  if (const char* text = describe(error)) return text;
  return said[0] ? said : nullptr;
}

}  // namespace

FASTDL_EXPORT const char* check_warps() { return finish(launch(warps, 2, 128, 0, nullptr)); }
FASTDL_EXPORT const char* check_bits() { return finish(launch(bits, 1, 1, 0, nullptr)); }

FASTDL_EXPORT const char* check_atomics() {
  unsigned u[5] = {0, 0, 0, ~0u, 1}, power = 1;
  int i[2] = {-1000, 1000};
  float f = 0;
  double d = 0;
  unsigned long long l = 0;
  const char* error = finish(launch(counts, 3, 128, 0, nullptr, u, i, &f, &d, &l));
  for (int n = 0; n < 384; ++n) power *= 3;
  if (error) return error;
  if (u[0] != 384 || u[1] != 4 || u[2] != ~0u || u[3] != 0 || u[4] != power) return "unsigned";
  if (i[0] != 63 || i[1] != -64) return "int";
  return f == 192 && d == 96 && l == 384ull << 32 ? nullptr : "float, double or unsigned long long";
}

FASTDL_EXPORT const char* check_places() {
  static unsigned seen[3 * 4 * 5 * 2 * 3 * 4] = {};
  for (unsigned& n : seen) n = 0;
  const char* error = finish(launch(places, dim3(3, 4, 5), dim3(2, 3, 4), 0, nullptr, seen));
  for (unsigned n : seen) {
    if (n != 1) return "a thread did not run once";
  }
  return error;
}

FASTDL_EXPORT const char* check_clusters() {
  unsigned rank[8 * 4] = {};
  Launch how;
  how.grid = dim3(8, 4);
  how.block = 32;
  how.cluster = dim3(4, 2);
  if (const char* error = finish(launch(clusters, how, rank))) return error;
  for (unsigned y = 0; y < 4; ++y) {
    for (unsigned x = 0; x < 8; ++x) {
      if (rank[y * 8 + x] != 800 + x % 4 + y % 2 * 4) return "a block has another rank";
    }
  }
  how.grid = dim3(6, 4);
  return launch(clusters, how, rank) == cudaErrorInvalidConfiguration ? (cudaGetLastError(), nullptr)
                                                                      : "6 % 4 != 0";
}

// Conversions of n numbers, for a comparison with torch's.
FASTDL_EXPORT void convert(const float* x, uint16_t* half, uint16_t* bfloat, int64_t n) {
  for (int64_t i = 0; i < n; ++i) half[i] = to_f16(x[i]).bits, bfloat[i] = to_bf16(x[i]).bits;
}
FASTDL_EXPORT void widen(const uint16_t* half, float* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = to_float(f16{half[i]});
}
