// tps_grid_sample, the gradient of theta:
//
//   grad_theta = sum over output pixels and channels of grad_out (d out / d (ix, iy)) slope scale (xn, yn, 1,
//   U)
//
// A block goes through tiles of one sample. First a thread has a pixel: it sums over the channels and leaves
// the result in shared memory. Then a thread has a control point and a slice of the tile's pixels, and
// multiplies by U. The last block of a sample to finish adds the blocks' sums in their order.
#include "sampling_channels.cuh"
#include "tps_grid_sample_spline.cuh"

namespace fastdl::tps {
namespace {

struct Params {
  Geometry geometry;
  Splines splines;
  Tiling tiling;
  View input, grad_out;
  float* grad_theta;  // [N, 2, 3 + K] contiguous
  float* partial;     // [N, splits, 2, 3 + K]
  unsigned* done;     // [N], zeros
  int64_t n, channels, group, groups;
  int splits;  // blocks of a sample
};

// An output pixel and the gradient of its coordinates.
struct alignas(16) Pixel {
  float xn, yn, gx, gy;
};

// Sums of gx and gy, each times one function of the pixel.
struct Pair {
  float x, y;
};

struct Add {
  template <class V>
  __device__ __forceinline__ V operator()(V a, const V& b) const {
    constexpr int kCount = static_cast<int>(sizeof(a.v) / sizeof(a.v[0]));
#pragma unroll
    for (int i = 0; i < kCount; ++i) a.v[i].x += b.v[i].x, a.v[i].y += b.v[i].y;
    return a;
  }
};

struct Affine {
  Pair v[3];  // times xn, yn and 1
};

__device__ __forceinline__ void add(float f, const Pixel& pixel, Pair& sum) {
  sum.x = __fmaf_rn(pixel.gx, f, sum.x);
  sum.y = __fmaf_rn(pixel.gy, f, sum.y);
}

template <class T, class Grad, int kLanes>
__global__ void __launch_bounds__(kThreads) theta_kernel(const Params p) {
  __shared__ Spline spline;
  __shared__ Pixel pixels[kThreads];
  __shared__ Pair slices[kThreads];
  __shared__ Affine scratch[kThreads / kWarp];
  __shared__ bool flag;
  const Geometry& g = p.geometry;
  const int thread = static_cast<int>(threadIdx.x), points = p.splines.count, width = 3 + points;
  const int slices_of_tile = kThreads / points, slice = thread / points;
  for (int64_t block = blockIdx.x; block < p.n * p.splits; block += gridDim.x) {
    const int64_t n = block / p.splits;
    const int split = static_cast<int>(block % p.splits);
    load_spline(p.splines, n, &spline);
    const Knot knot = spline.knots[thread % points];
    Affine affine = {};
    Pair sum = {};
    for (int64_t item = split; item < p.tiling.count * p.groups; item += p.splits) {
      const int64_t first = item / p.tiling.count * p.group;
      const int64_t end = first + p.group < p.channels ? first + p.group : p.channels;
      Pixel mine = {};
      int h, w;
      if (pixel_of(p.tiling, item % p.tiling.count, h, w)) {
        mine.xn = centre(g.x, w, g.align), mine.yn = centre(g.y, h, g.align);
        const Cell cell = locate(g, spline, points, mine.xn, mine.yn);
        const Taps taps = taps_of(cell, g, p.input.stride[2], p.input.stride[3]);
        const Slope s =
            slope_of_channels<kLanes>(cell, taps, element<T>(p.input, n, first), p.input.stride, end - first,
                                      element<Grad>(p.grad_out, n, first, h, w), p.grad_out.stride[1]);
        mine.gx = s.x, mine.gy = s.y;
      }
      add(mine.xn, mine, affine.v[0]);
      add(mine.yn, mine, affine.v[1]);
      add(1.0f, mine, affine.v[2]);
      pixels[thread] = mine;
      __syncthreads();
      if (slice < slices_of_tile) {
#pragma unroll 4
        for (int i = slice; i < kThreads; i += slices_of_tile) {
          const Pixel pixel = pixels[i];
          add(kernel_of(knot, pixel.xn, pixel.yn), pixel, sum);
        }
      }
      __syncthreads();
    }
    affine = block_reduce<kThreads>(affine, Add(), scratch);
    slices[thread] = sum;
    __syncthreads();
    // The block's sums go to grad_theta if it is the sample's only one.
    float* sums = p.splits > 1 ? p.partial + block * 2 * width : p.grad_theta + n * 2 * width;
    const float scale_x = p.splits > 1 ? 1.0f : g.x.scale, scale_y = p.splits > 1 ? 1.0f : g.y.scale;
    if (thread < points) {
      Compensated x = {0.0f, 0.0f}, y = {0.0f, 0.0f};
      for (int i = 0; i < slices_of_tile; ++i)
        x.add(slices[i * points + thread].x), y.add(slices[i * points + thread].y);
      sums[3 + thread] = x.total() * scale_x;
      sums[width + 3 + thread] = y.total() * scale_y;
    }
    if (thread == 0) {
#pragma unroll
      for (int i = 0; i < 3; ++i)
        sums[i] = affine.v[i].x * scale_x, sums[width + i] = affine.v[i].y * scale_y;
    }
    if (p.splits == 1 || !last_block_done(p.done + n, static_cast<unsigned>(p.splits), &flag)) continue;
    for (int i = thread; i < 2 * width; i += kThreads) {
      Compensated sum = {0.0f, 0.0f};
      for (int from = 0; from < p.splits; ++from)
        sum.add(__ldcg(p.partial + (n * p.splits + from) * 2 * width + i));
      p.grad_theta[n * 2 * width + i] = sum.total() * (i < width ? g.x.scale : g.y.scale);
    }
  }
}

template <class T, class Grad>
const char* launch_theta(const TPSGridSampleBackward& call, Context* context) {
  const Tensor &input = call.input, &grad_out = call.grad_out;
  constexpr int kLanes = kVec<T>;
  const bool wide = wide_channels<T, kLanes>(input);
  Params p;
  p.geometry = make_geometry(input, grad_out, call.mode, call.padding_mode, call.align_corners);
  p.splines = splines_of(call.theta, call.control_points);
  p.tiling = make_tiling(grad_out.size[3], grad_out.size[2]);
  p.input = view_of(input, true);
  p.grad_out = view_of(grad_out);
  p.grad_theta = static_cast<float*>(call.grad_theta.data);
  p.n = grad_out.size[0];
  p.channels = grad_out.size[1];
  const Device& device = device_properties(context->device);
  p.group = channels_per_group(p.channels, p.n * p.tiling.count, wide ? 2 * kLanes : 4, device);
  p.groups = ceil_div(p.channels, p.group);

  const int64_t items = p.tiling.count * p.groups,
                wanted = ceil_div(int64_t{8} * device.multiprocessors, p.n);
  p.splits = static_cast<int>(items < wanted ? items : wanted);
  p.partial = nullptr, p.done = nullptr;
  cudaStream_t stream = stream_of(context);
  if (p.splits > 1) {
    p.partial =
        static_cast<float*>(context->allocate(context, p.n * p.splits * 2 * (3 + p.splines.count) * 4));
    p.done = static_cast<unsigned*>(context->allocate(context, p.n * 4));
    if (p.partial == nullptr || p.done == nullptr) return "tps_grid_sample: out of memory";
    FASTDL_CUDA(cudaMemsetAsync(p.done, 0, static_cast<size_t>(p.n) * 4, stream));
  }
  const auto kernel = wide ? theta_kernel<T, Grad, kLanes> : theta_kernel<T, Grad, 1>;
  return describe(launch(kernel, grid_of(p.n * p.splits), dim3(kThreads), 0, stream, p));
}

}  // namespace

const char* sum_grad_theta(const TPSGridSampleBackward& p, Context* context) {
  return dispatch_float(p.input.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return p.grad_out.dtype == p.input.dtype ? launch_theta<T, T>(p, context)
                                             : launch_theta<T, float>(p, context);
  });
}

}  // namespace fastdl::tps
