// What the forward kernels of max_pool2d are handed.
#pragma once

#include <type_traits>

#include "max_pool2d.h"

namespace fastdl::cpu {

// No offsets are wanted: stores of cells are nothing, and the compiler drops what only they need.
struct NoCells {};
FASTDL_INLINE void store_cells(NoCells*, IVec) {}
FASTDL_INLINE void store_cells(NoCells*, IVec, int64_t) {}
template <class O>
FASTDL_INLINE void store_cell(O* p, int64_t cell) {
  if constexpr (!std::is_same_v<O, NoCells>) *p = static_cast<O>(cell);
}

template <class T, class O>
struct PoolForward {
  const T* x;
  T* out;
  O* offsets;  // out's strides
  int64_t n, c;
  Axis rows, columns;
  int64_t x_n, x_c, x_h, x_w, out_n, out_c, out_h, out_w;
  Context* context;

  int64_t cells() const { return rows.kernel * columns.kernel; }
  // Outputs of `cells` looked at each that are worth a thread.
  int64_t grain(int64_t outputs_per_item) const {
    const int64_t items = 32768 / (outputs_per_item * (cells() < 64 ? cells() : 64));
    return items > 0 ? items : 1;
  }
};

// f(x plane, out plane, offsets plane, first row, end row) over the output rows [begin, end) of all planes.
template <class T, class O, class F>
void each_plane(const PoolForward<T, O>& call, int64_t begin, int64_t end, const F& f) {
  const int64_t height = call.rows.outputs;
  while (begin < end) {
    const int64_t plane = begin / height, oh = begin % height;
    const int64_t oh_end = end - begin < height - oh ? oh + end - begin : height;
    const int64_t n = plane / call.c, c = plane % call.c;
    const int64_t to = n * call.out_n + c * call.out_c;
    f(call.x + n * call.x_n + c * call.x_c, call.out + to, call.offsets + to, oh, oh_end);
    begin += oh_end - oh;
  }
}

}  // namespace fastdl::cpu
