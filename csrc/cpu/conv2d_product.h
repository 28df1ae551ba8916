// A tile of a matrix product, in registers: some rows times some vectors of columns.
#pragma once

#include "conv2d_layout.h"
#include "vec.h"

namespace fastdl::cpu {

// What is added to the sums: a bias per row or per column, or what out holds.
enum class Plus { kRow, kColumn, kOut };

// out[r * out_row + i] = max(floor, plus + sum over d of a[r * a_row + d * a_depth] * b[d * b_pitch + i])
struct Product {
  const float* a;
  int64_t a_row, a_depth;
  const float* b;  // whole vectors of each d are read
  int64_t b_pitch;
  int64_t depth;
  const float* bias;  // for columns in whole vectors
  float floor;
  float* out;
  int64_t out_row;
  int64_t columns;  // that are written

  static constexpr int kRows = 6, kSummed = 64;  // terms whose sum is one term of the total: see kSummedTaps
#if defined(__AVX512F__)
  static constexpr int kVectors = 4;
#else
  static constexpr int kVectors = 2;
#endif
};

template <Plus kPlus, int ROWS, int VECTORS>
void product_tile(const Product& p) {
  Vec acc[ROWS][VECTORS];
  FASTDL_UNROLL
  for (int r = 0; r < ROWS; ++r) {
    FASTDL_UNROLL
    for (int v = 0; v < VECTORS; ++v) {
      acc[r][v] = kPlus == Plus::kRow      ? broadcast(p.bias[r])
                  : kPlus == Plus::kColumn ? load(p.bias + v * kWidth)
                                           : Vec{};
    }
  }
  float total[ROWS * VECTORS * kWidth];  // of what went before, where it is that deep
  const float *a = p.a, *b = p.b;
  for (int64_t first = 0; first < p.depth; first += Product::kSummed) {
    if (first > 0) {
      FASTDL_UNROLL
      for (int i = 0; i < ROWS * VECTORS; ++i) {
        Vec& sum = acc[i / VECTORS][i % VECTORS];
        store(total + i * kWidth, first == Product::kSummed ? sum : load(total + i * kWidth) + sum);
        sum = Vec{};
      }
    }
    const int64_t last = first + Product::kSummed < p.depth ? first + Product::kSummed : p.depth;
    for (int64_t d = first; d < last; ++d, a += p.a_depth, b += p.b_pitch) {
      Vec in[VECTORS];
      FASTDL_UNROLL
      for (int v = 0; v < VECTORS; ++v) in[v] = load(b + v * kWidth);
      FASTDL_UNROLL
      for (int r = 0; r < ROWS; ++r) {
        const Vec factor = broadcast(a[r * p.a_row]);
        FASTDL_UNROLL
        for (int v = 0; v < VECTORS; ++v) acc[r][v] = fma(factor, in[v], acc[r][v]);
      }
    }
  }
  FASTDL_UNROLL
  for (int r = 0; r < ROWS; ++r) {
    FASTDL_UNROLL
    for (int v = 0; v < VECTORS; ++v) {
      if (p.depth > Product::kSummed) acc[r][v] += load(total + (r * VECTORS + v) * kWidth);
      float* out = p.out + r * p.out_row + v * kWidth;
      const int64_t n = p.columns - v * kWidth;
      if (kPlus == Plus::kOut) acc[r][v] += load(out, n);
      store(out, max(broadcast(p.floor), acc[r][v]), n);
    }
  }
}

// The same for any number of rows, in tiles of nearly one size; at most kVectors vectors of columns.
template <Plus kPlus, int VECTORS>
void product_rows(Product p, int64_t rows) {
  using Tile = void (*)(const Product&);
  static constexpr Tile kTiles[Product::kRows] = {
      product_tile<kPlus, 1, VECTORS>, product_tile<kPlus, 2, VECTORS>, product_tile<kPlus, 3, VECTORS>,
      product_tile<kPlus, 4, VECTORS>, product_tile<kPlus, 5, VECTORS>, product_tile<kPlus, 6, VECTORS>,
  };
  for (int64_t tiles = (rows + Product::kRows - 1) / Product::kRows; tiles > 0; --tiles) {
    const int64_t n = (rows + tiles - 1) / tiles;
    kTiles[n - 1](p);
    p.a += n * p.a_row;
    p.out += n * p.out_row;
    if (kPlus == Plus::kRow) p.bias += n;
    rows -= n;
  }
}

template <Plus kPlus>
void product(const Product& p, int64_t rows) {
  using Rows = void (*)(Product, int64_t);
  static constexpr Rows kRows[Product::kVectors] = {
      product_rows<kPlus, 1>,
      product_rows<kPlus, 2>,
#if defined(__AVX512F__)
      product_rows<kPlus, 3>,
      product_rows<kPlus, 4>,
#endif
  };
  kRows[(p.columns + kWidth - 1) / kWidth - 1](p, rows);
}

}  // namespace fastdl::cpu
