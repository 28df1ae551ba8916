// The host's side of the runtime: devices, attributes, and the checks that a GPU's driver makes before a
// launch.
//
// Environment:
//   FASTDL_EMULATION_ORDER            forward, backward or random: threads and blocks; else in turns, one a
//   launch FASTDL_EMULATION_SEED             of random FASTDL_EMULATION_UNORDERED        1 (tsan): blocks of
//   a launch are not ordered among each other FASTDL_EMULATION_CAPABILITY       75, 80, 86, 89, 90 (the
//   default), 100 or 120 FASTDL_EMULATION_MULTIPROCESSORS  4 by default FASTDL_EMULATION_TRACE            1:
//   a line for every launch
#include <pthread.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <map>

#include "state.h"

namespace emulation {
namespace {

cudaError_t last_error = cudaSuccess;
thread_local int current_device = 0;
std::map<const void*, int>* allowed_shared = nullptr;
std::map<const void*, bool>* allowed_clusters = nullptr;

pthread_mutex_t one_launch = PTHREAD_MUTEX_INITIALIZER;
struct Lock {
  Lock() { pthread_mutex_lock(&one_launch); }
  ~Lock() { pthread_mutex_unlock(&one_launch); }
};

void ensure_state() {
  static bool made = false;
  if (made) return;
  state = new State();
  allowed_shared = new std::map<const void*, int>();
  allowed_clusters = new std::map<const void*, bool>();
  made = true;
}

int setting(const char* name, int otherwise) {
  const char* text = getenv(name);
  return text && *text ? atoi(text) : otherwise;
}

int capability() { return setting("FASTDL_EMULATION_CAPABILITY", 90); }
int multiprocessors() { return setting("FASTDL_EMULATION_MULTIPROCESSORS", 4); }

// KiB that a block may opt in to; a multiprocessor has 1 more per block.
int shared_kib() {
  switch (capability()) {
    case 75:
      return 64;
    case 80:
      return 163;
    case 86:
    case 89:
    case 120:
      return 99;
    default:
      return 227;
  }
}
int threads_per_multiprocessor() {
  switch (capability()) {
    case 75:
      return 1024;
    case 86:
    case 89:
    case 120:
      return 1536;
    default:
      return 2048;
  }
}

cudaError_t remember(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

cudaError_t refuse(cudaError_t error, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  const int n = snprintf(state->message, sizeof(state->message), "%s: ", kernel_name());
  vsnprintf(state->message + n, sizeof(state->message) - size_t(n), format, arguments);
  va_end(arguments);
  fprintf(stderr, "CUDA emulation: %s\n", state->message);
  return remember(error);
}

void choose_order() {
  const char* order = getenv("FASTDL_EMULATION_ORDER");
  const uint64_t n = state->launches++;
  state->random =
      (uint64_t(setting("FASTDL_EMULATION_SEED", 0)) + 1) * 0x9e3779b97f4a7c15 + n * 0xd1342543de82ef95;
  if (state->random == 0) state->random = 1;
  state->order = static_cast<Order>(n % 3);
  if (!order || !*order) return;
  if (strcmp(order, "forward") == 0) state->order = Order::kForward;
  if (strcmp(order, "backward") == 0) state->order = Order::kBackward;
  if (strcmp(order, "random") == 0) state->order = Order::kRandom;
}

}  // namespace

cudaError_t occupancy(int* blocks, int threads, size_t shared_bytes) {
  if (threads < 1 || threads > kMaxThreads || shared_bytes > size_t(shared_kib()) << 10) {
    *blocks = 0;
    return cudaSuccess;
  }
  const int by_threads = threads_per_multiprocessor() / ((threads + 31) / 32 * 32);
  const int by_shared = int((size_t(shared_kib() + 1) << 10) / (shared_bytes + 1024));
  *blocks = by_threads < by_shared ? by_threads : by_shared;
  if (*blocks > 16) *blocks = 16;
  return cudaSuccess;
}

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, void (*run)(void*), void* call) {
  Lock lock;
  ensure_state();
  state->kernel = kernel;
  state->run = run;
  state->call = call;
  state->dynamic_bytes = config.dynamicSmemBytes;
  const dim3 grid = config.gridDim, block = config.blockDim;
  dim3 cluster(1, 1, 1);
  bool cooperative = false;
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config.attrs[i];
    if (attribute.id == cudaLaunchAttributeCooperative) cooperative = attribute.val.cooperative != 0;
    if (attribute.id == cudaLaunchAttributeClusterDimension) {
      cluster = dim3(attribute.val.clusterDim.x, attribute.val.clusterDim.y, attribute.val.clusterDim.z);
    }
  }

  if (grid.x < 1 || grid.y < 1 || grid.z < 1 || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535) {
    return refuse(cudaErrorInvalidConfiguration, "a grid of (%u, %u, %u) blocks", grid.x, grid.y, grid.z);
  }
  const uint64_t threads = uint64_t(block.x) * block.y * block.z, blocks = uint64_t(grid.x) * grid.y * grid.z;
  if (threads < 1 || block.x > 1024 || block.y > 1024 || block.z > 64 || threads > kMaxThreads) {
    return refuse(cudaErrorInvalidConfiguration, "blocks of (%u, %u, %u) threads, of at most 1024", block.x,
                  block.y, block.z);
  }
  const auto allowed = allowed_shared->find(kernel);
  const size_t limit = allowed == allowed_shared->end() ? 48 << 10 : size_t(allowed->second);
  if (config.dynamicSmemBytes > limit) {
    return refuse(cudaErrorInvalidValue, "%zu bytes of dynamic shared memory, %zu being allowed",
                  config.dynamicSmemBytes, limit);
  }
  const unsigned cluster_blocks = cluster.x * cluster.y * cluster.z;
  if (cluster_blocks > 1) {
    if (capability() < 90) return refuse(cudaErrorNotSupported, "clusters need compute capability 9.0");
    if (cluster_blocks > (allowed_clusters->count(kernel) ? 16u : 8u)) {
      return refuse(cudaErrorInvalidConfiguration, "a cluster of %u blocks", cluster_blocks);
    }
    if (grid.x % cluster.x || grid.y % cluster.y || grid.z % cluster.z) {
      return refuse(cudaErrorInvalidConfiguration,
                    "a grid of (%u, %u, %u) blocks is not made of clusters of (%u, %u, %u)", grid.x, grid.y,
                    grid.z, cluster.x, cluster.y, cluster.z);
    }
  }
  if (cooperative) {
    int resident = 0;
    occupancy(&resident, int(threads), config.dynamicSmemBytes);
    if (blocks > uint64_t(resident) * multiprocessors()) {
      return refuse(cudaErrorCooperativeLaunchTooLarge,
                    "%llu blocks, of which %d at once fit onto %d multiprocessors",
                    (unsigned long long)blocks, resident, multiprocessors());
    }
  }

  choose_order();
  state->unordered = kRaces && setting("FASTDL_EMULATION_UNORDERED", 0) != 0;
  timespec begin, end;
  clock_gettime(CLOCK_MONOTONIC, &begin);
  watch_crashes(true);
  const cudaError_t error = execute(grid, block, cluster, cooperative);
  watch_crashes(false);
  current = nullptr;
  if (setting("FASTDL_EMULATION_TRACE", 0)) {
    clock_gettime(CLOCK_MONOTONIC, &end);
    fprintf(stderr, "CUDA emulation: %s, grid (%u, %u, %u), block (%u, %u, %u), %zu bytes, %.3f ms\n",
            kernel_name(), grid.x, grid.y, grid.z, block.x, block.y, block.z, config.dynamicSmemBytes,
            double(end.tv_sec - begin.tv_sec) * 1e3 + double(end.tv_nsec - begin.tv_nsec) / 1e6);
  }
  return remember(error);
}

}  // namespace emulation

using namespace emulation;

const char* cudaGetErrorString(cudaError_t error) {
  if (error == last_error && state && state->message[0]) return state->message;
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorLaunchOutOfResources:
      return "too many resources requested for launch";
    case cudaErrorLaunchFailure:
      return "unspecified launch failure";
    case cudaErrorCooperativeLaunchTooLarge:
      return "too many blocks in cooperative launch";
    case cudaErrorNotSupported:
      return "operation not supported";
  }
  return "unrecognized error code";
}

cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
cudaError_t cudaPeekAtLastError() { return last_error; }
cudaError_t cudaGetDevice(int* device) { return *device = current_device, cudaSuccess; }
cudaError_t cudaSetDevice(int device) {
  if (device != 0) return remember(cudaErrorInvalidDevice);
  return current_device = device, cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != 0) return remember(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = multiprocessors();
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = capability() / 10;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = capability() % 10;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = 48 << 10;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = shared_kib() << 10;
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = (shared_kib() + 1) << 10;
      break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = threads_per_multiprocessor();
      break;
    case cudaDevAttrL2CacheSize:
      *value = 50 << 20;
      break;
    case cudaDevAttrCooperativeLaunch:
      *value = 1;
      break;
  }
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  Lock lock;
  ensure_state();
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    if (value < 0 || value > shared_kib() << 10) {
      state->kernel = kernel;
      return refuse(cudaErrorInvalidValue, "%d bytes of dynamic shared memory, a block having at most %d",
                    value, shared_kib() << 10);
    }
    (*allowed_shared)[kernel] = value;
  }
  if (attribute == cudaFuncAttributeNonPortableClusterSizeAllowed && value)
    (*allowed_clusters)[kernel] = true;
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t) {
  memset(p, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  memmove(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
