// max_pool2d(act(conv(x, weight) + bias)) for few channels and small images: the pixels of a window are
// summed by one thread and pooled in its registers. The activation comes after the maximum, which it does not
// change.
#include "conv2d_direct.cuh"

namespace fastdl {
namespace {

template <class T>
struct Pool {
  const T* x;
  const T* weight;
  const T* bias;  // or nullptr
  T* out;
  uint8_t* winners;  // or nullptr
  Strides4 out_at, winners_at;
  int64_t out_h, out_w, step_y, step_x;  // pooled size; pool stride in pixels of the convolution
  Activation act;                        // is_cheap
  float param;
};

// A thread has one window of kSide x kSide pixels and kChannels channels.
// Grid: (tiles_x, fastest, * tiles_y * channel blocks * groups * images).
template <class T, int kSide, int kChannels>
__global__ void __launch_bounds__(kDirectThreads, 2)
    conv2d_direct_pool_kernel(Pool<T> p, Direct d, DirectBlocks b) {
  constexpr int kWindow = kSide * kSide;
  FASTDL_DYNAMIC_SHARED(float, image);
  int* const offsets = reinterpret_cast<int*>(image + (d.plane * static_cast<int>(d.channels) + 3) / 4 * 4);
  float* const weights = reinterpret_cast<float*>(offsets + (static_cast<int>(d.taps) + 3) / 4 * 4);

  int64_t block = blockIdx.x;
  const int64_t tile_x = block % d.tiles_x * d.tile_w;
  block /= d.tiles_x;
  const int64_t tile_y = block % d.tiles_y * d.tile_h;
  block /= d.tiles_y;
  const int width = kChannels * b.across;
  const int64_t first_k = block % b.channel_blocks * width;
  block /= b.channel_blocks;
  const int64_t group = block % b.groups, n = block / b.groups;

  const int pixel = threadIdx.x % b.pixel_threads, across = threadIdx.x / b.pixel_threads;
  int y, x;
  d.by_tile_w.split(pixel, y, x);
  const bool inside = y < d.tile_h && tile_y + y < p.out_h && tile_x + x < p.out_w;
  int corner[kWindow];
#pragma unroll
  for (int j = 0; j < kWindow; ++j) {
    const int row = (y * static_cast<int>(p.step_y) + j / kSide) * static_cast<int>(d.stride_y);
    corner[j] = inside ? row * d.pitch + x * static_cast<int>(p.step_x) + j % kSide : 0;
  }
  make_offsets(offsets, d);
  stage_image(image, p.x + n * d.x_at.n + group * d.channels * d.x_at.c, d,
              tile_y * p.step_y * d.stride_y - d.pad_y, tile_x * p.step_x * d.stride_x - d.pad_x);

  const T* weight = p.weight + (group * b.out_channels + first_k) * b.weight_at.n;
  const int live = static_cast<int>(min(b.out_channels - first_k, int64_t(width)));
  float sum[kWindow][kChannels] = {};
  for (int first = 0; first < d.taps; first += b.chunk) {
    const int count = min(b.chunk, static_cast<int>(d.taps) - first);
    if (first > 0) __syncthreads();  // the weights are free
    stage_taps(weights, weight, d, b.weight_at, b.by_channels, first, count, live);
    __syncthreads();
    accumulate(sum, image, offsets + first, weights + across * kChannels, corner, count, width);
  }
  if (!inside) return;

  const int64_t in_group = first_k + across * kChannels, k0 = group * b.out_channels + in_group;
  const int mine = static_cast<int>(min(b.out_channels - in_group, int64_t(kChannels)));
  T* out = p.out + n * p.out_at.n + k0 * p.out_at.c + (tile_y + y) * p.out_at.y + (tile_x + x) * p.out_at.x;
  uint8_t* winners = p.winners + n * p.winners_at.n + k0 * p.winners_at.c + (tile_y + y) * p.winners_at.y +
                     (tile_x + x) * p.winners_at.x;
#pragma unroll
  for (int k = 0; k < kChannels; ++k) {
    if (k >= mine) break;
    const float shift = p.bias == nullptr ? 0.0f : to_float(p.bias[k0 + k]);
    float best = sum[0][k] + shift;
    int winner = 0;
#pragma unroll
    for (int j = 1; j < kWindow; ++j) {
      const float value = sum[j][k] + shift;
      if (value > best || value != value)
        best = value, winner = j;  // as torch: the first of equals, the last NaN
    }
    out[k * p.out_at.c] = from_float<T>(activate_cheap(best, p.act, p.param));
    if (p.winners != nullptr) winners[k * p.winners_at.c] = static_cast<uint8_t>(winner);
  }
}

bool plan(const Conv2dMaxPool2d& p, Direct& d, DirectBlocks& b, int& per_thread) {
  const Convolution& c = p.convolution;
  const int64_t out_channels = p.weight.size[0] / c.groups, side = p.pool_kernel_size[0];
  per_thread =
      side == 3 || ceil_div(out_channels, int64_t(16)) * 16 > ceil_div(out_channels, int64_t(8)) * 8 ? 8 : 16;
  d = direct_of(p.x, p.weight, c);
  return plan_tile(d, p.out.size[2], p.out.size[3], p.pool_stride[0] * d.stride_y,
                   p.pool_stride[1] * d.stride_x, (side - 1) * d.stride_y + extent(d.R, d.dilation_y),
                   (side - 1) * d.stride_x + extent(d.S, d.dilation_x),
                   direct_pixel_threads(direct_across(out_channels, per_thread)), kDirectImage) &&
         plan_blocks(b, d, p.weight, c.groups, per_thread, d.tile_h * d.tile_w);
}

}  // namespace

// Windows of 2x2 and 3x3; up to 32 channels per group, if the image under a tile fits: LeNet, STN, CIFAR
// networks, whose layers take less time than the launches of three kernels. Windows that overlap are computed
// again, so larger work (2^34 products, about a millisecond in float32 on a large GPU) is left to a library.
// Computed, not measured.
bool conv2d_direct_pool_covers(const Conv2dMaxPool2d& p) {
  Direct d;
  DirectBlocks b;
  int per_thread;
  const int64_t side = p.pool_kernel_size[0], taps = p.weight.size[1] * p.weight.size[2] * p.weight.size[3];
  const double products = double(p.out.numel()) * double(side * side) * double(taps);
  return (side == 2 || side == 3) && p.pool_kernel_size[1] == side && p.weight.size[1] <= 32 &&
         taps <= 1024 && products < double(int64_t(1) << 34) && plan(p, d, b, per_thread);
}

const char* conv2d_direct_pool(const Conv2dMaxPool2d& p, Context* context) {
  Direct d;
  DirectBlocks b;
  int per_thread = 8;
  const int64_t side = p.pool_kernel_size[0];
  if ((side != 2 && side != 3) || p.pool_kernel_size[1] != side || !plan(p, d, b, per_thread)) {
    return "no direct kernel for this shape";
  }
  const Convolution& c = p.convolution;
  const int64_t blocks = d.tiles_x * d.tiles_y * b.channel_blocks * b.groups * p.x.size[0];
  FASTDL_TRY(check_grid(blocks));
  FASTDL_TRY(dispatch_float(p.x.dtype, [&](auto type) -> const char* {
    using T = typename decltype(type)::type;
    Pool<T> q = {};
    q.x = static_cast<const T*>(p.x.data), q.weight = static_cast<const T*>(p.weight.data);
    q.bias = static_cast<const T*>(p.bias.data), q.out = static_cast<T*>(p.out.data);
    q.winners = static_cast<uint8_t*>(p.offsets.data);
    q.out_at = strides_of(p.out), q.winners_at = strides_of(p.offsets);
    q.out_h = p.out.size[2], q.out_w = p.out.size[3];
    q.step_y = p.pool_stride[0], q.step_x = p.pool_stride[1];
    q.act = is_cheap(c.activation) ? c.activation : Activation::kNone, q.param = c.activation_param;
    const auto run = [&](auto kernel) -> const char* {
      FASTDL_CUDA(launch(kernel, dim3(unsigned(blocks)), dim3(unsigned(b.pixel_threads * b.across)),
                         b.shared_bytes, stream_of(context), q, d, b));
      return nullptr;
    };
    if (side == 3) return run(conv2d_direct_pool_kernel<T, 3, 8>);
    return per_thread == 8 ? run(conv2d_direct_pool_kernel<T, 2, 8>)
                           : run(conv2d_direct_pool_kernel<T, 2, 16>);
  }));
  return finish_activation(p.out, c.activation, c.activation_param, context);
}

}  // namespace fastdl
