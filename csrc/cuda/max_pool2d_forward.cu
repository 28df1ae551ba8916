// max_pool2d forward. Every thread takes a vector of outputs side by side: of channels (channels_last), of
// columns (2x2 of stride 2 and 3x3s2 of padding 1, in planes), or one output. Windows that are large and few
// are cut into slices.
#include "max_pool2d_common.cuh"

namespace fastdl {
namespace max_pool2d {
namespace {

// No offsets are wanted.
struct NoCells {};

template <class T, class O, class Index>
struct Forward {
  const T* x;
  T* out;
  O* offsets;                 // out's strides
  Divider<Index> by_vectors;  // of the axis that threads run along
  Divider<Index> by_c;
  Axis<Index> rows, columns;
  Strides<Index> from, to;
  Index items;
};

template <class O, int V>
__device__ __forceinline__ void store_cells(O* p, const int (&cell)[V]) {
  if constexpr (!std::is_same_v<O, NoCells>) {
    Vec<O, V> narrow;
#pragma unroll
    for (int i = 0; i < V; ++i) narrow[i] = static_cast<O>(cell[i]);
    store(p, narrow);
  }
}

// V outputs along the channels (V == 1: of any strides) per thread.
template <class W, int V, class T, class O, class Index>
__global__ void __launch_bounds__(kThreads, kBlocks) pool(Forward<T, O, Index> f, bool channels_last) {
  const Index item = static_cast<Index>(global_thread());
  if (item >= f.items) return;
  const Axis<Index> rows = fix<W>(f.rows), columns = fix<W>(f.columns);
  Index n = item, c, oh, ow;
  if (V > 1 || channels_last) {  // in memory order
    c = f.by_vectors.cut(n) * V, ow = columns.by_outputs.cut(n), oh = rows.by_outputs.cut(n);
  } else {
    ow = columns.by_outputs.cut(n), oh = rows.by_outputs.cut(n), c = f.by_c.cut(n);
  }
  const Index top = oh * rows.stride - rows.padding, left = ow * columns.stride - columns.padding;
  const Index kh = rows.first(top), kw = columns.first(left), kh_end = rows.end(top),
              kw_end = columns.end(left);
  const T* corner = f.x + (n * f.from.n + c * f.from.c + top * f.from.h + left * f.from.w);
  float best[V];
  int winner[V];
#pragma unroll
  for (int i = 0; i < V; ++i) best[i] = -INFINITY, winner[i] = static_cast<int>(kh * columns.kernel + kw);
  auto cell = [&](Index row, Index column) {
    const T* at = corner + (row * rows.dilation * f.from.h + column * columns.dilation * f.from.w);
    const Vec<float, V> value = load_float<V, Cache::kReadOnly>(at);
#pragma unroll
    for (int i = 0; i < V; ++i)
      take(best[i], winner[i], value[i], static_cast<int>(row * columns.kernel + column));
  };
  if constexpr (W::K > 0) {
#pragma unroll
    for (int row = 0; row < W::K; ++row) {
#pragma unroll
      for (int column = 0; column < W::K; ++column) {
        if (row >= kh && row < kh_end && column >= kw && column < kw_end) cell(row, column);
      }
    }
  } else {
    for (Index row = kh; row < kh_end; ++row) {
      for (Index column = kw; column < kw_end; ++column) cell(row, column);
    }
  }
  const Index at = n * f.to.n + c * f.to.c + oh * f.to.h + ow * f.to.w;
  Vec<float, V> value;
#pragma unroll
  for (int i = 0; i < V; ++i) value[i] = best[i];
  store_float(f.out + at, value);
  store_cells(f.offsets + at, winner);
}

// V outputs along a row per thread, windows 2 x 2 or (padded by 1) 3 x 3 of stride 2, over planes of an even
// width that the windows cover: the rows' 2 * V inputs in one or two loads, and for K == 3 the one before
// them.
template <int K, int V, class T, class O, class Index>
__global__ void __launch_bounds__(kThreads, kBlocks) pool_rows(Forward<T, O, Index> f) {
  constexpr int kLoad = 2 * V < kVec<T> ? 2 * V : kVec<T>;
  const Index item = static_cast<Index>(global_thread());
  if (item >= f.items) return;
  Index n = item;
  const Index ow = f.by_vectors.cut(n) * V, oh = f.rows.by_outputs.cut(n), c = f.by_c.cut(n);
  const Index top = 2 * oh - (K == 3);
  const T* corner = f.x + (n * f.from.n + c * f.from.c + top * f.from.h + 2 * ow);
  float best[V];
  int winner[V];
#pragma unroll
  for (int i = 0; i < V; ++i) {
    best[i] = -INFINITY;
    winner[i] = (K == 3 && top < 0 ? K : 0) + (K == 3 && ow == 0 && i == 0 ? 1 : 0);
  }
#pragma unroll
  for (int kh = 0; kh < K; ++kh) {
    if ((K == 3 && kh == 0 && top < 0) || top + kh >= f.rows.size) continue;
    const T* row = corner + kh * f.from.h;
    float value[2 * V + 1];  // value[0]: the column before
    value[0] = K == 3 && ow > 0 ? to_float(row[-1]) : -INFINITY;
#pragma unroll
    for (int i = 0; i < 2 * V; i += kLoad) {
      const Vec<float, kLoad> part = load_float<kLoad, Cache::kReadOnly>(row + i);
#pragma unroll
      for (int j = 0; j < kLoad; ++j) value[1 + i + j] = part[j];
    }
#pragma unroll
    for (int i = 0; i < V; ++i) {
#pragma unroll
      for (int kw = 0; kw < K; ++kw) take(best[i], winner[i], value[2 * i + kw + (K == 2)], kh * K + kw);
    }
  }
  const Index at = n * f.to.n + c * f.to.c + oh * f.to.h + ow;
  Vec<float, V> value;
#pragma unroll
  for (int i = 0; i < V; ++i) value[i] = best[i];
  store_float(f.out + at, value);
  store_cells(f.offsets + at, winner);
}

// Of two slices' winners: a NaN over a number, the later NaN, the greater number, the earlier of equals.
__device__ __forceinline__ void merge(float& best, int& winner, float other, int other_winner) {
  const bool nan = best != best, other_nan = other != other;
  const bool better = other_nan ? !nan || other_winner > winner
                                : !nan && (other > best || (other == best && other_winner < winner));
  if (better) best = other, winner = other_winner;
}

// kThreads / slices outputs per block, the cells of each dealt to `slices` threads in turns. Neighbouring
// threads take neighbouring cells (planes) or neighbouring channels (channels_last).
template <class T, class O>
__global__ void __launch_bounds__(kThreads, kBlocks)
    pool_slices(Forward<T, O, int64_t> f, int slices, bool channels_last) {
  __shared__ float shared_best[kThreads];
  __shared__ int shared_winner[kThreads];
  const int outputs = kThreads / slices, thread = static_cast<int>(threadIdx.x);
  const int slice = channels_last ? thread / outputs : thread % slices;
  const int output = channels_last ? thread % outputs : thread / slices;
  const int64_t item = static_cast<int64_t>(blockIdx.x) * outputs + output;
  const bool exists = item < f.items;
  int64_t n = exists ? item : 0, c = 0;
  if (channels_last) c = f.by_c.cut(n);
  const int64_t ow = f.columns.by_outputs.cut(n), oh = f.rows.by_outputs.cut(n);
  if (!channels_last) c = f.by_c.cut(n);
  const Axis<int64_t>&rows = f.rows, &columns = f.columns;
  const int64_t top = oh * rows.stride - rows.padding, left = ow * columns.stride - columns.padding;
  const int64_t kh = rows.first(top), kw = columns.first(left);
  const int64_t high = rows.end(top) - kh, wide = columns.end(left) - kw;  // cells inside
  const T* corner = f.x + (n * f.from.n + c * f.from.c + (top + kh * rows.dilation) * f.from.h +
                           (left + kw * columns.dilation) * f.from.w);
  constexpr int kNone = 0x7fffffff;
  float best = -INFINITY;
  int winner = kNone;
  if (high > 0 && wide > 0) {
    int row = slice / static_cast<int>(wide), column = slice % static_cast<int>(wide);
    const int rows_on = slices / static_cast<int>(wide), columns_on = slices % static_cast<int>(wide);
    while (row < high) {
      const float value =
          to_float(corner[row * rows.dilation * f.from.h + column * columns.dilation * f.from.w]);
      take(best, winner, value, static_cast<int>((kh + row) * columns.kernel + kw + column));
      row += rows_on, column += columns_on;
      if (column >= wide) column -= wide, ++row;
    }
  }
  shared_best[thread] = best, shared_winner[thread] = winner;
  const int step = channels_last ? outputs : 1;  // from one slice to the next
  for (int half = slices / 2; half > 0; half /= 2) {
    __syncthreads();
    if (slice < half) {
      const int other = thread + half * step;
      merge(best, winner, shared_best[other], shared_winner[other]);
      shared_best[thread] = best, shared_winner[thread] = winner;
    }
  }
  if (slice == 0 && exists) {
    const int64_t at = n * f.to.n + c * f.to.c + oh * f.to.h + ow * f.to.w;
    f.out[at] = from_float<T>(best);
    const int cell[1] = {winner != kNone ? winner : static_cast<int>(kh * columns.kernel + kw)};
    store_cells(f.offsets + at, cell);
  }
}

// Threads along the cells of a window, or 1 where it needs no cutting.
int slices_of(const MaxPool2dForward& p, int64_t cells, bool channels_last, const Device& device) {
  const int64_t enough = int64_t{1024} * device.multiprocessors, outputs = p.out.numel();
  if (channels_last)
    return cells > 32 && outputs < enough ? (cells > 256 && outputs < enough / 8 ? 32 : 8) : 1;
  // neighbouring outputs far apart: neighbouring cells are what lies side by side
  const bool apart = p.window.kernel_size[1] >= 8 && (p.window.stride[1] >= 8 || p.out.size[3] < 8);
  if (cells <= 32 || (!apart && outputs >= enough)) return 1;
  return cells > 512 ? kThreads : kWarp;
}

template <class T, class O, class Index>
Forward<T, O, Index> problem(const MaxPool2dForward& p, const HostAxis& rows, const HostAxis& columns,
                             int64_t vectors, int64_t items) {
  return {static_cast<const T*>(p.x.data),
          static_cast<T*>(p.out.data),
          static_cast<O*>(p.offsets ? p.offsets.data : p.out.data),
          Divider<Index>(vectors),
          Divider<Index>(p.x.size[1]),
          Axis<Index>(rows),
          Axis<Index>(columns),
          as<Index>(p.x),
          as<Index>(p.out),
          Index(items)};
}

// Whether offsets are stored V at a time.
template <class O, int V>
bool cell_vectors(const Tensor& offsets, int along) {
  if constexpr (std::is_same_v<O, NoCells>) {
    return true;
  } else {
    return vectors<O, V>(offsets, along);
  }
}

template <class T, class O, int K, int V>
const char* launch_rows(const MaxPool2dForward& p, const HostAxis& rows, const HostAxis& columns,
                        Context* context, bool& launched) {
  constexpr int kLoad = 2 * V < kVec<T> ? 2 * V : kVec<T>;
  launched = vectors<T, kLoad>(p.x, 3) && vectors<T, V>(p.out, 3) && cell_vectors<O, V>(p.offsets, 3);
  if (!launched) return nullptr;
  const int64_t items = p.out.numel() / V;
  return launch_items(pool_rows<K, V, T, O, int32_t>, items, context,
                      problem<T, O, int32_t>(p, rows, columns, columns.outputs / V, items));
}

template <class T, class O, class Index>
const char* forward(const MaxPool2dForward& p, const HostAxis& rows, const HostAxis& columns,
                    Context* context) {
  const Tensor &x = p.x, &out = p.out;
  const bool channels_last = x.size[1] > 1 && x.stride[1] == 1 && out.stride[1] == 1;
  constexpr bool kBytes = sizeof(O) == 1;  // small windows
  return dispatch_window < kBytes &&
         sizeof(Index) ==
             4 > (rows, columns, [&](auto w) -> const char* {
               using W = decltype(w);
               constexpr int V = kVec<T>;
               if constexpr (kBytes) {
                 if (channels_last && vectors<T, V>(x, 1) && vectors<T, V>(out, 1) &&
                     cell_vectors<O, V>(p.offsets, 1)) {
                   const int64_t items = out.numel() / V;
                   return launch_items(pool<W, V, T, O, Index>, items, context,
                                       problem<T, O, Index>(p, rows, columns, x.size[1] / V, items), true);
                 }
               }
               if constexpr (W::K > 0) {
                 if (columns.size == 2 * columns.outputs) {
                   bool launched;
                   const char* error = launch_rows<T, O, W::K, V>(p, rows, columns, context, launched);
                   if (!launched) error = launch_rows<T, O, W::K, V / 2>(p, rows, columns, context, launched);
                   if (launched) return error;
                 }
               }
               return launch_items(pool<W, 1, T, O, Index>, out.numel(), context,
                                   problem<T, O, Index>(p, rows, columns, x.size[1], out.numel()),
                                   channels_last);
             });
}

template <class T, class O>
const char* forward(const MaxPool2dForward& p, Context* context) {
  const HostAxis rows = axis(p.window, 0, p.x.size[2], p.out.size[2]);
  const HostAxis columns = axis(p.window, 1, p.x.size[3], p.out.size[3]);
  const bool channels_last = p.x.size[1] > 1 && p.x.stride[1] == 1 && p.out.stride[1] == 1;
  const int slices =
      slices_of(p, rows.kernel * columns.kernel, channels_last, device_properties(context->device));
  if (slices > 1) {
    const int64_t outputs = p.out.numel();
    return launch_items(pool_slices<T, O>, ceil_div(outputs, int64_t{kThreads / slices}) * kThreads, context,
                        problem<T, O, int64_t>(p, rows, columns, 1, outputs), slices, channels_last);
  }
  return dispatch_index(fits(p.x, p.out, rows, columns), [&](auto i) {
    return forward<T, O, typename decltype(i)::type>(p, rows, columns, context);
  });
}

}  // namespace
}  // namespace max_pool2d
}  // namespace fastdl

FASTDL_EXPORT const char* fastdl_max_pool2d_forward(const fastdl::MaxPool2dForward* p,
                                                    fastdl::Context* context) {
  using namespace fastdl;
  using namespace fastdl::max_pool2d;
  if (p->out.numel() == 0) return nullptr;
  const DeviceGuard guard(context->device);
  if (guard.error()) return guard.error();
  return dispatch_float(p->x.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    if (!p->offsets) return forward<T, NoCells>(*p, context);
    return dispatch_offset(p->offsets.dtype,
                           [&](auto o) { return forward<T, typename decltype(o)::type>(*p, context); });
  });
}
