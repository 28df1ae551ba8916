// Convolution with few channels per group, half precision: the forward of conv2d_direct.cu on tensor cores.
//
// The summed axis is taps times channels, padded once to a multiple of 16. The image under a tile lies in
// shared memory as it is; lanes gather the rows of their fragments from it, tap by tap.
#include "conv2d_direct.cuh"
#include "mma.cuh"

namespace fastdl {
namespace {

constexpr int kRows = 2;            // fragments of 16 pixels per warp
constexpr int kColumns = 8;         // fragments of 8 channels per warp
constexpr int kOut = 8 * kColumns;  // channels of a block
constexpr int kTilePixels = kDirectThreads / kWarp * 16 * kRows;
constexpr int kOutPitch =
    kOut + 8;                // elements from pixel to pixel of the staged output: rows stay 16-byte aligned
constexpr int kChunk = 160;  // taps whose weights are in shared memory at once
constexpr int64_t kImageBytes = 18 << 10;

template <class T>
struct MmaForward {
  const T* x;
  const T* weight;
  const T* bias;  // or nullptr
  T* out;
  Strides4 out_at, weight_at;
  int64_t out_h, out_w, out_channels, channel_blocks, groups;  // out_channels, channel_blocks: per group
  int chunk, chunk_pitch;  // taps, a multiple of 16; elements from channel to channel of the weights
  Activation act;          // is_cheap
  float param;
  bool out_wide;  // 16 bytes of channels at once
};

__device__ __forceinline__ uint32_t pair(uint16_t low, uint16_t high) { return low | uint32_t(high) << 16; }

// Every warp has 16 * kRows pixels and all kOut channels.
// Grid: (tiles_x, fastest, * tiles_y * channel blocks * groups * images).
template <class T>
__global__ void __launch_bounds__(kDirectThreads, 2) conv2d_direct_mma_kernel(MmaForward<T> p, Direct d) {
  FASTDL_DYNAMIC_SHARED(unsigned char, shared);
  const int taps = static_cast<int>(d.taps), padded = (taps + 15) / 16 * 16;
  int* const offsets = reinterpret_cast<int*>(shared);        // [padded]
  T* const weights = reinterpret_cast<T*>(offsets + padded);  // [kOut][chunk_pitch]
  T* const image = weights + kOut * p.chunk_pitch;
  T* const staged = reinterpret_cast<T*>(shared);  // [kTilePixels][kOutPitch], afterwards

  int64_t block = blockIdx.x;
  const int64_t tile_x = block % d.tiles_x * d.tile_w;
  block /= d.tiles_x;
  const int64_t tile_y = block % d.tiles_y * d.tile_h;
  block /= d.tiles_y;
  const int64_t first_k = block % p.channel_blocks * kOut;
  block /= p.channel_blocks;
  const int64_t group = block % p.groups, n = block / p.groups;
  const int live = static_cast<int>(min(p.out_channels - first_k, int64_t(kOut)));
  const int64_t k0 = group * p.out_channels + first_k;

  const int warp = threadIdx.x / kWarp, g = lane_id() / 4, t = lane_id() % 4;
  const int pixels = d.tile_h * d.tile_w, first_pixel = warp * 16 * kRows;
  int corner[2 * kRows];
#pragma unroll
  for (int j = 0; j < 2 * kRows; ++j) {
    int y, x;
    d.by_tile_w.split(first_pixel + 8 * j + g, y, x);
    corner[j] = y < d.tile_h ? y * static_cast<int>(d.stride_y) * d.pitch + x : 0;
  }
  make_offsets(offsets, d);
  for (int i = taps + threadIdx.x; i < padded; i += kDirectThreads) offsets[i] = -1;
  stage_image(image, p.x + n * d.x_at.n + group * d.channels * d.x_at.c, d, tile_y * d.stride_y - d.pad_y,
              tile_x * d.stride_x - d.pad_x);

  const T* weight = p.weight + k0 * p.weight_at.n;
  float sum[kRows][kColumns][4] = {};
  for (int first = 0; first < padded; first += p.chunk) {
    const int count = min(p.chunk, padded - first);
    if (first > 0) __syncthreads();  // the weights are free
    for (int i = threadIdx.x; i < kOut * p.chunk; i += kDirectThreads) {
      const int k = i / p.chunk, tap = i - k * p.chunk;
      int c, r, s;
      tap_at(d, first + tap, c, r, s);
      T value = {};
      if (k < live && first + tap < taps)
        value = weight[k * p.weight_at.n + c * p.weight_at.c + r * p.weight_at.y + s * p.weight_at.x];
      weights[k * p.chunk_pitch + tap] = value;
    }
    __syncthreads();
    if (first_pixel >= pixels) continue;
    for (int step = 0; step < count; step += 16) {
      uint32_t a[kRows][4];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int tap = first + step + 2 * t + 8 * half, at0 = offsets[tap], at1 = offsets[tap + 1];
#pragma unroll
        for (int j = 0; j < 2 * kRows; ++j) {
          a[j / 2][j % 2 + 2 * half] = pair(at0 < 0 ? uint16_t(0) : image[corner[j] + at0].bits,
                                            at1 < 0 ? uint16_t(0) : image[corner[j] + at1].bits);
        }
      }
#pragma unroll
      for (int column = 0; column < kColumns; ++column) {
        const T* const from = weights + (8 * column + g) * p.chunk_pitch + step + 2 * t;
        const Vec<T, 2> low = load<2>(from), high = load<2>(from + 8);
        const uint32_t b[2] = {pair(low[0].bits, low[1].bits), pair(high[0].bits, high[1].bits)};
#pragma unroll
        for (int row = 0; row < kRows; ++row) mma_16x8x16<T>(sum[row][column], a[row], b);
      }
    }
  }

  __syncthreads();  // image and weights are free
#pragma unroll
  for (int column = 0; column < kColumns; ++column) {
    const int k = 8 * column + 2 * t;
    const float shift[2] = {p.bias != nullptr && k < live ? to_float(p.bias[k0 + k]) : 0.0f,
                            p.bias != nullptr && k + 1 < live ? to_float(p.bias[k0 + k + 1]) : 0.0f};
#pragma unroll
    for (int j = 0; j < 2 * kRows; ++j) {
      Vec<float, 2> value;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        value[i] = activate_cheap(sum[j / 2][column][j % 2 * 2 + i] + shift[i], p.act, p.param);
      }
      store_float(staged + (first_pixel + 8 * j + g) * kOutPitch + k, value);
    }
  }
  __syncthreads();

  T* const out = p.out + n * p.out_at.n + k0 * p.out_at.c;
  const int per_pixel = p.out_wide ? kOut / kVec<T> : kOut;
  for (int i = threadIdx.x; i < pixels * per_pixel; i += kDirectThreads) {
    int k, pixel, y, x;
    if (p.out_wide) {
      pixel = i / (kOut / kVec<T>), k = i % (kOut / kVec<T>)*kVec<T>;
    } else {
      k = i / pixels, pixel = i - k * pixels;
    }
    d.by_tile_w.split(pixel, y, x);
    if (k >= live || tile_y + y >= p.out_h || tile_x + x >= p.out_w) continue;
    T* const to = out + k * p.out_at.c + (tile_y + y) * p.out_at.y + (tile_x + x) * p.out_at.x;
    const T* const from = staged + pixel * kOutPitch + k;
    if (p.out_wide) {
      store(to, load<kVec<T>>(from));
    } else {
      *to = *from;
    }
  }
}

bool plan(const Conv2dForward& p, Direct& d) {
  d = direct_of(p.x, p.weight, p.convolution);
  d.taps_last = d.channels > 1 && p.weight.stride[1] < p.weight.stride[3];
  // plan_tile counts floats, the image here is of half as many bytes
  return plan_tile(d, p.out.size[2], p.out.size[3], d.stride_y, d.stride_x, extent(d.R, d.dilation_y),
                   extent(d.S, d.dilation_x), kTilePixels, 2 * kImageBytes);
}

template <class T>
const char* run(const Conv2dForward& p, const Direct& d, Context* context) {
  const Convolution& c = p.convolution;
  MmaForward<T> q = {};
  q.x = static_cast<const T*>(p.x.data), q.weight = static_cast<const T*>(p.weight.data);
  q.bias = static_cast<const T*>(p.bias.data), q.out = static_cast<T*>(p.out.data);
  q.out_at = strides_of(p.out), q.weight_at = strides_of(p.weight);
  q.out_h = p.out.size[2], q.out_w = p.out.size[3];
  q.groups = c.groups, q.out_channels = p.weight.size[0] / c.groups;
  q.channel_blocks = ceil_div(q.out_channels, int64_t(kOut));
  q.act = is_cheap(c.activation) ? c.activation : Activation::kNone, q.param = c.activation_param;
  const Strides4& s = q.out_at;
  constexpr int kV = kVec<T>;
  q.out_wide = s.c == 1 && q.out_channels % kV == 0 && s.n % kV == 0 && s.y % kV == 0 && s.x % kV == 0 &&
               aligned<T, kV>(q.out);
  const int64_t padded = ceil_div(d.taps, int64_t(16)) * 16;
  q.chunk = static_cast<int>(min(padded, int64_t(kChunk)));
  q.chunk_pitch =
      q.chunk + 8;  // 4 words more than a multiple of 8: the lanes of a fragment read different banks
  const int64_t used =
      padded * int64_t(sizeof(int)) + (kOut * q.chunk_pitch + d.plane * d.channels) * int64_t(sizeof(T));
  const int64_t shared = max(used, int64_t(kTilePixels * kOutPitch * sizeof(T)));
  const int64_t blocks = d.tiles_x * d.tiles_y * q.channel_blocks * q.groups * p.x.size[0];
  FASTDL_TRY(check_grid(blocks));
  FASTDL_CUDA(launch(conv2d_direct_mma_kernel<T>, dim3(unsigned(blocks)), dim3(kDirectThreads), shared,
                     stream_of(context), q, d));
  return nullptr;
}

}  // namespace

// Half precision, enough taps and channels to fill fragments; the caller asks the device for tensor cores.
bool conv2d_direct_mma_covers(const Conv2dForward& p) {
  Direct d;
  return p.x.dtype != DType::kFloat32 && p.weight.size[0] / p.convolution.groups >= 16 &&
         p.weight.size[1] * p.weight.size[2] * p.weight.size[3] >= 16 && plan(p, d);
}

const char* conv2d_direct_mma(const Conv2dForward& p, Context* context) {
  Direct d;
  if (!plan(p, d)) return "no direct kernel for this shape";
  FASTDL_TRY(p.x.dtype == DType::kFloat16 ? run<f16>(p, d, context) : run<bf16>(p, d, context));
  return finish_activation(p.out, p.convolution.activation, p.convolution.activation_param, context);
}

}  // namespace fastdl
