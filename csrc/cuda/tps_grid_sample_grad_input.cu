// tps_grid_sample, the gradient of the input, gathered: each input pixel adds up the output pixels that
// sampled it.
//
// A spline has no inverse in closed form, so that a first launch finds the box of input pixels that each tile
// of output samples. In the second a block has a tile of the input and walks the boxes in order. Where one
// meets its tile, the threads become the output pixels: each computes its coordinates and leaves, with the
// input pixels that it samples, a bit. Then the threads are input pixels again and add up, in order, those
// whose bits they find. An input pixel of many bits (a fold, an edge that clamped coordinates fall on, a
// strong magnification) is summed by its whole warp. Where one image serves many samples these are summed in
// parts, and then the parts.
#include "sampling_gather.cuh"
#include "tps_grid_sample_spline.cuh"

namespace fastdl::tps {
namespace {

constexpr int kWords = kThreads / kWarp;  // of a bit for each output pixel of a tile
constexpr int kManyBits = 32;

struct Params {
  Geometry geometry;
  Splines splines;
  Tiling output, tiling;  // tiling: of the input
  Box* boxes;             // [N, output.count]
  View grad_out;
  void* sums;  // [images, parts, C, IH, IW]: grad_input, or partial sums of floats
  int64_t images, samples, parts, channels,
      groups;  // samples of an image, parts of these, groups of channels
};

struct Union {
  __device__ __forceinline__ Box operator()(const Box& a, const Box& b) const {
    return {min(a.left, b.left), min(a.top, b.top), max(a.right, b.right), max(a.bottom, b.bottom)};
  }
};

// The input pixels that a cell is about.
__device__ __forceinline__ Box box_of(const Cell& cell, const Geometry& g) {
  const int more = g.nearest ? 0 : 1;
  const Box box = {max(cell.x, 0), max(cell.y, 0), min(cell.x + more, g.x.in - 1),
                   min(cell.y + more, g.y.in - 1)};
  return box.left <= box.right && box.top <= box.bottom ? box : Box{g.x.in, g.y.in, -1, -1};
}

__global__ void __launch_bounds__(kThreads) box_kernel(const Params p, int64_t blocks) {
  __shared__ Spline spline;
  __shared__ Box scratch[kThreads / kWarp];
  const Geometry& g = p.geometry;
  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    load_spline(p.splines, block / p.output.count, &spline);
    Box box = {g.x.in, g.y.in, -1, -1};
    int h, w;
    if (pixel_of(p.output, block % p.output.count, h, w))
      box = box_of(locate(g, spline, p.splines.count, centre(g.x, w, g.align), centre(g.y, h, g.align)), g);
    box = block_reduce<kThreads>(box, Union(), scratch);
    if (threadIdx.x == 0) p.boxes[block] = box;
  }
}

// Where an output pixel of the tile samples, and where its gradient is.
struct alignas(8) Sampled {
  int64_t offset;
  int x, y;
  float fx, fy;
};

template <class Grad, int kChannels>
__device__ __forceinline__ void add_pixel(const Sampled& q, const Grad* grad, int64_t stride, int real,
                                          int py, int px, Total<kChannels>& total) {
  const float weight = (px == q.x ? 1.0f - q.fx : q.fx) * (py == q.y ? 1.0f - q.fy : q.fy);
  add_channels(grad + q.offset, stride, real, weight, total);
}

template <class Grad, class Out, int kChannels>
__global__ void __launch_bounds__(kThreads, kChannels > 4 ? 2 : 3) gather_kernel(const Params p) {
  __shared__ Spline spline;
  __shared__ Sampled sampled[kThreads];
  __shared__ unsigned bits[kWords][kThreads];  // of input pixel t: which output pixels sample it
  __shared__ unsigned meeting[kWords];         // of the boxes at hand
  const Geometry& g = p.geometry;
  const int thread = static_cast<int>(threadIdx.x), lane = lane_id(), warp = thread / kWarp;
  const int64_t plane = int64_t{p.tiling.width} * p.tiling.height, stride = p.grad_out.stride[1];
  const int64_t blocks = p.images * p.parts * p.groups * p.tiling.count;
  for (int i = 0; i < kWords; ++i) bits[i][thread] = 0;
  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    const int64_t tile = block % p.tiling.count, rest = block / p.tiling.count;
    const int64_t first = rest % p.groups * kChannels, part = rest / p.groups % p.parts,
                  image = rest / p.groups / p.parts;
    const int real = static_cast<int>(p.channels - first < kChannels ? p.channels - first : kChannels);
    const Box area = box_of(p.tiling, tile);
    int py, px;
    const bool inside = pixel_of(p.tiling, tile, py, px);

    Total<kChannels> total = {};
    const int64_t end = p.samples * (part + 1) / p.parts;
    for (int64_t sample = p.samples * part / p.parts; sample < end; ++sample) {
      const int64_t n = image * p.samples + sample;
      const Grad* grad = element<Grad>(p.grad_out, n, first);
      load_spline(p.splines, n, &spline);
      for (int64_t some = 0; some < p.output.count; some += kThreads) {
        const bool meets =
            some + thread < p.output.count && area.meets(p.boxes[n * p.output.count + some + thread]);
        const unsigned meet = __ballot_sync(kFullMask, meets);
        __syncthreads();
        if (lane == 0) meeting[warp] = meet;
        __syncthreads();
        for (int word = 0; word < kWords; ++word) {
          for (unsigned left = meeting[word]; left != 0; left &= left - 1) {
            const int64_t from = some + word * kWarp + __ffs(static_cast<int>(left)) - 1;
            int h, w;
            if (pixel_of(p.output, from, h, w)) {
              const Cell c =
                  locate(g, spline, p.splines.count, centre(g.x, w, g.align), centre(g.y, h, g.align));
              sampled[thread] = {h * p.grad_out.stride[2] + w * p.grad_out.stride[3], c.x, c.y,
                                 g.nearest ? 0.0f : c.fx, g.nearest ? 0.0f : c.fy};
              for (int tap = 0; tap < (g.nearest ? 1 : 4); ++tap) {
                const int to = thread_of(p.tiling, tile, area, c.y + tap / 2, c.x + tap % 2);
                if (to >= 0) atomicOr(&bits[warp][to], 1u << lane);
              }
            }
            __syncthreads();
            int count = 0;
            for (int i = 0; i < kWords; ++i) count += __popc(bits[i][thread]);
            if (count <= kManyBits) {
              for (int i = 0; i < kWords; ++i)
                for (unsigned mine = bits[i][thread]; mine != 0; mine &= mine - 1)
                  add_pixel(sampled[i * kWarp + __ffs(static_cast<int>(mine)) - 1], grad, stride, real, py,
                            px, total);
            }
            for (unsigned many = __ballot_sync(kFullMask, count > kManyBits); many != 0; many &= many - 1) {
              const int owner = __ffs(static_cast<int>(many)) - 1;
              const int y = __shfl_sync(kFullMask, py, owner), x = __shfl_sync(kFullMask, px, owner);
              Total<kChannels> mine = {};
              for (int i = 0; i < kWords; ++i)
                if (bits[i][warp * kWarp + owner] >> lane & 1u)
                  add_pixel(sampled[i * kWarp + lane], grad, stride, real, y, x, mine);
              mine = warp_reduce(mine, AddTotals());
              if (lane == owner) total = AddTotals()(total, mine);
            }
            __syncwarp();
            for (int i = 0; i < kWords; ++i) bits[i][thread] = 0;
            __syncthreads();
          }
        }
      }
    }
    if (!inside) continue;
    Out* out = static_cast<Out*>(p.sums) + ((image * p.parts + part) * p.channels + first) * plane +
               int64_t{py} * p.tiling.width + px;
    store_channels(out, plane, real, total);
  }
}

// A thread of more channels computes fewer coordinates, as long as there are blocks for the device.
int channels_of(int64_t channels, int64_t blocks, const Device& device) {
  if (channels == 1) return 1;
  return channels <= 4 || blocks * ceil_div(channels, 16) < int64_t{2} * device.multiprocessors ? 4 : 16;
}

template <class Grad, class Out>
const char* launch_gather(const Params& p, int lanes, cudaStream_t stream) {
  const auto kernel = lanes == 1   ? gather_kernel<Grad, Out, 1>
                      : lanes == 4 ? gather_kernel<Grad, Out, 4>
                                   : gather_kernel<Grad, Out, 16>;
  const dim3 grid = grid_of(p.images * p.parts * p.groups * p.tiling.count);
  return describe(launch(kernel, grid, dim3(kThreads), 0, stream, p));
}

template <class T, class Grad>
const char* run(const TPSGridSampleBackward& call, Context* context) {
  const Tensor &grad_input = call.grad_input, &grad_out = call.grad_out;
  const Device& device = device_properties(context->device);
  cudaStream_t stream = stream_of(context);
  Params p;
  p.geometry = make_geometry(grad_input, grad_out, call.mode, call.padding_mode, call.align_corners);
  p.splines = splines_of(call.theta, call.control_points);
  p.output = make_tiling(grad_out.size[3], grad_out.size[2]);
  p.tiling = make_tiling(grad_input.size[3], grad_input.size[2]);
  p.grad_out = view_of(grad_out);
  p.sums = grad_input.data;
  p.images = grad_input.size[0];
  p.samples = call.theta.size[0] / p.images;
  p.channels = grad_input.size[1];
  const int64_t boxes = call.theta.size[0] * p.output.count;
  p.boxes = static_cast<Box*>(context->allocate(context, boxes * static_cast<int64_t>(sizeof(Box))));
  if (p.boxes == nullptr) return "tps_grid_sample: out of memory";
  if (boxes) FASTDL_CUDA(launch(box_kernel, grid_of(boxes), dim3(kThreads), 0, stream, p, boxes));

  const int lanes = channels_of(p.channels, p.images * p.samples * p.tiling.count, device);
  p.groups = ceil_div(p.channels, lanes);
  p.parts = parts_of(p.samples, p.images * p.groups * p.tiling.count, device);
  if (p.parts == 1) return launch_gather<Grad, T>(p, lanes, stream);
  const int64_t count = grad_input.numel();  // more than one sample of an image: there is one image
  float* partial = static_cast<float*>(context->allocate(context, p.parts * count * 4));
  if (partial == nullptr) return "tps_grid_sample: out of memory";
  p.sums = partial;
  if (const char* error = launch_gather<Grad, float>(p, lanes, stream)) return error;
  return sum_parts(partial, static_cast<T*>(grad_input.data), p.parts, count, stream);
}

}  // namespace

const char* gather_grad_input(const TPSGridSampleBackward& p, Context* context) {
  return dispatch_float(p.grad_input.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return p.grad_out.dtype == p.grad_input.dtype ? run<T, T>(p, context) : run<T, float>(p, context);
  });
}

}  // namespace fastdl::tps
