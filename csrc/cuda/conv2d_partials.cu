// Sums over pixels are cut into splits, so that few results still fill the GPU; each split leaves a float32
// partial of the whole result, and these are added here in a fixed order, in double, which costs nothing
// here.
#include "conv2d_common.cuh"

namespace fastdl {
namespace {

constexpr int kLanes = 32, kRows = 8;

// out[i] = sum over splits of partials[split][i]. Grid: (ceil(numel / kLanes)); a row of threads adds every
// kRows-th.
template <class T>
__global__ void __launch_bounds__(kLanes* kRows)
    conv2d_add_partials_kernel(const float* partials, int64_t splits, int64_t numel, T* out) {
  __shared__ double sums[kRows][kLanes];
  const int lane = threadIdx.x % kLanes, row = threadIdx.x / kLanes;
  const int64_t i = int64_t(blockIdx.x) * kLanes + lane;
  double sum = 0.0;
  if (i < numel) {
#pragma unroll 4
    for (int64_t split = row; split < splits; split += kRows) sum += partials[split * numel + i];
  }
  sums[row][lane] = sum;
  __syncthreads();
  if (row == 0 && i < numel) {
#pragma unroll
    for (int other = 1; other < kRows; ++other) sum += sums[other][lane];
    out[i] = from_float<T>(static_cast<float>(sum));
  }
}

}  // namespace

// Fills `out`, dense, walked as it lies in memory.
const char* conv2d_add_partials(const float* partials, int64_t splits, const Tensor& out, Context* context) {
  const int64_t numel = out.numel(), blocks = ceil_div(numel, int64_t(kLanes));
  FASTDL_TRY(check_grid(blocks));
  return dispatch_float(out.dtype, [&](auto type) -> const char* {
    using T = typename decltype(type)::type;
    FASTDL_CUDA(launch(conv2d_add_partials_kernel<T>, dim3(unsigned(blocks)), dim3(kLanes * kRows), 0,
                       stream_of(context), partials, splits, numel, static_cast<T*>(out.data)));
    return nullptr;
  });
}

}  // namespace fastdl
