// max_pool2d backward on the CPU: which kernel takes which layout and window.
#include "max_pool2d_lanes.h"
#include "max_pool2d_scatter.h"

namespace fastdl::cpu {
namespace {

template <class T, class O>
const char* backward(const PoolBackward<T, O>& call) {
  const Axis &rows = call.rows, &columns = call.columns;
  const int64_t cells = rows.kernel * columns.kernel;
  if (call.c > 1 && call.x_c == 1 && call.g_c == 1 && call.o_c == 1) {
    const bool few = cells <= 9 && cells < 4 * rows.stride * columns.stride;  // windows over a pixel
    if (few && call.c >= 2 * kWidth) return gather_channels_last(call), nullptr;
    return scatter<true>(call);
  }
  const bool planes = call.x_w == 1 && call.g_w == 1 && call.o_w == 1;
  if (planes && columns.size > 12) {  // narrower rows leave lanes idle
    if (rows.is(2, 2, 0) && columns.is(2, 2, 0)) return gather_rows<2>(call), nullptr;
    if (rows.is(3, 2, 1) && columns.is(3, 2, 1) && columns.size > kWidth)
      return gather_rows<3>(call), nullptr;
  }
  // where windows overlap, sums that are added to one by one wait for each other; narrower lanes do not pay
  const int64_t reached = rows.outputs * rows.stride * columns.outputs * columns.stride;
  const bool overlap = (columns.stride < columns.kernel || rows.stride < rows.kernel) &&
                       2 * reached >= rows.size * columns.size;
  const bool dense = call.x_h == columns.size && call.g_h == columns.outputs && call.o_h == columns.outputs;
  if (kWidth == 16 && planes && dense && overlap && rows.dilation == 1 && columns.dilation == 1 &&
      lanes_serve(call.n * call.c, rows, columns) && lanes_are_faster(rows, columns) &&
      (cells <= 9 || cells * columns.size <= 12 * kWidth))
    return gather_lanes(call);
  return scatter<false>(call);
}

}  // namespace
}  // namespace fastdl::cpu

FASTDL_EXPORT const char* fastdl_max_pool2d_backward(const fastdl::MaxPool2dBackward* p,
                                                     fastdl::Context* context) {
  using namespace fastdl;
  using namespace fastdl::cpu;
  const Tensor &g = p->grad_out, &o = p->offsets, &x = p->grad_x;
  const char* error = nullptr;
  if (x.numel() == 0) return nullptr;
  for (int i = 0; i < 4; ++i) {
    const int64_t reach = i < 2 ? 0 : (g.size[i] - 1) * p->window.stride[i - 2] - p->window.padding[i - 2];
    if (o.size[i] != g.size[i] || (i < 2 ? x.size[i] != g.size[i] : g.size[i] > 1 && reach >= x.size[i]))
      return "grad_out and offsets: expected one element for each window of grad_x";
  }
  const bool known = with_float(x.dtype, [&](auto t) {
    using T = decltype(t);
    auto run = [&](auto offset) {
      using O = decltype(offset);
      error = backward(PoolBackward<T, O>{static_cast<const T*>(g.data),
                                          static_cast<const O*>(o.data),
                                          static_cast<T*>(x.data),
                                          x.size[0],
                                          x.size[1],
                                          axis(p->window, 0, x.size[2], g.size[2]),
                                          axis(p->window, 1, x.size[3], g.size[3]),
                                          g.stride[0],
                                          g.stride[1],
                                          g.stride[2],
                                          g.stride[3],
                                          o.stride[0],
                                          o.stride[1],
                                          o.stride[2],
                                          o.stride[3],
                                          x.stride[0],
                                          x.stride[1],
                                          x.stride[2],
                                          x.stride[3],
                                          context});
    };
    if (!with_offset(o.dtype, run)) error = "offsets: expected uint8, int16 or int32";
  });
  return known ? error : "grad_x: expected float32, float16 or bfloat16";
}
