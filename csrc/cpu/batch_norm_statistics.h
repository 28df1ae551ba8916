// Sums over a channel: of x and its square about a pivot, for the batch's statistics, or of any two terms
// (backward).
//
// In float64, as torch's on a CPU: sums whose terms nearly cancel keep their digits. The pivot, which does so
// for a mean far above the deviation, is the mean of a sample, taken about the channel's first value: a
// constant channel has the pivot for mean and variance 0 exactly.
#pragma once

#include "batch_norm_layout.h"

namespace fastdl::cpu::batch_norm {

constexpr int64_t kSample = 16;  // runs or rows that are looked at for a pivot

// A pivot; 0 for infinity, as inf - inf is NaN.
inline float finite_pivot(float mean) { return std::abs(mean) <= 3.4028235e38f ? mean : 0.0f; }

// The sample: a vector from each of some runs, at places spread over the channel.
template <class T>
float plane_pivot(const T* x, const Layout& l, int64_t c) {
  int64_t samples = std::min(kSample, std::max(l.n, l.s / kWidth));
  int64_t n = std::min<int64_t>(l.s, kWidth);
  float origin = to_float(x[c * l.s]);
  Vec sum{};
  for (int64_t i = 0; i < samples; ++i) {
    const T* run = x + (i * l.n / samples * l.c + c) * l.s + i * (l.s - n) / samples;
    sum += Part{n}.keep(Part{n}.load(run) - origin);
  }
  return finite_pivot(origin + cpu::sum(sum) / static_cast<float>(samples * n));
}

// The sample: rows spread over the matrix. The pivot of a channel is that of its first column.
template <class T>
void row_pivots(const T* x, const Layout& l, float* pivot) {
  int64_t rows = std::max<int64_t>(1, l.numel / l.length), samples = std::min(kSample, rows);
  int64_t columns = l.columns(0);
  for (int64_t j = 0; j < columns; ++j) pivot[j] = 0.0f;
  for (int64_t i = 0; i < samples; ++i) {
    const T* row = x + i * rows / samples * l.length;
    sweep(columns, [&](int64_t j, auto part, int) {
      part.store(pivot + j, part.load(pivot + j) + part.keep(part.load(row + j) - part.load(x + j)));
    });
  }
  for (int64_t c = 0; c < l.c; ++c)
    pivot[c] = finite_pivot(to_float(x[c * l.s]) + pivot[c * l.s] / static_cast<float>(samples));
}

// Two sums per channel of a box. terms(begin, n, c, two): adds those of the run of n values at `begin` to the
// vectors two[0] and two[1]. sums: [c1 - c0][2].
template <class F>
void plane_sums(const Layout& l, const Box& box, double* sums, const F& terms) {
  Wide two[kGroup][2];
  const int64_t channels = box.c1 - box.c0;
  for (int64_t n = box.n0; n < box.n1; ++n)
    for (int64_t i = 0; i < channels; ++i)
      terms((n * l.c + box.c0 + i) * l.s + box.s0, box.s1 - box.s0, box.c0 + i, two[i]);
  for (int64_t i = 0; i < channels; ++i)
    for (int k = 0; k < 2; ++k) sums[2 * i + k] = sum(two[i][k]);
}

// Sums of the columns of rows [begin, end), two at a time. terms(row, rows, columns, sums): adds those of 1
// or kRows rows to the arrays sums[0] and sums[1] [length].
constexpr int64_t kRows = 16;

struct RowSums {
  double* of[2];

  static int64_t bytes(const Layout& l) { return 2 * (l.length + kWidth) * 8 + 2 * 64; }
  void take(Scratch& scratch, const Layout& l) {
    for (double*& column : of) column = scratch.take<double>(l.length + kWidth);
  }
};

template <class F>
void row_sums(const Layout& l, int64_t begin, int64_t end, const RowSums& sums, const F& terms) {
  for (double* column : sums.of) std::fill(column, column + l.length + kWidth, 0.0);
  const int64_t whole = std::min(end, l.numel / l.length);
  int64_t row = begin;
  for (; row + kRows <= whole; row += kRows)
    terms(row, std::integral_constant<int64_t, kRows>{}, l.length, sums.of);
  for (; row < end; ++row) terms(row, std::integral_constant<int64_t, 1>{}, l.columns(row), sums.of);
}

// The channels' sums [C][2] from those of the parts' columns, in index order.
inline void combine_rows(const Layout& l, const RowSums* parts, int64_t count, double* sums) {
  for (int k = 0; k < 2; ++k) {
    double* total = parts[0].of[k];
    for (int64_t i = 1; i < count; ++i)
      for (int64_t j = 0; j < l.length; ++j) total[j] += parts[i].of[k][j];
    for (int64_t c = 0; c < l.c; ++c) {
      double sum = 0.0;
      for (int64_t joined = 0; joined < l.length; joined += l.c * l.s)
        for (int64_t s = 0; s < l.s; ++s) sum += total[joined + c * l.s + s];
      sums[2 * c + k] = sum;
    }
  }
}

// Mean and the sum of (x - mean)^2 from the sums about a pivot.
struct Moments {
  double mean, m2;
};
inline Moments moments_of(double pivot, double sum, double squares, int64_t count) {
  double m2 = squares - sum / static_cast<double>(count) * sum;
  if (m2 < 0.0) m2 = 0.0;
  return {pivot + sum / static_cast<double>(count), m2};
}

// sum (x - pivot) and sum (x - pivot)^2 of a run.
template <class T>
FASTDL_INLINE void moment_terms(const T* x, int64_t n, Vec pivot, Wide* two) {
  constexpr int kUnroll = 2;
  const Wide origin = widen(pivot);
  Wide sum[kUnroll] = {two[0]}, squares[kUnroll] = {two[1]};
  sweep<kUnroll>(n, [&](int64_t j, auto part, int u) {
    const Wide d = widen(part.keep(part.load(x + j), pivot)) - origin;
    sum[u] += d;
    squares[u] = fma(d, d, squares[u]);
  });
  for (int u = 1; u < kUnroll; ++u) sum[0] += sum[u], squares[0] += squares[u];
  two[0] = sum[0];
  two[1] = squares[0];
}

// The same of the columns of some rows.
template <class T, int64_t rows>
FASTDL_INLINE void moment_terms(const T* x, int64_t stride, int64_t columns, const float* pivot,
                                double* const* sums) {
  sweep(columns, [&](int64_t j, auto part, int) {
    const Vec p = cpu::load(pivot + j);
    const Wide origin = widen(p);
    Wide sum = cpu::load(sums[0] + j), squares = cpu::load(sums[1] + j);
    for (int64_t r = 0; r < rows; ++r) {
      const Wide d = widen(part.keep(part.load(x + r * stride + j), p)) - origin;
      sum += d;
      squares = fma(d, d, squares);
    }
    cpu::store(sums[0] + j, sum);
    cpu::store(sums[1] + j, squares);
  });
}

}  // namespace fastdl::cpu::batch_norm
