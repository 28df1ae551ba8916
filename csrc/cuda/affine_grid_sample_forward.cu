// affine_grid_sample, forward: a thread samples one pixel of a group of channels, which share offsets and
// weights.
#include "affine_grid_sample_map.cuh"

namespace fastdl::affine {
namespace {

struct Params {
  Geometry geometry;
  Thetas theta;
  Tiling tiling;
  const void* input;
  int64_t input_stride[4];  // that of the batch 0 where one image serves all samples
  void* out;                // [N, C, OH, OW] contiguous
  int64_t channels, group, groups, blocks;
};

// kLanes channels at a time, which must be neighbours in memory unless it is 1.
template <class T, class Out, int kLanes>
__global__ void __launch_bounds__(kThreads) sample_kernel(const Params p) {
  const Geometry& g = p.geometry;
  const int64_t plane = int64_t{p.tiling.width} * p.tiling.height;
  for (int64_t block = blockIdx.x; block < p.blocks; block += gridDim.x) {
    const int64_t tile = block % p.tiling.count, rest = block / p.tiling.count;
    const int64_t n = rest / p.groups, first = rest % p.groups * p.group;
    const int64_t end = first + p.group < p.channels ? first + p.group : p.channels;
    int h, w;
    if (!pixel_of(p.tiling, tile, h, w)) continue;
    const Theta theta = load_theta(p.theta, n);
    const Cell cell = locate(g, theta, centre(g.x, w, g.align), centre(g.y, h, g.align));
    const Taps taps = taps_of(cell, g, p.input_stride[2], p.input_stride[3]);
    const T* image = static_cast<const T*>(p.input) + n * p.input_stride[0] + first * p.input_stride[1];
    Out* out = static_cast<Out*>(p.out) + (n * p.channels + first) * plane + int64_t{h} * p.tiling.width + w;
    if (g.nearest) {
      for (int64_t c = first; c < end; c += kLanes, image += kLanes * p.input_stride[1]) {
        const Vec<float, kLanes> value = load_tap<kLanes>(image, taps, 0);
#pragma unroll
        for (int i = 0; i < kLanes; ++i, out += plane) *out = from_float<Out>(value[i]);
      }
      continue;
    }
    const float w00 = weight_of(cell, 0), w01 = weight_of(cell, 1), w10 = weight_of(cell, 2),
                w11 = weight_of(cell, 3);
#pragma unroll(kLanes == 1 ? 4 : 1)
    for (int64_t c = first; c < end; c += kLanes, image += kLanes * p.input_stride[1]) {
      const Vec<float, kLanes> v00 = load_tap<kLanes>(image, taps, 0), v01 = load_tap<kLanes>(image, taps, 1);
      const Vec<float, kLanes> v10 = load_tap<kLanes>(image, taps, 2), v11 = load_tap<kLanes>(image, taps, 3);
#pragma unroll
      for (int i = 0; i < kLanes; ++i, out += plane) {
        const float upper = __fmaf_rn(v01[i], w01, v00[i] * w00);
        *out = from_float<Out>(__fmaf_rn(v11[i], w11, __fmaf_rn(v10[i], w10, upper)));
      }
    }
  }
}

template <class T, class Out>
const char* launch_sample(const AffineGridSampleForward& call, Context* context) {
  const Tensor& input = call.input;
  constexpr int kLanes = kVec<T>;
  const bool wide = wide_channels<T, kLanes>(input);
  Params p;
  p.geometry = make_geometry(input, call.out, call.mode, call.padding_mode, call.align_corners);
  p.theta = thetas_of(call.theta);
  p.tiling = make_tiling(call.out.size[3], call.out.size[2]);
  p.input = input.data;
  for (int i = 0; i < 4; ++i) p.input_stride[i] = i == 0 && input.size[0] == 1 ? 0 : input.stride[i];
  p.out = call.out.data;
  p.channels = call.out.size[1];
  const int64_t n = call.out.size[0];
  p.group = channels_per_group(p.channels, n * p.tiling.count, wide ? 2 * kLanes : 4,
                               device_properties(context->device));
  p.groups = ceil_div(p.channels, p.group);
  p.blocks = n * p.groups * p.tiling.count;
  const auto kernel = wide ? sample_kernel<T, Out, kLanes> : sample_kernel<T, Out, 1>;
  const unsigned grid = static_cast<unsigned>(p.blocks < kMaxGridX ? p.blocks : kMaxGridX);
  return describe(launch(kernel, dim3(grid), dim3(kThreads), 0, stream_of(context), p));
}

}  // namespace

const char* sample(const AffineGridSampleForward& p, Context* context) {
  return dispatch_float(p.input.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return p.out.dtype == p.input.dtype ? launch_sample<T, T>(p, context)
                                        : launch_sample<T, float>(p, context);
  });
}

}  // namespace fastdl::affine
