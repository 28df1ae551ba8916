// Sampling an image: tiles of output, each with the part of the input that it samples copied next to each
// other.
//
// A tile's part of the input, B channels of it, is packed as [rows][columns][B] floats in a frame of zeros,
// whatever the tensor's layout and dtype. Then no sample needs a check of bounds, and all taps are vectors of
// neighbours. Where few of its pixels are sampled (a thumbnail of a large image) the taps of each chunk are
// packed instead.
//
// One channel alone is packed as cells, [rows][columns][4]: the four taps of the sample whose first tap that
// pixel is.
//
// An op says where its output samples by its Maps,
//
//   int64_t tile_pixels()              make_tiles' limit
//   int64_t floats(pixels)             scratch of a sampler that enters at most so many pixels at a time
//   Sampler sampler(pixels, scratch)
//   Box reach(n)                       the input pixels that sample n may sample
//
// which give each thread a Sampler:
//
//   enter(n, h0, h1, w0, w1)        what follows is about these rows and columns of sample n's output
//   Box sampled()                   the input pixels that they may sample
//   count_in(box)                   cells are counted in this box
//   locate(h, w, count, cells)      the cells of `count` <= kChunk pixels from (h, w) on, right and then down
#pragma once

#include "sampling_geometry.h"
#include "sampling_pixels.h"

namespace fastdl::cpu::sampling {

struct Tiles {
  int64_t n, channels;
  int block;              // channels of a tile
  int64_t blocks;         // of channels
  int64_t height, width;  // of a tile
  int64_t rows, columns;  // of tiles
  int64_t area;           // the largest part of the input that is packed, in pixels with the frame
  int threads;
  int64_t per_sample() const { return blocks * rows * columns; }
  int64_t count() const { return n * per_sample(); }
  int64_t packed_floats() const { return area * (block == 1 ? 4 : block); }
};

constexpr int64_t kPackedBytes = 512 << 10;  // stays in the second cache
constexpr int64_t kAloneElements = 1 << 13;  // less is not worth a second thread

// `pixels`: at most so many in a tile, unless one row has more.
inline Tiles make_tiles(const Geometry& g, int64_t n, int64_t channels, const Context* context,
                        int64_t pixels = INT64_MAX) {
  Tiles t;
  t.n = n, t.channels = channels;
  t.block = block_of(channels);
  t.blocks = (channels + t.block - 1) / t.block;
  const int64_t whole = framed_area({0, 0, g.iw, g.ih});
  const int64_t side = whole * (t.block == 1 ? 4 : t.block) * 4 <= kPackedBytes ? INT64_MAX
                       : t.block == 16                                          ? 64
                                                                                : 128;
  t.width = std::min(g.ow, side);
  t.height = std::min({g.oh, side, std::max<int64_t>(1, pixels / t.width)});
  t.columns = (g.ow + t.width - 1) / t.width;
  const bool alone = n * channels * g.oh * g.ow < kAloneElements;
  t.threads = alone ? 1 : std::max(context->num_threads, 1);
  for (;; t.height = (t.height + 1) / 2) {
    t.rows = (g.oh + t.height - 1) / t.height;
    if (t.count() >= t.threads || t.height <= 8) break;
  }
  t.area = std::max<int64_t>(std::min(whole, 4 * t.height * t.width + 4096), 4 * kChunk);
  return t;
}

// Floats per pixel of what is packed.
template <int B>
constexpr int kPacked = B == 1 ? 4 : B;

// to: box of image n, channels from c on, framed.
template <int B>
void pack_pixels(const Tensor& input, int64_t n, int64_t c, const Box& box, float* to) {
  const int64_t row = framed_width(box) * B;
  std::fill_n(to, kFrame * row, 0.0f);
  to += kFrame * row;
  for (int64_t y = box.y0; y < box.y1; ++y, to += row) {
    std::fill_n(to, kFrame * B, 0.0f);
    read<B>(run_of(input, n, c, B, y, box.x0), box.width(), to + kFrame * B);
    std::fill_n(to + row - kFrame * B, kFrame * B, 0.0f);
  }
  std::fill_n(to, kFrame * row, 0.0f);
}

// to: count cells [4] from two rows of count + 1 pixels; may write up to kWidth cells.
inline void join_rows(const float* above, const float* below, int64_t count, float* to) {
  for (int64_t x = 0; x < count; x += 4) {
    alignas(64) float taps[4][4];
    std::memcpy(taps[0], above + x, 16);
    std::memcpy(taps[1], above + x + 1, 16);
    std::memcpy(taps[2], below + x, 16);
    std::memcpy(taps[3], below + x + 1, 16);
    transpose<4>(taps[0], 4, to + x * 4, 4);
  }
}

// to: the cells of box and its frame, but for the last column and row, which none reaches.
inline void pack_cells(const Tensor& input, int64_t n, int64_t c, const Box& box, float* rows, float* to) {
  const int64_t width = framed_width(box), size = width + 16;
  float *above = rows, *below = rows + size;
  std::fill_n(rows, 2 * size, 0.0f);
  for (int64_t y = box.y0 - kFrame; y < box.y1 + kFrame - 1; ++y, to += width * 4) {
    if (y + 1 >= box.y0 && y + 1 < box.y1) {
      read<1>(run_of(input, n, c, 1, y + 1, box.x0), box.width(), below + kFrame);
    } else {
      std::fill_n(below, size, 0.0f);
    }
    join_rows(above, below, width, to);
    std::swap(above, below);
  }
}

template <int B>
void pack(const Tensor& input, int64_t n, int64_t c, const Box& box, float* rows, float* to) {
  if constexpr (B == 1) {
    pack_cells(input, n, c, box, rows, to);
  } else {
    pack_pixels<B>(input, n, c, box, to);
  }
}

constexpr int64_t kTapsRow = 2 * kChunk;

// to: the four taps of each cell, pixel i's at columns 2 i and 2 i + 1 of two rows (one channel: its cell at
// column i). Changes the cells accordingly.
template <int B>
void pack_taps(const Tensor& input, int64_t n, int64_t c, const Box& box, Cells& cells, float* to) {
  const Run run = run_of(input, n, c, B, 0, 0);
  with_float(input.dtype, [&](auto t) {
    const auto* image = static_cast<const decltype(t)*>(input.data) + run.offset;
    for (int i = 0; i < cells.count; ++i) {
      for (int tap = 0; tap < 4; ++tap) {
        const int64_t y = box.y0 + cells.y[i] - kFrame + tap / 2, x = box.x0 + cells.x[i] - kFrame + tap % 2;
        const bool inside = y >= 0 && y < input.size[2] && x >= 0 && x < input.size[3];
        const int64_t offset = y * input.stride[2] + x * input.stride[3];
        float* pixel = B == 1 ? to + 4 * i + tap : to + (tap / 2 * kTapsRow + 2 * i + tap % 2) * B;
        for (int b = 0; b < B; ++b)
          pixel[b] = inside && b < run.channels ? to_float(image[offset + b * run.channel_stride]) : 0.0f;
      }
    }
  });
  for (int i = 0; i < cells.count; ++i) cells.x[i] = B == 1 ? i : 2 * i, cells.y[i] = 0;
}

// A chunk of output: `count` = cells.count pixels of sample n, channels from c on, from (h, w) on; between
// columns w0 and w1 if it has more than one row. `image` holds their taps, `row` pixels to a row.
struct Chunk {
  int64_t n, c, h, w, w0, w1;
  const float* image;
  int64_t row;
};

// Scratch of a thread: for_each_chunk's, then its sampler's.
inline int64_t tile_floats(const Geometry& g, const Tiles& t) {
  return (t.packed_floats() + 2 * (g.iw + 64) + kWidth - 1) / kWidth * kWidth;
}
template <class Maps>
int64_t scratch_floats(const Geometry& g, const Tiles& t, const Maps& maps) {
  return tile_floats(g, t) + (maps.floats(t.height * t.width) + kWidth - 1) / kWidth * kWidth;
}

// f(chunk, cells) for the chunks of tile `index`.
template <int B, class Sampler, class F>
FASTDL_INLINE void for_each_chunk(const Geometry& g, const Tiles& t, int64_t index, const Tensor& input,
                                  Sampler& sampler, Cells& cells, float* scratch, const F& f) {
  const int64_t n = index / t.per_sample(), tile = index % (t.rows * t.columns);
  const int64_t c = index % t.per_sample() / (t.rows * t.columns) * B;
  const int64_t h0 = tile / t.columns * t.height, h1 = std::min(h0 + t.height, g.oh);
  const int64_t w0 = tile % t.columns * t.width, w1 = std::min(w0 + t.width, g.ow);
  const int64_t image = input.size[0] == 1 ? 0 : n;

  sampler.enter(n, h0, h1, w0, w1);
  Box box = sampler.sampled();
  const bool packed = framed_area(box) <= t.area;
  if (packed) {
    pack<B>(input, image, c, box, scratch + t.packed_floats(), scratch);
  } else {
    box = {0, 0, g.iw, g.ih};
  }
  sampler.count_in(box);
  const int64_t row = packed ? framed_width(box) : kTapsRow;
  const bool joined = w1 - w0 == g.ow;  // the next row follows in the output's memory
  for (int64_t h = h0, w = w0; h < h1;) {
    const int64_t left = joined ? (h1 - h) * g.ow - w : w1 - w;
    const int count = static_cast<int>(std::min<int64_t>(left, kChunk));
    sampler.locate(h, w, count, cells);
    if (!packed) pack_taps<B>(input, image, c, box, cells, scratch);
    f(Chunk{n, c, h, w, w0, w1, scratch, row}, cells);
    w += count;
    h += (w - w0) / (w1 - w0);
    w = w0 + (w - w0) % (w1 - w0);
  }
}

// f(thread, first, end): each thread's run of all `count` tiles; a thread calls itself by a number.
template <class F>
void on_threads(const Context* context, int threads, int64_t count, const F& f) {
  share_out(context, count, std::min<int64_t>(threads, count),
            [&](int64_t first, int64_t end, int64_t thread) { f(thread, first, end); });
}

// Four floats of each of kWidth pixels, a[k] those of pixels k, k + 4, k + 8, ...: v[j] is float j of all of
// them.
FASTDL_INLINE void transpose_quads(const Vec a[4], Vec v[4]) {
#if defined(__AVX512F__)
  const __m512d b0 = _mm512_castps_pd(_mm512_unpacklo_ps(a[0], a[1])),
                b1 = _mm512_castps_pd(_mm512_unpackhi_ps(a[0], a[1]));
  const __m512d b2 = _mm512_castps_pd(_mm512_unpacklo_ps(a[2], a[3])),
                b3 = _mm512_castps_pd(_mm512_unpackhi_ps(a[2], a[3]));
  v[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(b0, b2));
  v[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(b0, b2));
  v[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b1, b3));
  v[3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b1, b3));
#elif defined(__AVX2__)
  const __m256d b0 = _mm256_castps_pd(_mm256_unpacklo_ps(a[0], a[1])),
                b1 = _mm256_castps_pd(_mm256_unpackhi_ps(a[0], a[1]));
  const __m256d b2 = _mm256_castps_pd(_mm256_unpacklo_ps(a[2], a[3])),
                b3 = _mm256_castps_pd(_mm256_unpackhi_ps(a[2], a[3]));
  v[0] = _mm256_castpd_ps(_mm256_unpacklo_pd(b0, b2));
  v[1] = _mm256_castpd_ps(_mm256_unpackhi_pd(b0, b2));
  v[2] = _mm256_castpd_ps(_mm256_unpacklo_pd(b1, b3));
  v[3] = _mm256_castpd_ps(_mm256_unpackhi_pd(b1, b3));
#else
  for (int j = 0; j < 4; ++j) v[j] = Vec{a[0][j], a[1][j], a[2][j], a[3][j]};
#endif
}

// The taps of kWidth cells of an image of one channel: v[0] v[1] above v[2] v[3].
FASTDL_INLINE void load_taps(const float* image, int64_t row, const Cells& cells, int i, Vec v[4]) {
  alignas(64) int32_t offset[kWidth];
  store(offset, (load(cells.y + i) * static_cast<int32_t>(row) + load(cells.x + i)) * 4);
  auto cell = [&](int k) { return image + offset[k]; };
  Vec a[4];
  for (int k = 0; k < 4; ++k) {
#if defined(__AVX512F__)
    __m512 quads = _mm512_castps128_ps512(_mm_loadu_ps(cell(k)));
    quads = _mm512_insertf32x4(quads, _mm_loadu_ps(cell(k + 4)), 1);
    quads = _mm512_insertf32x4(quads, _mm_loadu_ps(cell(k + 8)), 2);
    a[k] = _mm512_insertf32x4(quads, _mm_loadu_ps(cell(k + 12)), 3);
#elif defined(__AVX2__)
    a[k] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(cell(k))), _mm_loadu_ps(cell(k + 4)), 1);
#else
    a[k] = load(cell(k));
#endif
  }
  transpose_quads(a, v);
}

}  // namespace fastdl::cpu::sampling
