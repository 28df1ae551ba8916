// What the kernels for 1x1 convolutions share: how the work is spread, and where pixels are.
#pragma once

#include "conv2d_direct.h"
#include "conv2d_pack.h"
#include "conv2d_product.h"
#include "parallel.h"
#include "parts.h"

namespace fastdl::cpu {

// f(panel, slice, thread) for panels of pixels, each in slices of outputs where there are few panels.
template <class F>
void each_part(const Context* context, int64_t panels, int64_t slices, int64_t products, const F& f) {
  constexpr int64_t kGrain = 1 << 18;  // products worth a thread
  const int64_t threads = least(context->num_threads, 1 + products / kGrain);
  share_out(context, panels * slices, threads, [&](int64_t begin, int64_t end, int64_t thread) {
    for (int64_t item = begin; item < end; ++item) f(item / slices, item % slices, thread);
  });
}

// Enough slices for every thread to have some work.
inline int64_t slices_for(const Context* context, int64_t panels) {
  return ceil_div(2 * context->num_threads, panels);
}

// Where pixel i of an image's outputs is in memory, a row being `width` of them.
struct Pixels {
  int64_t at(int64_t i) const { return i / width * row + i % width * column; }
  // From each to the next; 0 if that varies.
  int64_t step(int64_t rows) const {
    if (width == 1) return row;
    return rows == 1 || row == width * column ? column : 0;
  }
  int64_t width, row, column;
};
inline Pixels pixels_of(const Tensor& x, const Problem& p) {
  return {p.out_size[1], p.stride[0] * x.stride[2], p.stride[1] * x.stride[3]};
}

}  // namespace fastdl::cpu
