// Sums over a channel: of x and its square about a pivot, for the batch's statistics, or of any two terms
// (backward).
//
// float32 over at most `chunk` values, float64 from there on, so that neither long sums nor a mean far
// above the deviation costs digits. The pivot is the mean of a sample, taken about the channel's first value:
// a constant channel has the pivot for mean and variance 0 exactly.
#pragma once

#include "batch_norm_layout.h"

namespace fastdl::cpu::batch_norm {

constexpr int64_t kSample = 16;  // runs or rows that are looked at for a pivot

// A pivot near `mean`: a value of T, so that x - pivot is exact for most x of few digits (the roundings of
// many equal x would not cancel out); 0 for infinity, as inf - inf is NaN.
template <class T>
float pivot_near(float mean) {
  float pivot = to_float(from_float<T>(mean));
  return std::abs(pivot) <= 3.4028235e38f ? pivot : 0.0f;
}

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
  return pivot_near<T>(origin + cpu::sum(sum) / static_cast<float>(samples * n));
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
    pivot[c] = pivot_near<T>(to_float(x[c * l.s]) + pivot[c * l.s] / static_cast<float>(samples));
}

FASTDL_INLINE double wide_sum(Vec v) {
  typedef double Wide __attribute__((vector_size(kWidth * 8)));
  Wide x = __builtin_convertvector(v, Wide);
  for (int half = kWidth / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) x[i] += x[i + half];
  return x[0];
}

// Two sums per channel of a box. terms(begin, n, c, two): adds those of the run of n values at `begin` to the
// vectors two[0] and two[1]. sums: [c1 - c0][2].
template <class F>
void plane_sums(const Layout& l, const Box& box, double* sums, const F& terms) {
  Vec two[kGroup][2] = {};
  int64_t channels = box.c1 - box.c0, pending = 0;
  std::fill(sums, sums + 2 * channels, 0.0);
  auto flush = [&] {
    for (int64_t i = 0; i < channels; ++i) {
      for (int k = 0; k < 2; ++k) {
        sums[2 * i + k] += wide_sum(two[i][k]);
        two[i][k] = Vec{};
      }
    }
    pending = 0;
  };
  for (int64_t n = box.n0; n < box.n1; ++n) {
    for (int64_t s = box.s0; s < box.s1; s += l.chunk) {
      int64_t size = std::min(l.chunk, box.s1 - s);
      if (pending + size > l.chunk) flush();
      for (int64_t i = 0; i < channels; ++i)
        terms((n * l.c + box.c0 + i) * l.s + s, size, box.c0 + i, two[i]);
      pending += size;
    }
  }
  flush();
}

// Sums of the columns of rows [begin, end), two at a time. terms(row, rows, columns, narrow): adds those of 1
// or kRows rows to the float32 arrays narrow[0] and narrow[1] [length]. sums: [2][length].
constexpr int64_t kRows = 4;

struct RowSums {
  float* narrow[2];
  double* wide[2];

  static int64_t bytes(const Layout& l) { return 2 * (l.length + kWidth) * 12 + 4 * 64; }
  void take(Scratch& scratch, const Layout& l) {
    for (int k = 0; k < 2; ++k) {
      narrow[k] = scratch.take<float>(l.length + kWidth);
      wide[k] = scratch.take<double>(l.length + kWidth);
    }
  }
};

template <class F>
void row_sums(const Layout& l, int64_t begin, int64_t end, const RowSums& sums, const F& terms) {
  const int64_t flush = std::min<int64_t>(256, l.chunk / kWidth);  // rows
  for (int k = 0; k < 2; ++k) {
    std::fill(sums.narrow[k], sums.narrow[k] + l.length, 0.0f);
    std::fill(sums.wide[k], sums.wide[k] + l.length, 0.0);
  }
  int64_t whole = std::min(end, l.numel / l.length);
  for (int64_t block = begin; block < end; block += flush) {
    int64_t last = std::min(block + flush, end), row = block;
    for (; row + kRows <= std::min(last, whole); row += kRows)
      terms(row, std::integral_constant<int64_t, kRows>{}, l.length, sums.narrow);
    for (; row < last; ++row) terms(row, std::integral_constant<int64_t, 1>{}, l.columns(row), sums.narrow);
    for (int k = 0; k < 2; ++k) {
      for (int64_t j = 0; j < l.length; ++j) sums.wide[k][j] += sums.narrow[k][j];
      std::fill(sums.narrow[k], sums.narrow[k] + l.length, 0.0f);
    }
  }
}

// The channels' sums [C][2] from those of the parts' columns, in index order.
inline void combine_rows(const Layout& l, const RowSums* parts, int64_t count, double* sums) {
  for (int k = 0; k < 2; ++k) {
    double* total = parts[0].wide[k];
    for (int64_t i = 1; i < count; ++i)
      for (int64_t j = 0; j < l.length; ++j) total[j] += parts[i].wide[k][j];
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
FASTDL_INLINE void moment_terms(const T* x, int64_t n, Vec pivot, Vec* two) {
  constexpr int kUnroll = 4;
  Vec sum[kUnroll] = {two[0]}, squares[kUnroll] = {two[1]};
  sweep<kUnroll>(n, [&](int64_t j, auto part, int u) {
    Vec d = part.keep(part.load(x + j) - pivot);
    sum[u] += d;
    squares[u] = fma(d, d, squares[u]);
  });
  two[0] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  two[1] = (squares[0] + squares[1]) + (squares[2] + squares[3]);
}

// The same of the columns of some rows.
template <class T, int64_t rows>
FASTDL_INLINE void moment_terms(const T* x, int64_t stride, int64_t columns, const float* pivot,
                                float* const* sums) {
  sweep(columns, [&](int64_t j, auto part, int) {
    Vec p = cpu::load(pivot + j), sum{}, squares{};
    for (int64_t r = 0; r < rows; ++r) {
      Vec d = part.keep(part.load(x + r * stride + j) - p);
      sum += d;
      squares = fma(d, d, squares);
    }
    part.store(sums[0] + j, part.load(sums[0] + j) + sum);
    part.store(sums[1] + j, part.load(sums[1] + j) + squares);
  });
}

}  // namespace fastdl::cpu::batch_norm
