// tps_grid_sample, forward: a thread samples one pixel of a group of channels, which share offsets and
// weights.
#include "sampling_channels.cuh"
#include "tps_grid_sample_spline.cuh"

namespace fastdl::tps {
namespace {

struct Params {
  Geometry geometry;
  Splines splines;
  Tiling tiling;
  View input;
  void* out;  // [N, C, OH, OW] contiguous
  int64_t channels, group, groups, blocks;
};

// kLanes channels at a time, which must be neighbours in memory unless it is 1.
template <class T, class Out, int kLanes>
__global__ void __launch_bounds__(kThreads, kLanes == 8 ? 3 : kManyBlocks) sample_kernel(const Params p) {
  __shared__ Spline spline;
  const Geometry& g = p.geometry;
  const int64_t plane = int64_t{p.tiling.width} * p.tiling.height;
  for (int64_t block = blockIdx.x; block < p.blocks; block += gridDim.x) {
    const int64_t tile = block % p.tiling.count, rest = block / p.tiling.count;
    const int64_t n = rest / p.groups, first = rest % p.groups * p.group;
    const int64_t end = first + p.group < p.channels ? first + p.group : p.channels;
    load_spline(p.splines, n, &spline);
    int h, w;
    if (!pixel_of(p.tiling, tile, h, w)) continue;
    const Cell cell = locate(g, spline, p.splines.count, centre(g.x, w, g.align), centre(g.y, h, g.align));
    const Taps taps = taps_of(cell, g, p.input.stride[2], p.input.stride[3]);
    const T* image = element<T>(p.input, n, first);
    Out* out = static_cast<Out*>(p.out) + (n * p.channels + first) * plane + int64_t{h} * p.tiling.width + w;
    sample_channels<kLanes>(g.nearest, cell, taps, image, p.input.stride, end - first, out, plane);
  }
}

template <class T, class Out>
const char* launch_sample(const TPSGridSampleForward& call, Context* context) {
  constexpr int kLanes = kVec<T>;
  const bool wide = wide_channels<T, kLanes>(call.input);
  Params p;
  p.geometry = make_geometry(call.input, call.out, call.mode, call.padding_mode, call.align_corners);
  p.splines = splines_of(call.theta, call.control_points);
  p.tiling = make_tiling(call.out.size[3], call.out.size[2]);
  p.input = view_of(call.input, true);
  p.out = call.out.data;
  p.channels = call.out.size[1];
  const int64_t n = call.out.size[0];
  p.group = channels_per_group(p.channels, n * p.tiling.count, wide ? 2 * kLanes : 4,
                               device_properties(context->device));
  p.groups = ceil_div(p.channels, p.group);
  p.blocks = n * p.groups * p.tiling.count;
  const auto kernel = wide ? sample_kernel<T, Out, kLanes> : sample_kernel<T, Out, 1>;
  return describe(launch(kernel, grid_of(p.blocks), dim3(kThreads), 0, stream_of(context), p));
}

}  // namespace

const char* sample(const TPSGridSampleForward& p, Context* context) {
  return dispatch_float(p.input.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return p.out.dtype == p.input.dtype ? launch_sample<T, T>(p, context)
                                        : launch_sample<T, float>(p, context);
  });
}

}  // namespace fastdl::tps
