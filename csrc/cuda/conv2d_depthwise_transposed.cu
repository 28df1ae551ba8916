// Depthwise, gradient of x with stride 2: each pixel of grad_out reaches kR x kR pixels of grad_x, so the
// four pixels of a 2x2 quad meet taps of different parity:
//
//     grad_x[2a - pad + i, 2b - pad + j] = sum over u, v of grad[a - u, b - v] * w[2u + i, 2v + j]    i, j in
//     {0, 1}
//
// A thread holds 4 channels of a column of quads and walks down; what it reads serves all four.
#include "conv2d_depthwise.cuh"

namespace fastdl {
namespace {

// p.src: grad_out; p.dst: grad_x; p.pad_*: the convolution's. Quads are counted from first_a, first_b.
// Grid: (channel blocks, fastest, * column blocks * strips * images). Dynamic shared memory: the block's
// weights.
template <class T, int kR>
__global__ void __launch_bounds__(kRowThreads)
    conv2d_depthwise_transposed_kernel(Depthwise<T> p, RowBlocks blocks, int64_t first_a, int64_t first_b,
                                       int64_t quad_rows, int64_t quad_columns) {
  constexpr int kReach = (kR + 1) / 2;  // pixels of grad_out along each axis
  FASTDL_DYNAMIC_SHARED(float, weights);
  int64_t block = blockIdx.x;
  const int64_t channel_block = block % blocks.channel_blocks;
  block /= blocks.channel_blocks;
  const int64_t column_block = block % blocks.column_blocks;
  block /= blocks.column_blocks;
  const int64_t strip = block % blocks.strips, n = block / blocks.strips;

  const int width = 4 * blocks.across;
  stage_weights<kR * kR, kR>(weights, p.weight, p.w_c, p.w_r, p.w_s, channel_block * width, p.channels,
                             width);
  __syncthreads();

  // Without wide channels memory runs along the columns, more likely than not: so do the threads.
  const int tid = threadIdx.x, columns = blocks.columns;
  const int vector = p.dst_wide ? tid % blocks.across : tid / columns;
  const int column = p.dst_wide ? tid / blocks.across : tid % columns;
  const int64_t c = channel_block * width + 4 * vector, left = p.channels - c,
                at_b = column_block * columns + column;
  if (vector >= blocks.across || column >= columns || at_b >= quad_columns || left <= 0) return;
  const float* const mine = weights + 4 * vector;
  const int64_t b = first_b + at_b, x = 2 * b - p.pad_x;
  const T* src = p.src + n * p.src_at.n + c * p.src_at.c;
  T* dst = p.dst + n * p.dst_at.n + c * p.dst_at.c;

  const int64_t end = min((strip + 1) * blocks.strip_rows, quad_rows);
  for (int64_t row = strip * blocks.strip_rows; row < end; ++row) {
    const int64_t a = first_a + row, y = 2 * a - p.pad_y;
    Vec<float, 4> quad[2][2] = {};
#pragma unroll 1
    for (int u = 0; u < kReach; ++u) {
      const bool row_inside = a - u >= 0 && a - u < p.src_h;
#pragma unroll
      for (int v = 0; v < kReach; ++v) {
        if (!row_inside || b - v < 0 || b - v >= p.src_w) continue;
        const Vec<float, 4> g =
            load_channels(src + (a - u) * p.src_at.y + (b - v) * p.src_at.x, p.src_wide, p.src_at.c, left);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            if (2 * u + i >= kR || 2 * v + j >= kR) continue;
            const Vec<float, 4> w = load<4>(mine + ((2 * u + i) * kR + 2 * v + j) * width);
#pragma unroll
            for (int k = 0; k < 4; ++k) quad[i][j][k] = fmaf(g[k], w[k], quad[i][j][k]);
          }
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        if (y + i < 0 || y + i >= p.dst_h || x + j < 0 || x + j >= p.dst_w) continue;
        store_channels(dst + (y + i) * p.dst_at.y + (x + j) * p.dst_at.x, quad[i][j], p.dst_wide, p.dst_at.c,
                       left);
      }
    }
  }
}

}  // namespace

template <class T>
const char* depthwise_transposed(const Depthwise<T>& p, int64_t size, Context* context) {
  const int64_t first_a = p.pad_y / 2, first_b = p.pad_x / 2;
  const int64_t quad_rows = (p.dst_h - 1 + p.pad_y) / 2 - first_a + 1;
  const int64_t quad_columns = (p.dst_w - 1 + p.pad_x) / 2 - first_b + 1;
  const RowBlocks b = row_blocks(p.images, p.channels, quad_columns, quad_rows, 2, kRowThreads, context);
  const int64_t blocks = p.images * b.strips * b.column_blocks * b.channel_blocks;
  FASTDL_TRY(check_grid(blocks));
  return dispatch_int<3, 5, 7>(size, [&](auto r) -> const char* {
    constexpr int kR = decltype(r)::value;
    const int64_t shared = int64_t(kR * kR * 4 * sizeof(float)) * b.across;
    FASTDL_CUDA(launch(conv2d_depthwise_transposed_kernel<T, kR>, dim3(unsigned(blocks)), dim3(kRowThreads),
                       shared, stream_of(context), p, b, first_a, first_b, quad_rows, quad_columns));
    return nullptr;
  });
}

template const char* depthwise_transposed(const Depthwise<float>&, int64_t, Context*);
template const char* depthwise_transposed(const Depthwise<f16>&, int64_t, Context*);
template const char* depthwise_transposed(const Depthwise<bf16>&, int64_t, Context*);

}  // namespace fastdl
