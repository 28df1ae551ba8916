// Forward, any window over planes with any strides.
//
// Row by row: an input row is copied between -inf into a line of floats; each output's best of its KW cells
// there is kept, for as many rows as a window spans; windows combine KH of these. So a row is looked at once,
// however many windows overlap it. Windows few and wide put their cells on the lanes instead.
#pragma once

#include "max_pool2d_forward.h"

namespace fastdl::cpu {

// kWidth elements `kStride` apart; kStride == 0: `stride` apart.
template <int kStride>
FASTDL_INLINE Vec load_apart(const float* p, int64_t stride) {
  if constexpr (kStride == 1) {
    return load(p);
  } else if constexpr (kStride == 2) {
    return even(load(p), load(p + kWidth));
  } else {
    Vec v{};
    for (int i = 0; i < kWidth; ++i) v[i] = p[i * stride];
    return v;
  }
}

// The rows' winners that the windows at hand need, and what they are made with. One per range of output rows.
struct RowWinners {
  static constexpr int64_t kMostBytes = 1 << 20;

  Axis rows, columns;
  int64_t padded_outputs, line_size, kept;  // outputs per row in whole vectors; floats of line; rows kept
  int64_t* number;                          // which input row a slot holds, or -1
  float* line;                              // column j - padding of a row at j
  int32_t* first;                           // per output the first cell inside the row
  float* value;                             // [kept][padded_outputs]
  int32_t* cell;
  float* best;  // [padded_outputs], of windows of more rows than are kept
  int32_t* winner;

  RowWinners(const Axis& rows, const Axis& columns) : rows(rows), columns(columns) {
    padded_outputs = (columns.outputs + kWidth - 1) / kWidth * kWidth;
    line_size = (padded_outputs - 1) * columns.stride + columns.span() + 2 * kWidth;
    kept = rows.span() * padded_outputs * 8 <= kMostBytes ? rows.span() : 1;
  }
  int64_t bytes() const {
    return (kept * 8 + line_size * 4 + padded_outputs * 12 + kept * padded_outputs * 8 + 63) / 64 * 64;
  }
  void lay_out(char* memory) {
    number = reinterpret_cast<int64_t*>(memory);
    line = reinterpret_cast<float*>(number + kept);
    best = line + line_size;
    value = best + padded_outputs;
    winner = reinterpret_cast<int32_t*>(value + kept * padded_outputs);
    cell = winner + padded_outputs;
    first = cell + kept * padded_outputs;
    for (int64_t j = 0; j < line_size; ++j) line[j] = kMinusInf;
    for (int64_t ow = 0; ow < padded_outputs; ++ow) {
      first[ow] = static_cast<int32_t>(columns.first(columns.start(ow)));
    }
  }
  void forget() {
    for (int64_t i = 0; i < kept; ++i) number[i] = -1;
  }

  // The slot of input row h, p[0], p[stride], ...
  template <int kStride, class T>
  int64_t row(int64_t h, const T* p, int64_t stride) {
    const int64_t slot = h % kept;
    if (number[slot] == h) return slot;
    number[slot] = h;
    float* inside = line + columns.padding;
    const int64_t room = line_size - columns.padding, width = columns.size < room ? columns.size : room;
    int64_t w = 0;
    if (stride == 1) {
      for (; w + kWidth <= width; w += kWidth) store(inside + w, load(p + w));
    }
    for (; w < width; ++w) inside[w] = to_float(p[w * stride]);
    for (int64_t ow = 0; ow < padded_outputs; ow += kWidth) {
      Vec row_best = splat(kMinusInf);
      IVec row_winner = load(first + ow);
      const float* at = line + ow * columns.stride;
      for (int64_t kw = 0; kw < columns.kernel; ++kw, at += columns.dilation) {
        take(row_best, row_winner, load_apart<kStride>(at, columns.stride), splat(static_cast<int32_t>(kw)));
      }
      store(value + slot * padded_outputs + ow, row_best);
      store(cell + slot * padded_outputs + ow, row_winner);
    }
    return slot;
  }
};

template <int kStride, class T, class O>
void pool_window_row(const PoolForward<T, O>& call, RowWinners& kept, const T* x, int64_t oh, T* out,
                     O* offsets) {
  const Axis& rows = kept.rows;
  const int64_t top = rows.start(oh), first = rows.first(top), end = rows.end(top),
                width = kept.columns.outputs;
  const int64_t kernel = kept.columns.kernel, together = kept.kept > 1 ? rows.kernel : 1;
  int64_t kh = first;
  do {  // once also where no row is inside
    const int64_t until = kh + together < end ? kh + together : end;
    for (int64_t k = kh; k < until; ++k) {
      const int64_t h = top + k * rows.dilation;
      kept.row<kStride>(h, x + h * call.x_h, call.x_w);
    }
    for (int64_t ow = 0; ow < width; ow += kWidth) {
      Vec best = splat(kMinusInf);
      IVec winner = load(kept.first + ow) + static_cast<int32_t>(first * kernel);
      if (kh > first) best = load(kept.best + ow), winner = load(kept.winner + ow);
      for (int64_t k = kh; k < until; ++k) {
        const int64_t at = (top + k * rows.dilation) % kept.kept * kept.padded_outputs + ow;
        take(best, winner, load(kept.value + at), load(kept.cell + at) + static_cast<int32_t>(k * kernel));
      }
      if (until < end) {
        store(kept.best + ow, best), store(kept.winner + ow, winner);
      } else if (call.out_w == 1) {
        store(out + ow, best, width - ow);
        store_cells(offsets + ow, winner, width - ow);
      } else {
        for (int64_t i = 0; i < kWidth && ow + i < width; ++i) {
          out[(ow + i) * call.out_w] = from_float<T>(best[i]);
          store_cell(offsets + (ow + i) * call.out_w, winner[i]);
        }
      }
    }
    kh = until;
  } while (kh < end);
}

template <class T, class O>
const char* pool_windows(const PoolForward<T, O>& call) {
  RowWinners shared(call.rows, call.columns);
  const int64_t rows = call.n * call.c * call.rows.outputs, grain = call.grain(call.columns.outputs);
  int64_t ranges = call.context->num_threads;
  if (ranges > rows / grain) ranges = rows / grain;
  if (ranges < 1) ranges = 1;
  char* memory = static_cast<char*>(call.context->allocate(call.context, ranges * shared.bytes()));
  if (memory == nullptr) return "out of memory";
  parallel(call.context, ranges, 1, [&](int64_t range, int64_t range_end) {
    for (; range < range_end; ++range) {
      RowWinners kept = shared;
      kept.lay_out(memory + range * shared.bytes());
      auto plane = [&](const T* x, T* out, O* offsets, int64_t oh, int64_t oh_end) {
        kept.forget();
        for (; oh < oh_end; ++oh) {
          T* out_row = out + oh * call.out_h;
          O* offsets_row = offsets + oh * call.out_h;
          if (call.columns.stride == 1) {
            pool_window_row<1>(call, kept, x, oh, out_row, offsets_row);
          } else if (call.columns.stride == 2) {
            pool_window_row<2>(call, kept, x, oh, out_row, offsets_row);
          } else {
            pool_window_row<0>(call, kept, x, oh, out_row, offsets_row);
          }
        }
      };
      each_plane(call, rows * range / ranges, rows * (range + 1) / ranges, plane);
    }
  });
  return nullptr;
}

// ------------------------------------------------------------------------------ cells on the lanes

// Lane by lane the winner of two: a NaN over a number, the later NaN, the greater number, the earlier of
// equals.
FASTDL_INLINE void merge(Vec& best, IVec& winner, Vec other, IVec other_winner) {
  const IVec nan = best != best, other_nan = other != other, later = other_winner > winner;
  const IVec better = (other_nan & (~nan | later)) | (~nan & ((other > best) | ((other == best) & ~later)));
  best = select(better, other, best);
  winner = select(better, other_winner, winner);
}

// The window of one output, unit strides within a row.
template <class T>
FASTDL_INLINE void pool_cells(const T* x, int64_t x_h, const Axis& rows, const Axis& columns, int64_t top,
                              int64_t left, float& value, int64_t& cell) {
  constexpr int32_t kNone = 0x7fffffff;
  constexpr int kChains = 4;
  Vec best[kChains];
  IVec winner[kChains];
  for (int i = 0; i < kChains; ++i) best[i] = splat(kMinusInf), winner[i] = splat(kNone);
  const int64_t kw_first = columns.first(left), kw_end = columns.end(left), kh_end = rows.end(top);
  for (int64_t kh = rows.first(top); kh < kh_end; ++kh) {
    const T* p = x + (top + kh * rows.dilation) * x_h + left;
    int64_t kw = kw_first;
    const int32_t row = static_cast<int32_t>(kh * columns.kernel);
    for (; kw + kChains * kWidth <= kw_end; kw += kChains * kWidth) {
      for (int i = 0; i < kChains; ++i) {
        const int64_t k = kw + i * kWidth;
        take(best[i], winner[i], load(p + k), iota() + (row + static_cast<int32_t>(k)));
      }
    }
    for (; kw < kw_end; kw += kWidth) {
      take(best[0], winner[0], load_first(p + kw, kw_end - kw, kMinusInf),
           iota() + (row + static_cast<int32_t>(kw)));
    }
  }
  merge(best[0], winner[0], best[1], winner[1]);
  merge(best[2], winner[2], best[3], winner[3]);
  merge(best[0], winner[0], best[2], winner[2]);
  const uint32_t nan = bits(best[0] != best[0]);
  value = nan ? __builtin_nanf("") : max(best[0]);
  const uint32_t candidates = nan ? nan : bits(best[0] == value);
  int32_t found = nan ? -1 : kNone;
  for (uint32_t rest = candidates; rest != 0; rest &= rest - 1) {
    const int32_t lane = winner[0][__builtin_ctz(rest)];
    if (nan ? lane > found : lane < found) found = lane;
  }
  cell = found != kNone ? found : rows.first(top) * columns.kernel + columns.first(left);
}

template <class T, class O>
void pool_wide_windows(const PoolForward<T, O>& call) {
  const Axis rows = call.rows, columns = call.columns;
  parallel(call.context, call.n * call.c * rows.outputs, call.grain(columns.outputs),
           [&](int64_t begin, int64_t end) {
             each_plane(call, begin, end, [&](const T* x, T* out, O* offsets, int64_t oh, int64_t oh_end) {
               for (; oh < oh_end; ++oh) {
                 for (int64_t ow = 0; ow < columns.outputs; ++ow) {
                   float value;
                   int64_t cell;
                   pool_cells(x, call.x_h, rows, columns, rows.start(oh), columns.start(ow), value, cell);
                   out[oh * call.out_h + ow * call.out_w] = from_float<T>(value);
                   store_cell(offsets + oh * call.out_h + ow * call.out_w, cell);
                 }
               }
             });
           });
}

}  // namespace fastdl::cpu
