// What every .cu includes: launching, devices, errors (host); reductions, shuffles, last-block-done (device).
//
// nvcc compiles the .cu files for GPUs; g++ compiles the same files against tests/emulation/cuda_runtime.h,
// which runs them on the CPU and defines FASTDL_EMULATED (docs/emulation.md). So that both can:
//   * no <<<>>>: launch(); dynamic shared memory through FASTDL_DYNAMIC_SHARED; shared variables of trivial
//   types;
//   * kernels and device functions with shared variables live in an anonymous namespace;
//   * a barrier is reached by the whole block, a warp operation by every lane that its mask names;
//   * what lanes of a warp tell each other through memory is behind a __syncwarp;
//   * a loop that waits for another block calls __nanosleep.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <utility>

#include "../library.h"
#include "numeric.cuh"

namespace fastdl {

constexpr int kWarp = 32;
constexpr unsigned kFullMask = 0xffffffffu;

template <class A, class B>
__host__ __device__ constexpr auto ceil_div(A a, B b) {
  return (a + b - 1) / b;
}

// ---- Host: errors and devices ----

// What went wrong, or nullptr. Takes the error off the runtime's hands, lest torch blame its next call for
// it.
inline const char* describe(cudaError_t error) {
  if (error == cudaSuccess) return nullptr;
  const char* text = cudaGetErrorString(error);
  (void)cudaGetLastError();
  return text;
}

// In a function that returns const char*: leave it on an error.
#define FASTDL_CUDA(call)                                                         \
  do {                                                                            \
    if (const char* fastdl_error = ::fastdl::describe(call)) return fastdl_error; \
  } while (false)

// Makes `device` current, and the old one again. error(): why it cannot be, such as that there is none.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    error_ = describe(cudaGetDevice(&old_));
    if (error_ || old_ == device) return;
    error_ = describe(cudaSetDevice(device));
    changed_ = error_ == nullptr;
  }
  ~DeviceGuard() {
    if (changed_) (void)cudaSetDevice(old_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  const char* error() const { return error_; }

 private:
  const char* error_ = nullptr;
  int old_ = 0;
  bool changed_ = false;
};

struct Device {
  int multiprocessors;
  int capability;        // 75, 80, 86, 89, 90, 100, 120
  int shared_per_block;  // bytes that one block may opt in to
  int shared_per_multiprocessor;
  int l2_bytes;
};

constexpr int kMaxDevices = 64;

// The properties of a device, looked up once (no context is made). Two threads may do it at once, to the same
// end. The tables are initialised, so that under emulation they do not lie in shared memory.
inline const Device& device_properties(int device) {
  static Device devices[kMaxDevices] = {};
  static int known[kMaxDevices] = {};
  if (device < 0 || device >= kMaxDevices) device = 0;
  if (!__atomic_load_n(&known[device], __ATOMIC_ACQUIRE)) {
    Device found = {};
    int major = 0, minor = 0;
    (void)cudaDeviceGetAttribute(&found.multiprocessors, cudaDevAttrMultiProcessorCount, device);
    (void)cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    (void)cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    (void)cudaDeviceGetAttribute(&found.shared_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    (void)cudaDeviceGetAttribute(&found.shared_per_multiprocessor,
                                 cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
    (void)cudaDeviceGetAttribute(&found.l2_bytes, cudaDevAttrL2CacheSize, device);
    found.capability = 10 * major + minor;
    devices[device] = found;
    __atomic_store_n(&known[device], 1, __ATOMIC_RELEASE);
  }
  return devices[device];
}

inline cudaStream_t stream_of(const Context* context) { return static_cast<cudaStream_t>(context->stream); }

// ---- Host: launching ----

struct Launch {
  dim3 grid, block;
  int64_t shared_bytes = 0;  // dynamic
  cudaStream_t stream = nullptr;
  dim3 cluster = dim3(1, 1, 1);  // sm_90 on; more than 8 blocks only up to 16
  bool cooperative = false;      // all blocks resident at once: grid_barrier() may be used
};

constexpr int64_t kMaxGridX = 0x7fffffff, kMaxGridYZ = 65535;
constexpr int64_t kDefaultSharedBytes = 48 << 10;

template <class... Params>
cudaError_t allow_shared(void (*kernel)(Params...), int64_t bytes) {
  if (bytes <= kDefaultSharedBytes) return cudaSuccess;
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                              cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
}

template <class... Params, class... Args>
cudaError_t launch(void (*kernel)(Params...), const Launch& how, Args&&... args) {
  cudaError_t error = allow_shared(kernel, how.shared_bytes);
  if (error != cudaSuccess) return error;
  const unsigned cluster_blocks = how.cluster.x * how.cluster.y * how.cluster.z;
  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchConfig_t config = {};
  config.gridDim = how.grid;
  config.blockDim = how.block;
  config.dynamicSmemBytes = static_cast<size_t>(how.shared_bytes);
  config.stream = how.stream;
  config.attrs = attributes;
  config.numAttrs = 0;
  if (cluster_blocks > 1) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = how.cluster.x;
    attribute.val.clusterDim.y = how.cluster.y;
    attribute.val.clusterDim.z = how.cluster.z;
    if (cluster_blocks > 8) {
      error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                   cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
      if (error != cudaSuccess) return error;
    }
  }
  if (how.cooperative) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
  }
  return cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...);
}

template <class... Params, class... Args>
cudaError_t launch(void (*kernel)(Params...), dim3 grid, dim3 block, int64_t shared_bytes,
                   cudaStream_t stream, Args&&... args) {
  Launch how;
  how.grid = grid;
  how.block = block;
  how.shared_bytes = shared_bytes;
  how.stream = stream;
  return launch(kernel, how, std::forward<Args>(args)...);
}

// ---- Device: shared memory, indices ----

// FASTDL_DYNAMIC_SHARED(float, tile); declares `float* tile`, the block's dynamic shared memory, 128-byte
// aligned.
#ifdef FASTDL_EMULATED
#define FASTDL_DYNAMIC_SHARED(type, name) type* const name = static_cast<type*>(::emulation::dynamic_shared())
#else
#define FASTDL_DYNAMIC_SHARED(type, name)                         \
  extern __shared__ __align__(128) unsigned char fastdl_shared[]; \
  type* const name = reinterpret_cast<type*>(fastdl_shared)
#endif

__device__ __forceinline__ int lane_id() {
  return static_cast<int>(threadIdx.x) % kWarp;
}  // blocks: x a multiple of 32
__device__ __forceinline__ int64_t global_thread() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ __forceinline__ int64_t grid_threads() { return int64_t(gridDim.x) * blockDim.x; }

// ---- Device: reductions, always in the same order ----

namespace detail {
template <class T, class Shuffle>
__device__ __forceinline__ T shuffle_words(const T& value, Shuffle shuffle) {
  static_assert(sizeof(T) % 4 == 0, "whole words");
  unsigned words[sizeof(T) / 4];
  memcpy(words, &value, sizeof(T));
#pragma unroll
  for (unsigned& word : words) word = shuffle(word);
  T result;
  memcpy(&result, words, sizeof(T));
  return result;
}
}  // namespace detail

// Shuffles of any trivial type of whole words, by whole warps.
template <class T>
__device__ __forceinline__ T shuffle_xor(const T& value, int lanes) {
  return detail::shuffle_words(value, [=](unsigned word) { return __shfl_xor_sync(kFullMask, word, lanes); });
}
template <class T>
__device__ __forceinline__ T shuffle(const T& value, int lane) {
  return detail::shuffle_words(value, [=](unsigned word) { return __shfl_sync(kFullMask, word, lane); });
}

struct Sum {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Max {  // of two numbers the larger; a NaN loses
  __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

// Over groups of kLanes neighbouring lanes; every lane gets its group's result, the same bits (op(a, b) ==
// op(b, a)).
template <int kLanes = kWarp, class T, class Op>
__device__ __forceinline__ T warp_reduce(T value, Op op) {
#pragma unroll
  for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) value = op(value, shuffle_xor(value, lanes));
  return value;
}

// Over a block of kThreads threads (a power of two, threadIdx.x alone), to all of them. `scratch`: kThreads /
// 32 values in shared memory, free again on return.
template <int kThreads, class T, class Op>
__device__ __forceinline__ T block_reduce(T value, Op op, T* scratch) {
  constexpr int kWarps = kThreads / kWarp;
  static_assert(kWarps >= 1 && kWarps <= kWarp && (kWarps & (kWarps - 1)) == 0, "a power of two of warps");
  value = warp_reduce(value, op);
  if constexpr (kWarps > 1) {
    if (lane_id() == 0) scratch[threadIdx.x / kWarp] = value;
    __syncthreads();
    value = warp_reduce<kWarps>(scratch[lane_id() % kWarps], op);
    __syncthreads();
  }
  return value;
}

// ---- Device: between blocks ----

// Loads and stores that order what is around them, between blocks.
#ifdef FASTDL_EMULATED
__device__ __forceinline__ unsigned load_acquire(const unsigned* p) {
  return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}
__device__ __forceinline__ void store_release(unsigned* p, unsigned x) {
  __atomic_store_n(p, x, __ATOMIC_RELEASE);
}
#else
__device__ __forceinline__ unsigned load_acquire(const unsigned* p) {
  unsigned value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
  return value;
}
__device__ __forceinline__ void store_release(unsigned* p, unsigned x) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(x) : "memory");
}
#endif

// True in all threads of the block that is the last of `blocks` to come here: it sees what the others wrote
// before. `counter` is 0 at first (cudaMemsetAsync) and 0 again afterwards. `flag`: one shared bool. Reached
// by whole blocks. Thread (0, 0, 0) alone fences: the barrier before it makes its fence cover what the whole
// block wrote.
__device__ __forceinline__ bool last_block_done(unsigned* counter, unsigned blocks, bool* flag) {
  __syncthreads();
  if (threadIdx.x == 0 && threadIdx.y == 0 && threadIdx.z == 0) {
    __threadfence();
    const bool last = atomicAdd(counter, 1u) == blocks - 1;
    if (last) atomicExch(counter, 0u);
    __threadfence();
    *flag = last;
  }
  __syncthreads();
  return *flag;
}

// All blocks of a cooperative launch wait for each other. `arrived` is 0 before the kernel (cudaMemsetAsync);
// `phase` is a variable of each thread, 0 at first, that only this function changes.
__device__ __forceinline__ void grid_barrier(unsigned* arrived, unsigned& phase) {
  const unsigned blocks = gridDim.x * gridDim.y * gridDim.z;
  ++phase;
  __syncthreads();
  if (threadIdx.x == 0 && threadIdx.y == 0 && threadIdx.z == 0) {
    __threadfence();
    atomicAdd(arrived, 1u);
    while (load_acquire(arrived) < phase * blocks) __nanosleep(64);
    __threadfence();
  }
  __syncthreads();
}

}  // namespace fastdl
