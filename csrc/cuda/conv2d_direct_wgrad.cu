// Convolution with few channels per group: gradient of the weight,
//
//     grad_weight[k, tap] = sum over pixels of grad[pixel, k] * x[pixel, tap]
//
// A block walks over the tiles of its split; image (conv2d_direct.cuh) and gradients of a tile lie in shared
// memory. A thread has kOut output channels times kTaps taps in registers, and every `lines`-th pixel of a
// tile. Each line of each split leaves its own partial sums (conv2d_partials.cu).
#include "conv2d_direct.cuh"

namespace fastdl {
namespace {

constexpr int kOut = 8, kTaps = 8;
constexpr int64_t kImage = 22 << 10, kTilePixels = 128;

template <class T>
struct Wgrad {
  const T* grad;
  const T* x;
  float* partial;  // [splits * lines][K][taps]
  Strides4 grad_at;
  int64_t out_h, out_w, out_channels, groups, images;  // out_channels: per group
  int64_t tiles, per_split;                            // tiles of all images
  int64_t channel_blocks, tap_blocks;                  // channel_blocks: per group
  int outs, tap_threads, lines,
      pitch;  // threads: (tap_threads, outs, lines); floats from pixel to pixel of the gradients
  Divisor by_outs, by_pixels;  // by outs * kOut, by pixels of a tile
  bool channels_first;         // how grad is read: along its pixels, or along its channels
};

// Grid: (tap blocks, fastest, * channel blocks * groups, splits).
template <class T>
__global__ void __launch_bounds__(kDirectThreads, 1) conv2d_direct_wgrad_kernel(Wgrad<T> p, Direct d) {
  FASTDL_DYNAMIC_SHARED(float, image);
  const int pixels = d.tile_h * d.tile_w, out_block = p.outs * kOut;
  int* const offsets = reinterpret_cast<int*>(image + (d.plane * static_cast<int>(d.channels) + 3) / 4 * 4);
  int* const corners = offsets + (static_cast<int>(d.taps) + 3) / 4 * 4;
  float* const gradients = reinterpret_cast<float*>(corners + (pixels + 3) / 4 * 4);  // [pixels][pitch]

  int64_t block = blockIdx.x;
  const int first_tap = static_cast<int>(block % p.tap_blocks) * p.tap_threads * kTaps;
  block /= p.tap_blocks;
  const int64_t first_k = block % p.channel_blocks * out_block, group = block / p.channel_blocks;
  const int tap_thread = threadIdx.x % p.tap_threads, rest = threadIdx.x / p.tap_threads;
  const int out = rest % p.outs * kOut, line = rest / p.outs;
  const int tap0 = first_tap + tap_thread * kTaps;

  make_offsets(offsets, d);
  for (int i = threadIdx.x; i < pixels; i += blockDim.x) {
    int y, x;
    d.by_tile_w.split(i, y, x);
    corners[i] = y * static_cast<int>(d.stride_y) * d.pitch + x;
  }
  __syncthreads();
  int offset[kTaps];
#pragma unroll
  for (int j = 0; j < kTaps; ++j) offset[j] = tap0 + j < d.taps ? offsets[tap0 + j] : 0;

  float sum[kOut][kTaps] = {};
  const int64_t begin = int64_t(blockIdx.y) * p.per_split, end = min(begin + p.per_split, p.tiles);
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t tile_x = tile % d.tiles_x * d.tile_w, above = tile / d.tiles_x;
    const int64_t tile_y = above % d.tiles_y * d.tile_h, n = above / d.tiles_y;
    __syncthreads();  // image and gradients are free
    stage_image(image, p.x + n * d.x_at.n + group * d.channels * d.x_at.c, d, tile_y * d.stride_y - d.pad_y,
                tile_x * d.stride_x - d.pad_x);
    const T* grad = p.grad + n * p.grad_at.n + (group * p.out_channels + first_k) * p.grad_at.c;
    for (int i = threadIdx.x; i < pixels * out_block; i += blockDim.x) {
      int pixel, k, y, x;
      if (p.channels_first) {
        p.by_pixels.split(i, k, pixel);
      } else {
        p.by_outs.split(i, pixel, k);
      }
      d.by_tile_w.split(pixel, y, x);
      float value = 0.0f;
      if (first_k + k < p.out_channels && tile_y + y < p.out_h && tile_x + x < p.out_w) {
        value = to_float(grad[k * p.grad_at.c + (tile_y + y) * p.grad_at.y + (tile_x + x) * p.grad_at.x]);
      }
      gradients[pixel * p.pitch + k] = value;
    }
    __syncthreads();
    for (int pixel = line; pixel < pixels; pixel += p.lines) {
      const float* const at = image + corners[pixel];
      const float* const from = gradients + pixel * p.pitch + out;
      const Vec<float, 4> g[2] = {load<4>(from), load<4>(from + 4)};
      float value[kTaps];
#pragma unroll
      for (int j = 0; j < kTaps; ++j) value[j] = at[offset[j]];
#pragma unroll
      for (int k = 0; k < kOut; ++k) {
#pragma unroll
        for (int j = 0; j < kTaps; ++j) sum[k][j] = fmaf(g[k / 4][k % 4], value[j], sum[k][j]);
      }
    }
  }

  const int64_t part = int64_t(blockIdx.y) * p.lines + line, all = p.out_channels * p.groups;
#pragma unroll
  for (int k = 0; k < kOut; ++k) {
    if (first_k + out + k >= p.out_channels) break;
    float* into = p.partial + (part * all + group * p.out_channels + first_k + out + k) * d.taps;
#pragma unroll
    for (int j = 0; j < kTaps; ++j) {
      if (tap0 + j < d.taps) into[tap0 + j] = sum[k][j];
    }
  }
}

bool plan(const Conv2dBackward& p, Direct& d) {
  d = direct_of(p.x, p.weight, p.convolution);
  d.taps_last = !is_contiguous(p.grad_weight);
  return plan_tile(d, p.grad_out.size[2], p.grad_out.size[3], d.stride_y, d.stride_x,
                   extent(d.R, d.dilation_y), extent(d.S, d.dilation_x), kTilePixels, kImage);
}

}  // namespace

// As conv2d_direct_covers, but that libraries are weaker here (few results, long sums): in half precision up
// to 80 taps.
bool conv2d_direct_grad_weight_covers(const Conv2dBackward& p) {
  Direct d;
  const int64_t channels = p.weight.size[1], taps = channels * p.weight.size[2] * p.weight.size[3];
  return channels <= 8 && taps <= (p.x.dtype == DType::kFloat32 ? 363 : 80) && plan(p, d);
}

const char* conv2d_direct_grad_weight(const Conv2dBackward& p, Context* context) {
  Direct d;
  if (!plan(p, d)) return "no direct kernel for this shape";
  return dispatch_float(p.x.dtype, [&](auto type) -> const char* {
    using T = typename decltype(type)::type;
    Wgrad<T> q = {};
    q.grad = static_cast<const T*>(p.grad_out.data), q.x = static_cast<const T*>(p.x.data);
    q.grad_at = strides_of(p.grad_out);
    q.out_h = p.grad_out.size[2], q.out_w = p.grad_out.size[3], q.images = p.x.size[0];
    q.groups = p.convolution.groups, q.out_channels = p.weight.size[0] / q.groups;
    q.tiles = q.images * d.tiles_y * d.tiles_x;
    q.outs = static_cast<int>(min(int64_t(4), ceil_div(q.out_channels, int64_t(kOut))));
    const int64_t tap_groups = ceil_div(d.taps, int64_t(kTaps));
    q.tap_blocks = ceil_div(tap_groups, int64_t(kDirectThreads / q.outs));
    q.tap_threads = static_cast<int>(ceil_div(tap_groups, q.tap_blocks));
    q.lines = kDirectThreads / (q.outs * q.tap_threads);
    q.pitch = q.outs * kOut + 4;
    q.channel_blocks = ceil_div(q.out_channels, int64_t(q.outs * kOut));
    q.by_outs = Divisor(q.outs * kOut), q.by_pixels = Divisor(d.tile_h * d.tile_w);
    q.channels_first = q.grad_at.c != 1;
    const int64_t blocks = q.tap_blocks * q.channel_blocks * q.groups;
    const int64_t wanted =
        at_least_1(int64_t(2) * device_properties(context->device).multiprocessors / blocks);
    q.per_split = ceil_div(q.tiles, min(min(wanted, q.tiles), kMaxGridYZ));
    const int64_t splits = ceil_div(q.tiles, q.per_split);
    FASTDL_TRY(check_grid(blocks));
    q.partial = static_cast<float*>(
        context->allocate(context, splits * q.lines * p.grad_weight.numel() * int64_t(sizeof(float))));
    if (q.partial == nullptr) return "no memory for partial sums";
    const int64_t pixels = d.tile_h * d.tile_w;
    const int64_t shared = d.image_bytes() + d.offset_bytes() +
                           ceil_div(pixels, int64_t(4)) * 4 * int64_t(sizeof(int)) +
                           pixels * q.pitch * int64_t(sizeof(float));
    FASTDL_CUDA(launch(conv2d_direct_wgrad_kernel<T>, dim3(unsigned(blocks), unsigned(splits)),
                       dim3(unsigned(q.tap_threads * q.outs * q.lines)), shared, stream_of(context), q, d));
    return conv2d_add_partials(q.partial, splits * q.lines, p.grad_weight, context);
  });
}

}  // namespace fastdl
