// max_pool2d backward: every element of grad_x is gathered from the windows over it, and written once.
// grad_x[h, w] = sum of grad_out over the windows whose saved cell is (h, w), in index order.
#include "max_pool2d_common.cuh"

namespace fastdl {
namespace max_pool2d {
namespace {

template <class T, class O, class Index>
struct Backward {
  const T* grad_out;
  const O* offsets;
  T* grad_x;
  Divider<Index> by_vectors;  // of the axis that threads run along
  Divider<Index> by_c, by_pairs;
  Axis<Index> rows, columns;
  Strides<Index> grad, cells, to;
  Index items;
};

// V pixels along the channels (V == 1: of any strides) per thread.
template <class W, int V, class T, class O, class Index>
__global__ void __launch_bounds__(kThreads, kBlocks) gather(Backward<T, O, Index> b, bool channels_last) {
  const Index item = static_cast<Index>(global_thread());
  if (item >= b.items) return;
  const Axis<Index> rows = fix<W>(b.rows), columns = fix<W>(b.columns);
  Index n = item, c, h, w;
  if (V > 1 || channels_last) {  // in memory order
    c = b.by_vectors.cut(n) * V, w = columns.by_size.cut(n), h = rows.by_size.cut(n);
  } else {
    w = columns.by_size.cut(n), h = rows.by_size.cut(n), c = b.by_c.cut(n);
  }
  // the windows [first, last] over the pixel: those with before < o * stride <= at
  auto first_over = [](const Axis<Index>& axis, Index at) {
    const Index before = at - (axis.kernel - 1) * axis.dilation - 1;
    return before < 0 ? Index(0) : axis.divide_by_stride(before) + 1;
  };
  auto last_over = [](const Axis<Index>& axis, Index at) {
    const Index last = axis.divide_by_stride(at);
    return last < axis.outputs ? last : axis.outputs - 1;
  };
  const Index down = h + rows.padding, right = w + columns.padding;
  const Index oh_last = last_over(rows, down), ow_first = first_over(columns, right),
              ow_last = last_over(columns, right);
  const T* grad = b.grad_out + (n * b.grad.n + c * b.grad.c);
  const O* offsets = b.offsets + (n * b.cells.n + c * b.cells.c);
  Vec<float, V> total;
#pragma unroll
  for (int i = 0; i < V; ++i) total[i] = 0.0f;
  for (Index oh = first_over(rows, down); oh <= oh_last; ++oh) {
    Index kh = down - oh * rows.stride;
    if (rows.dilation > 1) {
      if (rows.by_dilation.cut(kh) != 0) continue;
    }
    for (Index ow = ow_first; ow <= ow_last; ++ow) {
      Index kw = right - ow * columns.stride;
      if (columns.dilation > 1) {
        if (columns.by_dilation.cut(kw) != 0) continue;
      }
      const Vec<O, V> named = load<V, Cache::kReadOnly>(offsets + (oh * b.cells.h + ow * b.cells.w));
      const Vec<float, V> value = load_float<V, Cache::kReadOnly>(grad + (oh * b.grad.h + ow * b.grad.w));
      const int cell = static_cast<int>(kh * columns.kernel + kw);
#pragma unroll
      for (int i = 0; i < V; ++i) total[i] += static_cast<int>(named[i]) == cell ? value[i] : 0.0f;
    }
  }
  store_float(b.grad_x + (n * b.to.n + c * b.to.c + h * b.to.h + w * b.to.w), total);
}

// The pixel rows 2a and 2a + 1 under V windows side by side per thread, windows 2 x 2 or (padded by 1) 3 x 3
// of stride 2 over planes of an even width that the windows cover. Pixels 2b and 2b + 1 lie under window b
// and, for K == 3, b + 1.
template <int K, int V, class T, class O, class Index>
__global__ void __launch_bounds__(kThreads, kBlocks) gather_rows(Backward<T, O, Index> b) {
  const Index item = static_cast<Index>(global_thread());
  if (item >= b.items) return;
  Index n = item;
  const Index ow = b.by_vectors.cut(n) * V, oh = b.by_pairs.cut(n), c = b.by_c.cut(n);
  const T* grad = b.grad_out + (n * b.grad.n + c * b.grad.c + ow);
  const O* offsets = b.offsets + (n * b.cells.n + c * b.cells.c + ow);
  float upper[2 * V], lower[2 * V];
#pragma unroll
  for (int i = 0; i < 2 * V; ++i) upper[i] = lower[i] = 0.0f;
  // adds to one pixel row from the window row whose cells there are `cell`, cell + 1, ...
  auto add = [&](float (&pixel)[2 * V], const float (&g)[V + 1], const int (&named)[V + 1], int cell) {
#pragma unroll
    for (int i = 0; i < V; ++i) {
      pixel[2 * i] += named[i] == cell + (K == 3) ? g[i] : 0.0f;
      pixel[2 * i + 1] += named[i] == cell + K - 1 ? g[i] : 0.0f;
      if constexpr (K == 3) pixel[2 * i + 1] += named[i + 1] == cell ? g[i + 1] : 0.0f;
    }
  };
#pragma unroll
  for (int below = 0; below < (K == 3 ? 2 : 1); ++below) {
    if (oh + below >= b.rows.outputs) continue;
    const T* g_row = grad + (oh + below) * b.grad.h;
    const O* o_row = offsets + (oh + below) * b.cells.h;
    float g[V + 1];
    int named[V + 1];
    const Vec<float, V> values = load_float<V, Cache::kReadOnly>(g_row);
    const Vec<O, V> cells = load<V, Cache::kReadOnly>(o_row);
#pragma unroll
    for (int i = 0; i < V; ++i) g[i] = values[i], named[i] = cells[i];
    g[V] = 0.0f, named[V] = -1;
    if (K == 3 && ow + V < b.columns.outputs) g[V] = to_float(g_row[V]), named[V] = o_row[V];
    if (below) {
      add(lower, g, named, 0);
    } else {
      add(upper, g, named, K == 3 ? K : 0);
      add(lower, g, named, K == 3 ? 2 * K : K);
    }
  }
  constexpr int kStore = 2 * V < kVec<T> ? 2 * V : kVec<T>;
  auto write = [&](T* to, const float (&pixel)[2 * V]) {
#pragma unroll
    for (int i = 0; i < 2 * V; i += kStore) {
      Vec<float, kStore> part;
#pragma unroll
      for (int j = 0; j < kStore; ++j) part[j] = pixel[i + j];
      store_float(to + i, part);
    }
  };
  T* to = b.grad_x + (n * b.to.n + c * b.to.c + 2 * oh * b.to.h + 2 * ow);
  write(to, upper);
  if (2 * oh + 1 < b.rows.size) write(to + b.to.h, lower);
}

template <class T, class O, class Index>
Backward<T, O, Index> problem(const MaxPool2dBackward& p, const HostAxis& rows, const HostAxis& columns,
                              int64_t vectors, int64_t items) {
  return {static_cast<const T*>(p.grad_out.data),
          static_cast<const O*>(p.offsets.data),
          static_cast<T*>(p.grad_x.data),
          Divider<Index>(vectors),
          Divider<Index>(p.grad_x.size[1]),
          Divider<Index>((rows.size + 1) / 2),
          Axis<Index>(rows),
          Axis<Index>(columns),
          as<Index>(p.grad_out),
          as<Index>(p.offsets),
          as<Index>(p.grad_x),
          Index(items)};
}

template <class T, class O, int K, int V>
const char* launch_rows(const MaxPool2dBackward& p, const HostAxis& rows, const HostAxis& columns,
                        Context* context, bool& launched) {
  constexpr int kStore = 2 * V < kVec<T> ? 2 * V : kVec<T>;
  launched = vectors<T, kStore>(p.grad_x, 3) && vectors<T, V>(p.grad_out, 3) && vectors<O, V>(p.offsets, 3);
  if (!launched) return nullptr;
  const int64_t planes = p.grad_x.size[0] * p.grad_x.size[1], pairs = (rows.size + 1) / 2;
  const int64_t vectors = columns.outputs / V, items = planes * pairs * vectors;
  return launch_items(gather_rows<K, V, T, O, int32_t>, items, context,
                      problem<T, O, int32_t>(p, rows, columns, vectors, items));
}

template <class T, class O, class Index>
const char* backward(const MaxPool2dBackward& p, const HostAxis& rows, const HostAxis& columns,
                     Context* context) {
  const Tensor &x = p.grad_x, &g = p.grad_out, &o = p.offsets;
  const bool channels_last = x.size[1] > 1 && x.stride[1] == 1;
  constexpr bool kBytes = sizeof(O) == 1;  // small windows
  return dispatch_window < kBytes &&
         sizeof(Index) ==
             4 > (rows, columns, [&](auto w) -> const char* {
               using W = decltype(w);
               constexpr int V = kVec<T>;
               if constexpr (kBytes) {
                 if (channels_last && vectors<T, V>(x, 1) && vectors<T, V>(g, 1) && vectors<O, V>(o, 1)) {
                   const int64_t items = x.numel() / V;
                   return launch_items(gather<W, V, T, O, Index>, items, context,
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
               return launch_items(gather<W, 1, T, O, Index>, x.numel(), context,
                                   problem<T, O, Index>(p, rows, columns, x.size[1], x.numel()),
                                   channels_last);
             });
}

}  // namespace
}  // namespace max_pool2d
}  // namespace fastdl

FASTDL_EXPORT const char* fastdl_max_pool2d_backward(const fastdl::MaxPool2dBackward* p,
                                                     fastdl::Context* context) {
  using namespace fastdl;
  using namespace fastdl::max_pool2d;
  if (p->grad_x.numel() == 0) return nullptr;
  const DeviceGuard guard(context->device);
  if (guard.error()) return guard.error();
  const HostAxis rows = max_pool2d::axis(p->window, 0, p->grad_x.size[2], p->grad_out.size[2]);
  const HostAxis columns = max_pool2d::axis(p->window, 1, p->grad_x.size[3], p->grad_out.size[3]);
  const bool narrow =
      fits(p->grad_x, p->grad_out, rows, columns) && fits(p->grad_x, p->offsets, rows, columns);
  return dispatch_float(p->grad_x.dtype, [&](auto t) {
    return dispatch_index(narrow, [&](auto i) {
      return dispatch_offset(p->offsets.dtype, [&](auto o) {
        return backward<typename decltype(t)::type, typename decltype(o)::type, typename decltype(i)::type>(
            *p, rows, columns, context);
      });
    });
  });
}
