// Depthwise, gradient of the weight: grad_weight[c, r, s] = sum over n, p, q of
// grad[n, c, p, q] * x[n, c, p * stride - pad + r, q * stride - pad + s].
//
// Each block sums one split of the pixels for some channels; conv2d_partials.cu adds the splits. A dense
// weight [C, 1, R, S] lies in memory as [C][taps] in both layouts.
#include "conv2d_depthwise_tile.cuh"

namespace fastdl {
namespace {

constexpr int kRowsOfThreads = 256;

template <class T>
struct DepthwiseWgrad {
  const T* grad;
  const T* x;
  float* partial;  // [splits][channels][taps]
  Strides4 grad_at, x_at;
  int64_t images, channels, in_h, in_w, out_h, out_w, pad_y, pad_x;
  int64_t per_split;  // rows (n, p), or tiles
  Divisor by_out_h;
};

// channels_last. A thread has 4 channels and one row of taps, and walks along rows of pixels with
// the kR columns of x under the taps in registers. Threads: (across, kR, lines).
// Grid: (channel blocks, splits). Dynamic shared memory: kR * 4 floats a thread.
template <class T, int kR, int kStride>
__global__ void __launch_bounds__(kRowsOfThreads, kR == 7 ? 2 : 3)
    conv2d_depthwise_wgrad_rows(DepthwiseWgrad<T> p, int across) {
  FASTDL_DYNAMIC_SHARED(float, sums);  // [lines][kR][kR][4 * across]
  const int lines = kRowsOfThreads / (across * kR), width = 4 * across;
  const int vector = threadIdx.x % across, r = threadIdx.x / across % kR, line = threadIdx.x / (across * kR);
  const int64_t c = int64_t(blockIdx.x) * width + 4 * vector;
  Vec<float, 4> sum[kR] = {};
  if (line < lines && c < p.channels) {
    const int64_t begin = int64_t(blockIdx.y) * p.per_split;
    const int64_t end = min(begin + p.per_split, p.images * p.out_h);
    for (int64_t row = begin + line; row < end; row += lines) {
      int64_t n, at;
      p.by_out_h.split(row, n, at);
      const int64_t y = at * kStride - p.pad_y + r;
      if (y < 0 || y >= p.in_h) continue;
      const T* grad = p.grad + n * p.grad_at.n + c + at * p.grad_at.y;
      const T* x = p.x + n * p.x_at.n + c + y * p.x_at.y;
      const auto load_x = [&](int64_t column) {
        Vec<float, 4> v = {};
        if (column >= 0 && column < p.in_w) v = load_float<4, Cache::kReadOnly>(x + column * p.x_at.x);
        return v;
      };
      Vec<float, 4> window[kR];
#pragma unroll
      for (int s = kStride; s < kR; ++s) window[s] = load_x(s - kStride - p.pad_x);
#pragma unroll 2
      for (int64_t q = 0; q < p.out_w; ++q) {
#pragma unroll
        for (int s = 0; s < kR - kStride; ++s) window[s] = window[s + kStride];
#pragma unroll
        for (int s = kR - kStride; s < kR; ++s) window[s] = load_x(q * kStride - p.pad_x + s);
        const Vec<float, 4> g = load_float<4, Cache::kReadOnly>(grad + q * p.grad_at.x);
#pragma unroll
        for (int s = 0; s < kR; ++s) {
#pragma unroll
          for (int k = 0; k < 4; ++k) sum[s][k] = fmaf(g[k], window[s][k], sum[s][k]);
        }
      }
    }
  }
  if (line < lines) {
#pragma unroll
    for (int s = 0; s < kR; ++s) store(sums + ((line * kR + r) * kR + s) * width + 4 * vector, sum[s]);
  }
  __syncthreads();
  constexpr int kTaps = kR * kR;
  for (int i = threadIdx.x; i < kTaps * width; i += kRowsOfThreads) {
    const int tap = i / width, j = i % width;
    const int64_t channel = int64_t(blockIdx.x) * width + j;
    if (channel >= p.channels) continue;
    float total = 0.0f;
    for (int other = 0; other < lines; ++other) total += sums[(other * kTaps + tap) * width + j];
    p.partial[(int64_t(blockIdx.y) * p.channels + channel) * kTaps + tap] = total;
  }
}

// NCHW, and whatever strides. A block has one channel and walks over tiles (column tile, row tile, group of
// images) of x in shared memory; a thread walks down a column with all the taps' sums in registers and the
// gradients of the rows that a row of x meets. Grid: (channels, splits).
template <class T, int kR, int kStride>
__global__ void __launch_bounds__(kTileThreads) conv2d_depthwise_wgrad_planes(DepthwiseWgrad<T> p, Tiles t) {
  constexpr int kOpen = kOpenRows<kR, kStride>, kTaps = kR * kR;
  FASTDL_DYNAMIC_SHARED(float, tile);
  __shared__ float sums[kTaps][kTileThreads / kWarp];
  const int64_t c = blockIdx.x;
  int rest, column, plane, strip;
  t.by_columns.split(static_cast<int>(threadIdx.x), rest, column);
  t.by_strips.split(rest, plane, strip);

  float sum[kTaps] = {};
  const int64_t begin = int64_t(blockIdx.y) * p.per_split;
  const int64_t end = min(begin + p.per_split, t.column_tiles * t.row_tiles * t.plane_groups);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t first_q = i % t.column_tiles * t.columns, j = i / t.column_tiles;
    const int64_t first_p = j % t.row_tiles * (t.strips * t.strip_rows), first_n = j / t.row_tiles * t.planes;
    const int64_t first_x = first_q * kStride - p.pad_x;
    __syncthreads();  // the tile is free
    stage<T>(tile, t, first_p * kStride - p.pad_y, first_x, p.in_h, p.in_w, p.x_at.y, p.x_at.x,
             [&](int k) -> const T* {
               return first_n + k < p.images ? p.x + (first_n + k) * p.x_at.n + c * p.x_at.c : nullptr;
             });
    __syncthreads();
    const int64_t n = first_n + plane, q = first_q + column, row0 = first_p + strip * t.strip_rows;
    if (plane >= t.planes || n >= p.images || q >= p.out_w) continue;
    const T* grad = p.grad + n * p.grad_at.n + c * p.grad_at.c + q * p.grad_at.x;
    const float* in = tile + plane * t.in_rows * t.in_pitch +
                      static_cast<int>(first_x - staged_column(t, first_x)) + column * kStride;
    float open[kOpen] = {};  // gradients of row, row - 1, ...
    for (int row = 0; row < t.strip_rows + kOpen - 1; ++row) {
#pragma unroll
      for (int k = kOpen - 1; k > 0; --k) open[k] = open[k - 1];
      open[0] =
          row < t.strip_rows && row0 + row < p.out_h ? to_float(grad[(row0 + row) * p.grad_at.y]) : 0.0f;
#pragma unroll
      for (int r = 0; r < kStride; ++r) {
        const int at = (strip * t.strip_rows + row) * kStride + r;
        if (at >= t.in_rows) break;
#pragma unroll
        for (int s = 0; s < kR; ++s) {
          const float v = in[at * t.in_pitch + s];
#pragma unroll
          for (int k = 0; k < kOpen; ++k) {
            if (r + k * kStride < kR) {
              float& into = sum[(r + k * kStride) * kR + s];
              into = fmaf(open[k], v, into);
            }
          }
        }
      }
    }
  }

#pragma unroll
  for (int tap = 0; tap < kTaps; ++tap) {
    const float total = warp_reduce(sum[tap], Sum());
    if (lane_id() == 0) sums[tap][threadIdx.x / kWarp] = total;
  }
  __syncthreads();
  if (threadIdx.x < kTaps) {
    float total = 0.0f;
#pragma unroll
    for (int warp = 0; warp < kTileThreads / kWarp; ++warp) total += sums[threadIdx.x][warp];
    p.partial[(int64_t(blockIdx.y) * p.channels + c) * kTaps + threadIdx.x] = total;
  }
}

// Items (rows or tiles) of a split: enough splits for some blocks per multiprocessor, of `least` items and
// more.
int64_t items_per_split(int64_t items, int64_t blocks, int64_t least, const Context* context) {
  const int64_t wanted = at_least_1(int64_t(6) * device_properties(context->device).multiprocessors / blocks);
  return ceil_div(items, min(min(wanted, at_least_1(items / least)), kMaxGridYZ));
}

}  // namespace

const char* conv2d_depthwise_grad_weight(const Conv2dBackward& p, Context* context) {
  return dispatch_float(p.x.dtype, [&](auto type) -> const char* {
    using T = typename decltype(type)::type;
    DepthwiseWgrad<T> d = {};
    d.grad = static_cast<const T*>(p.grad_out.data), d.x = static_cast<const T*>(p.x.data);
    d.grad_at = strides_of(p.grad_out), d.x_at = strides_of(p.x);
    d.images = p.x.size[0], d.channels = p.x.size[1], d.in_h = p.x.size[2], d.in_w = p.x.size[3];
    d.out_h = p.grad_out.size[2], d.out_w = p.grad_out.size[3];
    d.pad_y = p.convolution.padding[0], d.pad_x = p.convolution.padding[1];
    d.by_out_h = Divisor(d.out_h);
    const int64_t size = p.weight.size[2], stride = p.convolution.stride[0];
    const bool planes =
        !wide_channels<T>(d.grad, d.grad_at, d.channels) || !wide_channels<T>(d.x, d.x_at, d.channels);
    const Tiles t = tiles_of(d.out_h, d.out_w, d.images, size, stride, wide_rows<T>(d.x, d.x_at, d.in_w));
    const int64_t vectors = ceil_div(d.channels, int64_t(4)),
                  most = min(int64_t(kWarp), kRowsOfThreads / size);
    const int across = static_cast<int>(ceil_div(vectors, ceil_div(vectors, most)));
    const int64_t blocks = planes ? d.channels : ceil_div(vectors, int64_t(across));
    const int64_t items = planes ? t.column_tiles * t.row_tiles * t.plane_groups : d.images * d.out_h;
    d.per_split =
        items_per_split(items, blocks, planes ? 1 : 2 * (kRowsOfThreads / (across * size)), context);
    const int64_t splits = ceil_div(items, d.per_split);
    FASTDL_TRY(check_grid(blocks));
    if (splits > kMaxGridYZ) return "more blocks than a grid has room for";
    d.partial = static_cast<float*>(
        context->allocate(context, splits * d.channels * size * size * int64_t(sizeof(float))));
    if (d.partial == nullptr) return "no memory for partial sums";
    const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(splits));
    FASTDL_TRY(dispatch_window(size, stride, [&](auto r, auto s) -> const char* {
      constexpr int kR = decltype(r)::value, kStride = decltype(s)::value;
      if (planes) {
        FASTDL_CUDA(launch(conv2d_depthwise_wgrad_planes<T, kR, kStride>, grid, dim3(kTileThreads),
                           t.shared_bytes(), stream_of(context), d, t));
      } else {
        const int64_t shared =
            int64_t(kRowsOfThreads / (across * kR)) * kR * kR * 4 * across * int64_t(sizeof(float));
        FASTDL_CUDA(launch(conv2d_depthwise_wgrad_rows<T, kR, kStride>, grid, dim3(kRowsOfThreads), shared,
                           stream_of(context), d, across));
      }
      return nullptr;
    }));
    return conv2d_add_partials(d.partial, splits, p.grad_weight, context);
  });
}

}  // namespace fastdl
