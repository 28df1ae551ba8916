// A fault for each tool of compute-sanitizer, so that one that finds nothing is known to look: `control 0` to `control 3`.
#include <cuda_runtime.h>

#include <cstdlib>

namespace fastdl {  // run.py has kernels checked by this name

__global__ void out_of_bounds(float* out) { out[threadIdx.x + 1] = 1.0f; }  // memcheck
__global__ void race(float* out) {  // racecheck
  __shared__ float tile[64];
  tile[threadIdx.x] = float(threadIdx.x);
  out[threadIdx.x] = tile[63 - threadIdx.x];
}
__global__ void uninitialised(const float* x, float* out) { out[threadIdx.x] = x[threadIdx.x] + 1.0f; }  // initcheck
__global__ void divergent(float* out) {  // synccheck: part of a block, and of a warp, at a barrier of all
  if (threadIdx.x < 40) {
    out[threadIdx.x] = 1.0f;
    __syncthreads();
  }
}

}  // namespace fastdl

int main(int, char** arguments) {
  float *x = nullptr, *out = nullptr;
  cudaMalloc(&x, 64 * sizeof(float));
  cudaMalloc(&out, 64 * sizeof(float));
  switch (atoi(arguments[1])) {
    case 0: fastdl::out_of_bounds<<<1, 64>>>(out); break;
    case 1: fastdl::race<<<1, 64>>>(out); break;
    case 2: fastdl::uninitialised<<<1, 64>>>(x, out); break;
    default: fastdl::divergent<<<1, 64>>>(out);
  }
  return cudaDeviceSynchronize() == cudaSuccess ? 0 : 1;
}
