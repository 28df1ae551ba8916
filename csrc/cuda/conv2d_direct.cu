// Convolution with few channels per group: forward. See conv2d_direct.cuh.
#include "conv2d_direct.cuh"

namespace fastdl {
namespace {

constexpr int kPixels = 4;

template <class T>
struct Forward {
  const T* x;
  const T* weight;
  const T* bias;  // or nullptr
  T* out;
  Strides4 out_at;
  int64_t out_h, out_w;
  Activation act;  // is_cheap
  float param;
  bool out_wide;  // 16 bytes of channels at once
};

// A thread has kPixels pixels, pixel_threads apart, and kChannels channels.
// Grid: (tiles_x, fastest, * tiles_y * channel blocks * groups * images).
template <class T, int kChannels>
__global__ void __launch_bounds__(kDirectThreads, 2)
    conv2d_direct_kernel(Forward<T> p, Direct d, DirectBlocks b) {
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
  int corner[kPixels];
#pragma unroll
  for (int j = 0; j < kPixels; ++j) {
    int y, x;
    d.by_tile_w.split(pixel + j * b.pixel_threads, y, x);
    corner[j] = y < d.tile_h ? y * static_cast<int>(d.stride_y) * d.pitch + x : 0;
  }
  make_offsets(offsets, d);
  stage_image(image, p.x + n * d.x_at.n + group * d.channels * d.x_at.c, d, tile_y * d.stride_y - d.pad_y,
              tile_x * d.stride_x - d.pad_x);

  const T* weight = p.weight + (group * b.out_channels + first_k) * b.weight_at.n;
  const int live = static_cast<int>(min(b.out_channels - first_k, int64_t(width)));
  float sum[kPixels][kChannels] = {};
  for (int first = 0; first < d.taps; first += b.chunk) {
    const int count = min(b.chunk, static_cast<int>(d.taps) - first);
    if (first > 0) __syncthreads();  // the weights are free
    stage_taps(weights, weight, d, b.weight_at, b.by_channels, first, count, live);
    __syncthreads();
    accumulate(sum, image, offsets + first, weights + across * kChannels, corner, count, width);
  }

  const int64_t in_group = first_k + across * kChannels, k0 = group * b.out_channels + in_group;
  const int mine = static_cast<int>(min(b.out_channels - in_group, int64_t(kChannels)));
  if (p.bias != nullptr) {
#pragma unroll
    for (int k = 0; k < kChannels; ++k) {
      const float shift = k < mine ? to_float(p.bias[k0 + k]) : 0.0f;
#pragma unroll
      for (int j = 0; j < kPixels; ++j) sum[j][k] += shift;
    }
  }
#pragma unroll
  for (int j = 0; j < kPixels; ++j) {
    int y, x;
    d.by_tile_w.split(pixel + j * b.pixel_threads, y, x);
    if (y >= d.tile_h || tile_y + y >= p.out_h || tile_x + x >= p.out_w) continue;
    T* out = p.out + n * p.out_at.n + k0 * p.out_at.c + (tile_y + y) * p.out_at.y + (tile_x + x) * p.out_at.x;
#pragma unroll
    for (int k = 0; k < kChannels; k += kVec<T>) {
      if (k >= mine) break;
      Vec<float, kVec<T>> value;
#pragma unroll
      for (int i = 0; i < kVec<T>; ++i) value[i] = activate_cheap(sum[j][k + i], p.act, p.param);
      if (p.out_wide) {
        store_float(out + k, value);
      } else {
#pragma unroll
        for (int i = 0; i < kVec<T>; ++i) {
          if (k + i < mine) out[(k + i) * p.out_at.c] = from_float<T>(value[i]);
        }
      }
    }
  }
}

bool has_mma(int device) { return device_properties(device).capability >= 80; }

// 16 channels per thread unless 8 waste fewer.
int channels_per_thread(int64_t out_channels) {
  return ceil_div(out_channels, int64_t(16)) * 16 > ceil_div(out_channels, int64_t(8)) * 8 ? 8 : 16;
}

bool plan(const Conv2dForward& p, Direct& d, DirectBlocks& b) {
  const Convolution& c = p.convolution;
  const int64_t out_channels = p.weight.size[0] / c.groups;
  const int per_thread = channels_per_thread(out_channels);
  d = direct_of(p.x, p.weight, c);
  const int64_t pixels = int64_t(direct_pixel_threads(direct_across(out_channels, per_thread))) * kPixels;
  return plan_tile(d, p.out.size[2], p.out.size[3], d.stride_y, d.stride_x, extent(d.R, d.dilation_y),
                   extent(d.S, d.dilation_x), pixels, kDirectImage) &&
         plan_blocks(b, d, p.weight, c.groups, per_thread, ceil_div(d.tile_h * d.tile_w, kPixels));
}

}  // namespace

// Up to 8 channels per group and 363 taps times channels (AlexNet's 3x11x11): libraries pad the channels of
// each tap to 8 or more. In float32 these kernels are near the limit of arithmetic without TF32. In half
// precision without tensor cores a library's padded product is the faster one beyond 32. Computed, not
// measured.
bool conv2d_direct_covers(const Conv2dForward& p) {
  Direct d;
  DirectBlocks b;
  const int64_t channels = p.weight.size[1], taps = channels * p.weight.size[2] * p.weight.size[3];
  if (channels > 8 || taps > 363 || !plan(p, d, b)) return false;
  if (p.x.dtype == DType::kFloat32 || taps <= 32) return true;
  int device = 0;
  return cudaGetDevice(&device) == cudaSuccess && has_mma(device) && conv2d_direct_mma_covers(p);
}

const char* conv2d_direct_forward(const Conv2dForward& p, Context* context) {
  if (has_mma(context->device) && conv2d_direct_mma_covers(p)) return conv2d_direct_mma(p, context);
  Direct d;
  DirectBlocks b;
  if (!plan(p, d, b)) return "no direct kernel for this shape";
  const Convolution& c = p.convolution;
  const int64_t blocks = d.tiles_x * d.tiles_y * b.channel_blocks * b.groups * p.x.size[0];
  FASTDL_TRY(check_grid(blocks));
  FASTDL_TRY(dispatch_float(p.x.dtype, [&](auto type) -> const char* {
    using T = typename decltype(type)::type;
    constexpr int kV = kVec<T>;
    Forward<T> q = {};
    q.x = static_cast<const T*>(p.x.data), q.weight = static_cast<const T*>(p.weight.data);
    q.bias = static_cast<const T*>(p.bias.data), q.out = static_cast<T*>(p.out.data);
    q.out_at = strides_of(p.out), q.out_h = p.out.size[2], q.out_w = p.out.size[3];
    q.act = is_cheap(c.activation) ? c.activation : Activation::kNone, q.param = c.activation_param;
    const Strides4& s = q.out_at;
    q.out_wide = s.c == 1 && b.out_channels % kV == 0 && s.n % kV == 0 && s.y % kV == 0 && s.x % kV == 0 &&
                 aligned<T, kV>(q.out);
    return dispatch_int<8, 16>(channels_per_thread(b.out_channels), [&](auto k) -> const char* {
      FASTDL_CUDA(launch(conv2d_direct_kernel<T, decltype(k)::value>, dim3(unsigned(blocks)),
                         dim3(unsigned(b.pixel_threads * b.across)), b.shared_bytes, stream_of(context), q, d,
                         b));
      return nullptr;
    });
  }));
  return finish_activation(p.out, c.activation, c.activation_param, context);
}

}  // namespace fastdl
