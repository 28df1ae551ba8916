// affine_grid_sample, the gradient of the input, gathered: each input pixel adds up the output pixels that
// sampled it.
//
// A thread sums kChannels channels of a pixel, in a fixed order, and writes them once. Where many rows of
// output are to be visited (a singular map, an edge that clamped coordinates fall on, a strong magnification)
// the lanes of its warp share them. Where one image serves many samples these are summed in groups, and then
// the groups.
#include "affine_grid_sample_search.cuh"
#include "sampling_gather.cuh"

namespace fastdl::affine {
namespace {

constexpr int kManyRows = 32;

struct Params {
  Geometry geometry;
  Thetas theta;
  Tiling tiling;  // of the input
  View grad_out;
  void* sums;  // [images, parts, C, IH, IW]: grad_input, or partial sums of floats
  int64_t images, samples, parts, channels,
      groups;  // samples of an image, parts of these, groups of channels
};

template <class Grad, int kChannels>
__device__ __forceinline__ void add_row(const Params& p, const Search& s, const Grad* grad, int real, int py,
                                        int px, const Interval& x, const Interval& y, int h,
                                        Total<kChannels>& total) {
  search_row(s, p.geometry, py, px, x, y, h, [&](int row, int w, float weight) {
    add_channels(grad + row * p.grad_out.stride[2] + w * p.grad_out.stride[3], p.grad_out.stride[1], real,
                 weight, total);
  });
}

template <class Grad, class Out, int kChannels>
__global__ void __launch_bounds__(kThreads, 2) gather_kernel(const Params p) {
  const Geometry& g = p.geometry;
  const int64_t plane = int64_t{p.tiling.width} * p.tiling.height;
  const int64_t blocks = p.images * p.parts * p.groups * p.tiling.count;
  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    const int64_t tile = block % p.tiling.count, rest = block / p.tiling.count;
    const int64_t first = rest % p.groups * kChannels, part = rest / p.groups % p.parts,
                  image = rest / p.groups / p.parts;
    const int real = static_cast<int>(p.channels - first < kChannels ? p.channels - first : kChannels);
    int py, px;
    const bool inside = pixel_of(p.tiling, tile, py, px);

    Total<kChannels> total = {};
    const int64_t end = p.samples * (part + 1) / p.parts;
    for (int64_t sample = p.samples * part / p.parts; sample < end; ++sample) {
      const int64_t n = image * p.samples + sample;
      const Search s = search_of(load_theta(p.theta, n), g);
      const Grad* grad = element<Grad>(p.grad_out, n, first);
      int rows = 0;
      if (inside)
        for_each_image(s, g, py, px, [&](const Interval&, const Interval&, Rows r) { rows += r.count(); });
      // first each lane its own pixel, then all lanes together those of many rows
      Total<kChannels> sum = {};
      unsigned many = __ballot_sync(kFullMask, rows > kManyRows);
      bool search = inside && rows <= kManyRows;
      int owner = -1, y = py, x = px;
      for (;;) {
        Total<kChannels> mine = {};
        if (search) {
          for_each_image(s, g, y, x, [&](const Interval& near_x, const Interval& near_y, Rows r) {
            for (int h = r.first + (owner < 0 ? 0 : lane_id()); h <= r.last; h += owner < 0 ? 1 : kWarp)
              add_row<Grad, kChannels>(p, s, grad, real, y, x, near_x, near_y, h, mine);
          });
        }
        if (owner >= 0) mine = warp_reduce(mine, AddTotals());
        if (owner < 0 || lane_id() == owner) sum = AddTotals()(sum, mine);
        if (many == 0) break;
        owner = __ffs(static_cast<int>(many)) - 1;
        many &= many - 1;
        y = __shfl_sync(kFullMask, py, owner);
        x = __shfl_sync(kFullMask, px, owner);
        search = true;
      }
      total = AddTotals()(total, sum);
    }
    if (!inside) continue;
    Out* out = static_cast<Out*>(p.sums) + ((image * p.parts + part) * p.channels + first) * plane +
               int64_t{py} * p.tiling.width + px;
    store_channels(out, plane, real, total);
  }
}

template <class Grad, class Out>
const char* launch_gather(Params& p, int64_t channels, cudaStream_t stream) {
  const int lanes = channels == 1 ? 1 : channels <= 4 ? 4 : 8;
  p.groups = ceil_div(channels, lanes);
  const auto kernel = lanes == 1   ? gather_kernel<Grad, Out, 1>
                      : lanes == 4 ? gather_kernel<Grad, Out, 4>
                                   : gather_kernel<Grad, Out, 8>;
  const dim3 grid = grid_of(p.images * p.parts * p.groups * p.tiling.count);
  return describe(launch(kernel, grid, dim3(kThreads), 0, stream, p));
}

template <class T, class Grad>
const char* run(const AffineGridSampleBackward& call, Context* context) {
  const Tensor &grad_input = call.grad_input, &grad_out = call.grad_out;
  cudaStream_t stream = stream_of(context);
  Params p;
  p.geometry = make_geometry(grad_input, grad_out, call.mode, call.padding_mode, call.align_corners);
  p.theta = thetas_of(call.theta);
  p.tiling = make_tiling(grad_input.size[3], grad_input.size[2]);
  p.grad_out = view_of(grad_out);
  p.sums = grad_input.data;
  p.images = grad_input.size[0];
  p.samples = call.theta.size[0] / p.images;
  p.channels = grad_input.size[1];
  p.parts = parts_of(p.samples, p.images * ceil_div(p.channels, 8) * p.tiling.count,
                     device_properties(context->device));
  if (p.parts == 1) return launch_gather<Grad, T>(p, p.channels, stream);
  const int64_t count = grad_input.numel();  // more than one sample of an image: there is one image
  float* partial = static_cast<float*>(context->allocate(context, p.parts * count * 4));
  if (partial == nullptr) return "affine_grid_sample: out of memory";
  p.sums = partial;
  if (const char* error = launch_gather<Grad, float>(p, p.channels, stream)) return error;
  return sum_parts(partial, static_cast<T*>(grad_input.data), p.parts, count, stream);
}

}  // namespace

const char* gather_grad_input(const AffineGridSampleBackward& p, Context* context) {
  return dispatch_float(p.grad_input.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return p.grad_out.dtype == p.grad_input.dtype ? run<T, T>(p, context) : run<T, float>(p, context);
  });
}

}  // namespace fastdl::affine
