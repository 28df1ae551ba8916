// affine_grid_sample, the gradient of theta:
//
//   grad_theta = sum over output pixels and channels of grad_out (d out / d (ix, iy)) slope scale (xn, yn, 1)
//
// A block sums tiles of one sample in registers, then over its threads; the last block of a sample to finish
// adds the blocks' sums in their order.
#include "affine_grid_sample_map.cuh"
#include "sampling_channels.cuh"

namespace fastdl::affine {
namespace {

struct Params {
  Geometry geometry;
  Thetas theta;
  Tiling tiling;
  View input, grad_out;
  void* grad_theta;  // [N, 2, 3] contiguous, theta's dtype
  float* partial;    // [N, splits, 6]
  unsigned* done;    // [N], zeros
  int64_t n, channels, group, groups;
  int splits;  // blocks of a sample
};

struct Sums {
  float v[6];  // of gx xn, gx yn, gx, gy xn, gy yn, gy
};

struct Add {
  __device__ __forceinline__ Sums operator()(Sums a, const Sums& b) const {
#pragma unroll
    for (int k = 0; k < 6; ++k) a.v[k] += b.v[k];
    return a;
  }
};

template <class T, class Grad, int kLanes>
__device__ __forceinline__ void add_pixel(const Params& p, const Theta& theta, int64_t n, int64_t first,
                                          int h, int w, Sums& sums) {
  const Geometry& g = p.geometry;
  const int64_t end = first + p.group < p.channels ? first + p.group : p.channels;
  const float xn = centre(g.x, w, g.align), yn = centre(g.y, h, g.align);
  const Cell cell = locate(g, theta, xn, yn);
  const Taps taps = taps_of(cell, g, p.input.stride[2], p.input.stride[3]);
  const Slope slope =
      slope_of_channels<kLanes>(cell, taps, element<T>(p.input, n, first), p.input.stride, end - first,
                                element<Grad>(p.grad_out, n, first, h, w), p.grad_out.stride[1]);
  sums = Add()(sums, {{slope.x * xn, slope.x * yn, slope.x, slope.y * xn, slope.y * yn, slope.y}});
}

__device__ __forceinline__ void store_theta(const Params& p, int64_t offset, float value) {
  if (p.theta.dtype == DType::kFloat16) {
    static_cast<f16*>(p.grad_theta)[offset] = to_f16(value);
  } else if (p.theta.dtype == DType::kBFloat16) {
    static_cast<bf16*>(p.grad_theta)[offset] = to_bf16(value);
  } else {
    static_cast<float*>(p.grad_theta)[offset] = value;
  }
}

template <class T, class Grad, int kLanes>
__global__ void __launch_bounds__(kThreads) theta_kernel(const Params p) {
  __shared__ Sums scratch[kThreads / kWarp];
  __shared__ bool flag;
  for (int64_t block = blockIdx.x; block < p.n * p.splits; block += gridDim.x) {
    const int64_t n = block / p.splits;
    const int split = static_cast<int>(block % p.splits);
    const Theta theta = load_theta(p.theta, n);
    Sums sums = {};
    for (int64_t item = split; item < p.tiling.count * p.groups; item += p.splits) {
      int h, w;
      if (pixel_of(p.tiling, item % p.tiling.count, h, w))
        add_pixel<T, Grad, kLanes>(p, theta, n, item / p.tiling.count * p.group, h, w, sums);
    }
    sums = block_reduce<kThreads>(sums, Add(), scratch);
    const int k = static_cast<int>(threadIdx.x);
    float mine = 0.0f;
#pragma unroll
    for (int i = 0; i < 6; ++i) mine = i == k ? sums.v[i] : mine;
    if (p.splits > 1) {
      if (k < 6) p.partial[block * 6 + k] = mine;
      if (!last_block_done(p.done + n, static_cast<unsigned>(p.splits), &flag)) continue;
    }
    if (k < 6) {
      float total = mine;
      if (p.splits > 1) {
        total = 0.0f;
        for (int i = 0; i < p.splits; ++i) total += __ldcg(p.partial + (n * p.splits + i) * 6 + k);
      }
      store_theta(p, n * 6 + k, total * (k < 3 ? p.geometry.x.scale : p.geometry.y.scale));
    }
  }
}

template <class T, class Grad>
const char* launch_theta(const AffineGridSampleBackward& call, Context* context) {
  const Tensor &input = call.input, &grad_out = call.grad_out;
  constexpr int kLanes = kVec<T>;
  const bool wide = wide_channels<T, kLanes>(input);
  Params p;
  p.geometry = make_geometry(input, grad_out, call.mode, call.padding_mode, call.align_corners);
  p.theta = thetas_of(call.theta);
  p.tiling = make_tiling(grad_out.size[3], grad_out.size[2]);
  p.input = view_of(input, true);
  p.grad_out = view_of(grad_out);
  p.grad_theta = call.grad_theta.data;
  p.n = grad_out.size[0];
  p.channels = grad_out.size[1];
  const Device& device = device_properties(context->device);
  p.group = channels_per_group(p.channels, p.n * p.tiling.count, wide ? 2 * kLanes : 4, device);
  p.groups = ceil_div(p.channels, p.group);

  const int64_t items = p.tiling.count * p.groups,
                wanted = ceil_div(int64_t{8} * device.multiprocessors, p.n);
  const int64_t splits = items <= 4 ? 1 : items < wanted ? items : wanted;  // four are not worth the meeting
  p.splits = static_cast<int>(splits);
  p.partial = nullptr, p.done = nullptr;
  cudaStream_t stream = stream_of(context);
  if (splits > 1) {
    p.partial = static_cast<float*>(context->allocate(context, p.n * splits * 24));
    p.done = static_cast<unsigned*>(context->allocate(context, p.n * 4));
    if (p.partial == nullptr || p.done == nullptr) return "affine_grid_sample: out of memory";
    FASTDL_CUDA(cudaMemsetAsync(p.done, 0, static_cast<size_t>(p.n) * 4, stream));
  }
  const auto kernel = wide ? theta_kernel<T, Grad, kLanes> : theta_kernel<T, Grad, 1>;
  return describe(launch(kernel, grid_of(p.n * splits), dim3(kThreads), 0, stream, p));
}

}  // namespace

const char* sum_grad_theta(const AffineGridSampleBackward& p, Context* context) {
  return dispatch_float(p.input.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return p.grad_out.dtype == p.input.dtype ? launch_theta<T, T>(p, context)
                                             : launch_theta<T, float>(p, context);
  });
}

}  // namespace fastdl::affine
