// Depthwise, channels_last: a thread holds 4 channels of some neighbouring columns and walks down the rows of
// src. Each row is read once: it is added to all the open rows of dst that it belongs to.
#include "conv2d_depthwise.cuh"

namespace fastdl {
namespace {

// Columns of dst per thread: as the registers allow.
template <int kStride>
constexpr int kColumnsOf = kStride == 1 ? 4 : 2;

// Blocks per multiprocessor, at least: what the registers of a thread are limited by.
template <int kR, int kStride>
constexpr int kResident = kStride == 1 ? (kR == 7   ? 2
                                          : kR == 5 ? 3
                                                    : 4)
                                       : (kR == 3 ? 6 : 4);

// Grid: (channel blocks, fastest, * column blocks * strips * images). Dynamic shared memory: the block's
// weights.
template <class T, int kR, int kStride>
__global__ void __launch_bounds__(kRowThreads, kResident<kR, kStride>)
    conv2d_depthwise_rows_kernel(Depthwise<T> p, RowBlocks b) {
  constexpr int kColumns = kColumnsOf<kStride>, kOpen = kOpenRows<kR, kStride>,
                kIn = (kColumns - 1) * kStride + kR;
  FASTDL_DYNAMIC_SHARED(float, weights);
  int64_t block = blockIdx.x;
  const int64_t channel_block = block % b.channel_blocks;
  block /= b.channel_blocks;
  const int64_t column_block = block % b.column_blocks;
  block /= b.column_blocks;
  const int64_t strip = block % b.strips, n = block / b.strips;

  const int width = 4 * b.across;
  stage_weights<kR * kR, kR>(weights, p.weight, p.w_c, p.w_r, p.w_s, channel_block * width, p.channels,
                             width);
  __syncthreads();

  const int vector = threadIdx.x % b.across, column = threadIdx.x / b.across;
  const int64_t c = channel_block * width + 4 * vector;
  const int64_t q = (column_block * b.columns + column) * kColumns;
  if (column >= b.columns || q >= p.dst_w || c >= p.channels) return;
  const float* const mine = weights + 4 * vector;

  const int64_t first_x = q * kStride - p.pad_x;
  const T* src = p.src + n * p.src_at.n + c + first_x * p.src_at.x;
  T* dst = p.dst + n * p.dst_at.n + c + q * p.dst_at.x;
  unsigned inside = 0;  // a bit per column of src
#pragma unroll
  for (int i = 0; i < kIn; ++i) inside |= unsigned(first_x + i >= 0 && first_x + i < p.src_w) << i;
  Vec<float, 4> shift = {};
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    if (p.bias != nullptr) shift[k] = to_float(p.bias[c + k]);
  }

  Vec<float, 4> open[kOpen][kColumns] = {};
  const int64_t begin = strip * b.strip_rows, end = min(begin + b.strip_rows, p.dst_h);
  for (int64_t row = begin; row < end; ++row) {
#pragma unroll 1
    for (int r = row == begin ? 0 : kR - kStride; r < kR; ++r) {
      const int64_t y = row * kStride - p.pad_y + r;
      if (y < 0 || y >= p.src_h) continue;
      Vec<float, 4> in[kIn];
#pragma unroll
      for (int i = 0; i < kIn; ++i) {
        in[i] = {};
        if (inside >> i & 1) in[i] = load_float<4, Cache::kReadOnly>(src + y * p.src_at.y + i * p.src_at.x);
      }
#pragma unroll
      for (int j = 0; j < kOpen; ++j) {
        const int tap = r - j * kStride;
        if (tap < 0 || row + j >= end) break;
#pragma unroll
        for (int s = 0; s < kR; ++s) {
          const Vec<float, 4> w = load<4>(mine + (tap * kR + s) * width);
#pragma unroll
          for (int i = 0; i < kColumns; ++i) {
#pragma unroll
            for (int k = 0; k < 4; ++k) open[j][i][k] = fmaf(in[i * kStride + s][k], w[k], open[j][i][k]);
          }
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      if (q + i >= p.dst_w) break;
      Vec<float, 4> value = open[0][i];
#pragma unroll
      for (int k = 0; k < 4; ++k) value[k] = activate_cheap(value[k] + shift[k], p.act, p.param);
      store_float(dst + row * p.dst_at.y + i * p.dst_at.x, value);
    }
#pragma unroll
    for (int j = 0; j < kOpen; ++j) {
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        if (j + 1 < kOpen) {
          open[j][i] = open[j + 1 < kOpen ? j + 1 : j][i];
        } else {
          open[j][i] = {};
        }
      }
    }
  }
}

}  // namespace

template <class T>
const char* depthwise_rows(const Depthwise<T>& p, int64_t size, int64_t stride, Context* context) {
  const RowBlocks b = row_blocks(p.images, p.channels,
                                 ceil_div(p.dst_w, int64_t(stride == 1 ? kColumnsOf<1> : kColumnsOf<2>)),
                                 p.dst_h, 2 * size, kRowThreads, context);
  const int64_t blocks = p.images * b.strips * b.column_blocks * b.channel_blocks;
  FASTDL_TRY(check_grid(blocks));
  return dispatch_window(size, stride, [&](auto r, auto s) -> const char* {
    constexpr int kR = decltype(r)::value, kStride = decltype(s)::value;
    const int64_t shared = int64_t(kR * kR * 4 * sizeof(float)) * b.across;
    FASTDL_CUDA(launch(conv2d_depthwise_rows_kernel<T, kR, kStride>, dim3(unsigned(blocks)),
                       dim3(kRowThreads), shared, stream_of(context), p, b));
    return nullptr;
  });
}

template const char* depthwise_rows(const Depthwise<float>&, int64_t, int64_t, Context*);
template const char* depthwise_rows(const Depthwise<f16>&, int64_t, int64_t, Context*);
template const char* depthwise_rows(const Depthwise<bf16>&, int64_t, int64_t, Context*);

}  // namespace fastdl
