// What the max-pool kernels share: sizes, windows, the comparison that decides a maximum.
#pragma once

#include "../max_pool2d.h"
#include "runtime.cuh"

namespace fastdl {
namespace max_pool2d {

constexpr int kThreads = 256;
constexpr int kBlocks =
    2;  // per multiprocessor at the least: left to itself the compiler spills to have eight

// Strides of an [N, C, H, W] tensor, in elements.
template <class Index>
struct Strides {
  Index n, c, h, w;
};

// n / d for 0 <= n < 2^31 (2^63) by one multiplication: the machine has no division.
template <class Index>
struct Divider {
  using Unsigned = std::make_unsigned_t<Index>;
  Index by;
  Unsigned factor;
  int shift;

  Divider() = default;
  explicit Divider(int64_t d) : by(static_cast<Index>(d)), shift(0) {
    constexpr int kBits = 8 * sizeof(Index);
    while ((uint64_t{1} << shift) < static_cast<uint64_t>(d)) ++shift;
    const auto rest = (uint64_t{1} << shift) - static_cast<uint64_t>(d);
    factor =
        static_cast<Unsigned>((static_cast<unsigned __int128>(rest) << kBits) / static_cast<uint64_t>(d) + 1);
  }
  __device__ __forceinline__ Index divide(Index n) const {
    Unsigned high;
    if constexpr (sizeof(Index) == 4) {
      high = __umulhi(static_cast<Unsigned>(n), factor);
    } else {
      high = __umul64hi(static_cast<Unsigned>(n), factor);
    }
    return static_cast<Index>((high + static_cast<Unsigned>(n)) >> shift);
  }
  // n becomes the quotient; the remainder.
  __device__ __forceinline__ Index cut(Index& n) const {
    const Index quotient = divide(n), remainder = n - quotient * by;
    n = quotient;
    return remainder;
  }
};

// The windows along one axis: window o covers the inputs o * stride - padding + k * dilation, 0 <= k <
// kernel.
struct HostAxis {
  int64_t size, outputs, kernel, stride, padding, dilation;
};
template <class Index>
struct Axis {
  Index size, outputs, kernel, stride, padding, dilation;
  Divider<Index> by_size, by_outputs, by_stride, by_dilation;

  explicit Axis(const HostAxis& a)
      : size(Index(a.size)),
        outputs(Index(a.outputs)),
        kernel(Index(a.kernel)),
        stride(Index(a.stride)),
        padding(Index(a.padding)),
        dilation(Index(a.dilation)),
        by_size(a.size),
        by_outputs(a.outputs),
        by_stride(a.stride),
        by_dilation(a.dilation) {}

  // Where a window that begins at `start` lies inside [0, size): the first k, and one past the last.
  __device__ __forceinline__ Index first(Index start) const {
    return start < 0 ? divide_by_dilation(dilation - 1 - start) : 0;
  }
  __device__ __forceinline__ Index end(Index start) const {
    const Index inside = start < size ? divide_by_dilation(size - 1 - start) + 1 : 0;
    return inside < kernel ? inside : kernel;
  }
  __device__ __forceinline__ Index divide_by_dilation(Index n) const {
    return dilation == 1 ? n : by_dilation.divide(n);
  }
  __device__ __forceinline__ Index divide_by_stride(Index n) const {
    return stride == 2 ? n / 2 : by_stride.divide(n);
  }
};

// K, S, P (both ways, without dilation) known at compile time; K == 0: nothing is.
template <class W, class Index>
__device__ __forceinline__ Axis<Index> fix(Axis<Index> axis) {
  if constexpr (W::K > 0) axis.kernel = W::K, axis.stride = W::S, axis.padding = W::P, axis.dilation = 1;
  return axis;
}

inline HostAxis axis(const Window& w, int i, int64_t size, int64_t outputs) {
  // one cell has no dilation and one window no stride, whatever huge numbers say so
  return {size,
          outputs,
          w.kernel_size[i],
          outputs > 1 ? w.stride[i] : 1,
          w.padding[i],
          w.kernel_size[i] > 1 ? w.dilation[i] : 1};
}
inline bool is(const HostAxis& a, int64_t k, int64_t s, int64_t p) {
  return a.kernel == k && a.padding == p && a.dilation == 1 && (a.stride == s || a.outputs == 1);
}

template <class Index>
Strides<Index> as(const Tensor& t) {
  return {Index(t.stride[0]), Index(t.stride[1]), Index(t.stride[2]), Index(t.stride[3])};
}

// The value beats the best so far: it is greater, or NaN. So the last NaN wins, and of equals the first.
// Starts from -inf and the first cell inside the input.
__device__ __forceinline__ void take(float& best, int& winner, float value, int cell) {
  if (value > best || value != value) best = value, winner = cell;
}

// ---- Host ----

// Elements from the first to one past the last.
inline int64_t extent(const Tensor& t) {
  int64_t last = 0;
  for (int i = 0; i < t.dim; ++i) last += (t.size[i] - 1) * t.stride[i];
  return last + 1;
}

// Whether 32-bit indices reach everything, windows that begin before or end behind the input included.
inline bool fits(const Tensor& large, const Tensor& small, const HostAxis& rows, const HostAxis& columns) {
  auto reach = [](const HostAxis& a, int64_t stride) {
    return (a.padding + a.outputs * a.stride + a.kernel * a.dilation + a.size) * stride;
  };
  const int64_t most = int64_t{1} << 31;
  return large.numel() < most - kThreads && small.numel() < most - kThreads && extent(small) < most &&
         extent(large) + reach(rows, large.stride[2]) + reach(columns, large.stride[3]) < most &&
         reach(rows, 1) < most && reach(columns, 1) < most;
}

// `items` threads.
template <class... Params, class... Args>
const char* launch_items(void (*kernel)(Params...), int64_t items, const Context* context, Args&&... args) {
  const int64_t blocks = ceil_div(items, int64_t{kThreads});
  if (blocks > kMaxGridX) return "a tensor too large for one launch";
  return describe(launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream_of(context),
                         std::forward<Args>(args)...));
}

// fn of the narrower index type or the wider one.
template <class F>
const char* dispatch_index(bool narrow, F&& fn) {
  return narrow ? fn(Type<int32_t>{}) : fn(Type<int64_t>{});
}

// fn of the window as compile-time constants, if it is one of the two of image networks (and kAny: there are
// such kernels).
template <int kK, int kS, int kP>
struct Fixed {
  static constexpr int K = kK, S = kS, P = kP;
};
template <bool kAny, class F>
const char* dispatch_window(const HostAxis& rows, const HostAxis& columns, F&& fn) {
  if constexpr (kAny) {
    if (is(rows, 2, 2, 0) && is(columns, 2, 2, 0)) return fn(Fixed<2, 2, 0>{});
    if (is(rows, 3, 2, 1) && is(columns, 3, 2, 1)) return fn(Fixed<3, 2, 1>{});
  }
  return fn(Fixed<0, 0, 0>{});
}

// Whether accesses of V elements side by side along axis `along` (stride 1) are aligned everywhere.
template <class T, int V>
bool vectors(const Tensor& t, int along) {
  if (t.stride[along] != 1 || t.size[along] % V != 0 || !aligned<T, V>(t.data)) return false;
  for (int i = 0; i < t.dim; ++i) {
    if (i != along && t.size[i] > 1 && t.stride[i] % V != 0) return false;
  }
  return true;
}

}  // namespace max_pool2d
}  // namespace fastdl
