// What the kernels for 1x1 convolutions share: how a range is cut into parts and the parts are spread.
#pragma once

#include "conv2d_direct.h"
#include "conv2d_pack.h"
#include "conv2d_product.h"
#include "parallel.h"

namespace fastdl::cpu {

// [0, size) in `count` parts of nearly as many units, each unit `unit` long.
struct Parts {
  Parts(int64_t size, int64_t unit, int64_t count)
      : size(size), unit(unit), units((size + unit - 1) / unit), count(count < units ? count : units) {}
  // Of at most `most` units.
  static Parts of(int64_t size, int64_t unit, int64_t most) {
    return {size, unit, (size + unit * most - 1) / (unit * most)};
  }
  int64_t begin(int64_t i) const {
    const int64_t at = units * i / count * unit;
    return at < size ? at : size;
  }
  int64_t length(int64_t i) const { return begin(i + 1) - begin(i); }

  int64_t size, unit, units, count;
};

// f(panel, slice, thread) for panels of pixels, each in slices of outputs where there are few panels.
template <class F>
void each_part(const Context* context, int64_t panels, int64_t slices, int64_t products, const F& f) {
  constexpr int64_t kGrain = 1 << 18;  // products worth a thread
  const int64_t items = panels * slices;
  int64_t threads = 1 + products / kGrain;
  if (threads > context->num_threads) threads = context->num_threads;
  parallel(context, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread) {
      for (int64_t item = items * thread / threads; item < items * (thread + 1) / threads; ++item) {
        f(item / slices, item % slices, thread);
      }
    }
  });
}

// Enough slices for every thread to have some work.
inline int64_t slices_for(const Context* context, int64_t panels) {
  return (2 * context->num_threads + panels - 1) / panels;
}

inline bool is_pointwise(const Problem& p) {
  return p.groups == 1 && p.kernel[0] == 1 && p.kernel[1] == 1 && p.padding[0] == 0 && p.padding[1] == 0;
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
