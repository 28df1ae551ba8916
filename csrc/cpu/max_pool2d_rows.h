// Forward, NCHW, the two windows of image networks: 2x2 of stride 2, and 3x3 of stride 2 and padding 1. A
// vector of neighbouring outputs takes its columns by lanes: of 2 * kWidth inputs the even ones are column 0
// (of 2) or 1 (of 3), the odd ones the next, and the odd ones moved up by one lane column 0 of 3.
#pragma once

#include "max_pool2d_forward.h"

namespace fastdl::cpu {

// One row of K cells per window, beginning at p[2 * ow - K + 2]. From p[2 * ow] on the row has `left` inputs,
// and `readable` elements may be touched.
template <int K, class T>
FASTDL_INLINE void columns_of(const T* p, int64_t ow, int64_t left, int64_t readable, Vec (&column)[K]) {
  const T* at = p + 2 * ow;
  Vec a, b;
  if (__builtin_expect(left >= 2 * kWidth, 1)) {
    a = load(at), b = load(at + kWidth);
  } else if (readable >= 2 * kWidth) {
    const int32_t inputs = static_cast<int32_t>(left);
    a = select(iota() < inputs, load(at), splat(kMinusInf));
    b = select(iota() + kWidth < inputs, load(at + kWidth), splat(kMinusInf));
  } else {
    a = load_first(at, left, kMinusInf), b = load_first(at + kWidth, left - kWidth, kMinusInf);
  }
  column[K - 2] = even(a, b);
  column[K - 1] = odd(a, b);
  if constexpr (K == 3) column[0] = shift_in(ow > 0 ? to_float(at[-1]) : kMinusInf, column[2]);
}

// One row of outputs from the rows [first, end) of its windows, `p` being row 0, from which on `readable`
// elements may be touched; of the outputs `writable` may be written for the time being.
template <int K, bool kInside, class T, class O>
FASTDL_INLINE void pool_row(const T* p, int64_t x_h, int first, int end, int64_t width, int64_t outputs,
                            int64_t readable, int64_t writable, T* out, O* offsets) {
  if constexpr (kInside) first = 0, end = K;
  IVec padded{};  // the first output's column 0 is padding
  if constexpr (K == 3) padded[0] = 1;
  for (int64_t next = 0; next < outputs; next += kWidth) {
    // the last vector ends with the row, over what the one before it wrote
    const int64_t ow = next + kWidth > outputs && outputs >= kWidth ? outputs - kWidth : next;
    Vec column[K];
    columns_of(p + first * x_h, ow, width - 2 * ow, readable - first * x_h - 2 * ow, column);
    Vec best = column[0];
    IVec winner = splat(first * K) + (ow == 0 ? padded : IVec{});
    for (int kw = 1; kw < K; ++kw) take(best, winner, column[kw], splat(first * K + kw));
#pragma GCC unroll 2
    for (int kh = first + 1; kh < end; ++kh) {
      columns_of(p + kh * x_h, ow, width - 2 * ow, readable - kh * x_h - 2 * ow, column);
      for (int kw = 0; kw < K; ++kw) take(best, winner, column[kw], splat(kh * K + kw));
    }
    const int64_t lanes = ow + kWidth <= writable ? kWidth : outputs - ow;
    store(out + ow, best, lanes);
    store_cells(offsets + ow, winner, lanes);
  }
}

template <int K, class T, class O>
void pool_rows(const PoolForward<T, O>& call) {
  const Axis rows = call.rows;
  const int64_t width = call.columns.size, outputs = call.columns.outputs, x_h = call.x_h, out_h = call.out_h;
  const int64_t total = call.n * call.c * rows.outputs, plane = rows.size * width;
  const bool dense_x = x_h == width && call.x_c == plane && call.x_n == call.c * plane;
  const bool dense_out =
      out_h == outputs && call.out_c == rows.outputs * outputs && call.out_n == call.c * call.out_c;
  const bool spill = dense_out && outputs < kWidth;
  const T* x_end = call.x + call.n * call.c * plane;
  parallel(call.context, total, call.grain(outputs), [&](int64_t begin, int64_t end) {
    // what lies behind a row of a dense output is ours to overwrite if it is written after it
    const T* out_end = call.out + end * outputs;
    each_plane(call, begin, end, [&](const T* x, T* out, O* offsets, int64_t oh, int64_t oh_end) {
      for (; oh < oh_end; ++oh) {
        const int64_t top = rows.start(oh);
        const T* p = x + top * x_h;
        T* to = out + oh * out_h;
        const int64_t readable = dense_x ? x_end - p : 0, writable = spill ? out_end - to : outputs;
        const int first = static_cast<int>(rows.first(top)), last = static_cast<int>(rows.end(top));
        if (first == 0 && last == K) {
          pool_row<K, true>(p, x_h, 0, K, width, outputs, readable, writable, to, offsets + oh * out_h);
        } else {
          pool_row<K, false>(p, x_h, first, last, width, outputs, readable, writable, to,
                             offsets + oh * out_h);
        }
      }
    });
  });
}

}  // namespace fastdl::cpu
