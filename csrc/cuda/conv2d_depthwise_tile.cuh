// Depthwise, NCHW: a block stages tiles of planes with their halo in shared memory, as floats.
#pragma once

#include "conv2d_depthwise.cuh"

namespace fastdl {

constexpr int kTileThreads = 256;

// A block has `planes` planes of a tile each; a thread has one column of one strip of rows of one of them.
struct Tiles {
  int columns, strips, strip_rows, planes;  // of dst, per tile
  int in_rows, in_pitch;                    // of src, with halo; floats from row to row
  int64_t column_tiles, row_tiles, plane_groups;
  Divisor by_columns, by_strips, by_in_rows, by_vectors;
  bool wide;  // src is read by 4

  int64_t shared_bytes() const { return int64_t(planes) * in_rows * in_pitch * int64_t(sizeof(float)); }
};

inline Tiles tiles_of(int64_t dst_h, int64_t dst_w, int64_t planes, int64_t size, int64_t stride, bool wide) {
  constexpr int64_t kWidest = 64, kMaxBytes = 40 << 10;
  Tiles t = {};
  t.wide = wide;
  t.column_tiles = ceil_div(dst_w, kWidest);
  t.columns = static_cast<int>(ceil_div(dst_w, t.column_tiles));
  const int64_t rows = size > 3 ? 16 : 8;  // of a strip: size - stride more of them are read
  t.strip_rows = static_cast<int>(ceil_div(dst_h, ceil_div(dst_h, rows)));
  t.in_pitch = static_cast<int>(ceil_div((t.columns - 1) * stride + size, int64_t(4)) * 4 + 4);
  t.strips = static_cast<int>(
      min(ceil_div(dst_h, int64_t(t.strip_rows)), at_least_1(int64_t(kTileThreads / t.columns))));
  const auto fit = [&] { t.in_rows = static_cast<int>((t.strips * t.strip_rows - 1) * stride + size); };
  fit();
  for (; t.strips > 1 && t.in_rows * t.in_pitch * int64_t(sizeof(float)) > kMaxBytes; fit()) --t.strips;
  const int64_t fitting = at_least_1(kMaxBytes / (t.in_rows * t.in_pitch * int64_t(sizeof(float))));
  t.planes =
      static_cast<int>(min(min(planes, fitting), at_least_1(int64_t(kTileThreads / (t.columns * t.strips)))));
  t.row_tiles = ceil_div(dst_h, int64_t(t.strips) * t.strip_rows);
  t.plane_groups = ceil_div(planes, int64_t(t.planes));
  t.by_columns = Divisor(t.columns), t.by_strips = Divisor(t.strips), t.by_in_rows = Divisor(t.in_rows);
  t.by_vectors = Divisor(wide ? t.in_pitch / 4 : t.in_pitch);
  return t;
}

// Whether rows of src may be read by 4.
template <class T>
bool wide_rows(const void* data, const Strides4& s, int64_t width) {
  return s.x == 1 && width % 4 == 0 && s.n % 4 == 0 && s.c % 4 == 0 && s.y % 4 == 0 && aligned<T, 4>(data);
}

// The column of src at which a staged row starts.
__device__ __forceinline__ int64_t staged_column(const Tiles& t, int64_t first_x) {
  return t.wide ? first_x & ~int64_t(3) : first_x;
}

// tile[plane][row][column] = src at (first_y + row, staged_column + column), zero outside. plane_at(i): the
// address of plane i of the block, nullptr if there is none. By the whole block, without a barrier.
template <class T, class PlaneAt>
__device__ __forceinline__ void stage(float* tile, const Tiles& t, int64_t first_y, int64_t first_x,
                                      int64_t src_h, int64_t src_w, int64_t stride_y, int64_t stride_x,
                                      PlaneAt plane_at) {
  const int64_t x0 = staged_column(t, first_x);
  const int vectors = static_cast<int>(t.by_vectors.d), count = t.planes * t.in_rows * vectors;
#pragma unroll 2
  for (int i = threadIdx.x; i < count; i += kTileThreads) {
    int row, at, plane, y;
    t.by_vectors.split(i, row, at);
    t.by_in_rows.split(row, plane, y);
    const T* src = plane_at(plane);
    const int64_t from_y = first_y + y, from_x = x0 + (t.wide ? 4 * at : at);
    const bool live = src != nullptr && from_y >= 0 && from_y < src_h && from_x >= 0 && from_x < src_w;
    if (t.wide) {
      Vec<float, 4> v = {};
      if (live) v = load_float<4, Cache::kReadOnly>(src + from_y * stride_y + from_x);
      store(tile + row * t.in_pitch + 4 * at, v);
    } else {
      tile[row * t.in_pitch + at] = live ? to_float(src[from_y * stride_y + from_x * stride_x]) : 0.0f;
    }
  }
}

}  // namespace fastdl
