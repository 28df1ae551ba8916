// Depthwise, NCHW (and whatever strides): tiles with halo in shared memory. A thread walks down one column of
// a strip, its weights in registers; each row of the tile is added to all the open rows of dst that it
// belongs to.
#include "conv2d_depthwise_tile.cuh"

namespace fastdl {
namespace {

// Grid: (column tiles, fastest, * row tiles * groups of planes). A plane is (n, c).
template <class T, int kR, int kStride>
__global__ void __launch_bounds__(kTileThreads, kR == 3   ? 4
                                                : kR == 5 ? 3
                                                          : 2)
    conv2d_depthwise_planes_kernel(Depthwise<T> p, Tiles t, Divisor by_channels) {
  constexpr int kOpen = kOpenRows<kR, kStride>;
  FASTDL_DYNAMIC_SHARED(float, tile);
  int64_t block = blockIdx.x;
  const int64_t first_q = block % t.column_tiles * t.columns;
  block /= t.column_tiles;
  const int64_t first_p = block % t.row_tiles * (t.strips * t.strip_rows),
                first_plane = block / t.row_tiles * t.planes;
  const int64_t planes = p.images * p.channels, first_x = first_q * kStride - p.pad_x;

  stage<T>(tile, t, first_p * kStride - p.pad_y, first_x, p.src_h, p.src_w, p.src_at.y, p.src_at.x,
           [&](int i) -> const T* {
             if (first_plane + i >= planes) return nullptr;
             int64_t n, c;
             by_channels.split(first_plane + i, n, c);
             return p.src + n * p.src_at.n + c * p.src_at.c;
           });
  __syncthreads();

  int rest, column, plane, strip;
  t.by_columns.split(static_cast<int>(threadIdx.x), rest, column);
  t.by_strips.split(rest, plane, strip);
  const int64_t q = first_q + column, row0 = first_p + strip * t.strip_rows;
  if (plane >= t.planes || first_plane + plane >= planes || q >= p.dst_w || row0 >= p.dst_h) return;
  int64_t n, c;
  by_channels.split(first_plane + plane, n, c);

  float w[kR * kR];
  const T* weight = p.weight + c * p.w_c;
#pragma unroll
  for (int tap = 0; tap < kR * kR; ++tap) w[tap] = to_float(weight[tap / kR * p.w_r + tap % kR * p.w_s]);
  const float shift = p.bias == nullptr ? 0.0f : to_float(p.bias[c]);

  const float* in = tile + (plane * t.in_rows + strip * t.strip_rows * kStride) * t.in_pitch +
                    static_cast<int>(first_x - staged_column(t, first_x)) + column * kStride;
  T* dst = p.dst + n * p.dst_at.n + c * p.dst_at.c + q * p.dst_at.x;
  float open[kOpen] = {};
  const auto add = [&](int r) {  // the row of the tile that is row r of the window
    float v[kR];
#pragma unroll
    for (int s = 0; s < kR; ++s) v[s] = in[r * t.in_pitch + s];
#pragma unroll
    for (int j = 0; j < kOpen; ++j) {
      const int tap = r - j * kStride;
      if (tap < 0) break;
#pragma unroll
      for (int s = 0; s < kR; ++s) open[j] = fmaf(v[s], w[tap * kR + s], open[j]);
    }
  };
#pragma unroll
  for (int r = 0; r < kR - kStride; ++r) add(r);
  const int64_t rows = min(int64_t(t.strip_rows), p.dst_h - row0);
  for (int row = 0; row < rows; ++row, in += kStride * t.in_pitch) {
#pragma unroll
    for (int r = kR - kStride; r < kR; ++r) add(r);
    dst[(row0 + row) * p.dst_at.y] = from_float<T>(activate_cheap(open[0] + shift, p.act, p.param));
#pragma unroll
    for (int j = 0; j + 1 < kOpen; ++j) open[j] = open[j + 1];
    open[kOpen - 1] = 0.0f;
  }
}

}  // namespace

template <class T>
const char* depthwise_planes(const Depthwise<T>& p, int64_t size, int64_t stride, Context* context) {
  const Tiles t =
      tiles_of(p.dst_h, p.dst_w, p.images * p.channels, size, stride, wide_rows<T>(p.src, p.src_at, p.src_w));
  const int64_t blocks = t.column_tiles * t.row_tiles * t.plane_groups;
  FASTDL_TRY(check_grid(blocks));
  return dispatch_window(size, stride, [&](auto r, auto s) -> const char* {
    FASTDL_CUDA(launch(conv2d_depthwise_planes_kernel<T, decltype(r)::value, decltype(s)::value>,
                       dim3(unsigned(blocks)), dim3(kTileThreads), t.shared_bytes(), stream_of(context), p, t,
                       Divisor(p.channels)));
    return nullptr;
  });
}

template const char* depthwise_planes(const Depthwise<float>&, int64_t, int64_t, Context*);
template const char* depthwise_planes(const Depthwise<f16>&, int64_t, int64_t, Context*);
template const char* depthwise_planes(const Depthwise<bf16>&, int64_t, int64_t, Context*);

}  // namespace fastdl
