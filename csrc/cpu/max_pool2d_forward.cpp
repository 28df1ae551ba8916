// max_pool2d forward on the CPU: which kernel takes which layout and window.
#include "max_pool2d_channels.h"
#include "max_pool2d_lanes.h"
#include "max_pool2d_rows.h"
#include "max_pool2d_windows.h"

namespace fastdl::cpu {
namespace {

// Windows over whole rows of contiguous planes are windows over one long row, with the same cells.
template <class T, class O>
void flatten(PoolForward<T, O>& call) {
  Axis& rows = call.rows;
  Axis& columns = call.columns;
  const int64_t width = columns.size;
  if (width == 1) call.x_w = call.x_h;
  if (rows.size == 1) call.x_h = width * call.x_w;
  if (columns.kernel != width || columns.padding != 0 || columns.outputs != 1 || rows.dilation != 1) return;
  if (call.x_h != width * call.x_w) return;
  const int64_t limit = int64_t{1} << 31;
  if (rows.kernel > limit / width || rows.size > limit / width || rows.padding > limit / width) return;
  columns = {rows.size * width,   rows.outputs,         rows.kernel * width,
             rows.stride * width, rows.padding * width, 1};
  rows = {1, 1, 1, 1, 0, 1};
  call.out_w = call.out_h;
}

// Where planes on the lanes were measured to be faster than rows on the lanes.
template <class T, class O>
bool on_lanes(const PoolForward<T, O>& call) {
  const Axis &rows = call.rows, &columns = call.columns;
  if (call.x_w != 1 || call.x_h != columns.size || call.out_w != 1 || call.out_h != columns.outputs)
    return false;
  if (!lanes_serve(call.n * call.c, rows, columns)) return false;
  if (rows.is(2, 2, 0) && columns.is(2, 2, 0)) return columns.size <= kWidth;
  if (rows.is(3, 2, 1) && columns.is(3, 2, 1)) return columns.size <= 2 * kWidth;
  return columns.stride > 2 || lanes_are_faster(rows, columns);
}

template <class T, class O>
const char* forward(PoolForward<T, O> call) {
  if (call.c > 1 && call.x_c == 1 && call.out_c == 1) return pool_channels_last(call), nullptr;
  if (on_lanes(call)) return pool_lanes(call);
  flatten(call);
  const Axis &rows = call.rows, &columns = call.columns;
  if (call.x_w == 1 && call.out_w == 1) {
    if (rows.is(2, 2, 0) && columns.is(2, 2, 0)) return pool_rows<2>(call), nullptr;
    if (rows.is(3, 2, 1) && columns.is(3, 2, 1)) return pool_rows<3>(call), nullptr;
  }
  const bool wide = columns.kernel >= kWidth / 2 && (columns.stride > 4 || columns.outputs < 4);
  if (call.x_w == 1 && columns.dilation == 1 && wide) return pool_wide_windows(call), nullptr;
  return pool_windows(call);
}

}  // namespace
}  // namespace fastdl::cpu

FASTDL_EXPORT const char* fastdl_max_pool2d_forward(const fastdl::MaxPool2dForward* p,
                                                    fastdl::Context* context) {
  using namespace fastdl;
  using namespace fastdl::cpu;
  const Tensor &x = p->x, &out = p->out;
  const char* error = nullptr;
  if (out.numel() == 0) return nullptr;
  const bool known = with_float(x.dtype, [&](auto t) {
    using T = decltype(t);
    auto run = [&](auto o) {
      using O = decltype(o);
      // NoCells are never written: any address does
      void* offsets = p->offsets ? p->offsets.data : out.data;
      error = forward(PoolForward<T, O>{
          static_cast<const T*>(x.data), static_cast<T*>(out.data), static_cast<O*>(offsets), x.size[0],
          x.size[1], axis(p->window, 0, x.size[2], out.size[2]), axis(p->window, 1, x.size[3], out.size[3]),
          x.stride[0], x.stride[1], x.stride[2], x.stride[3], out.stride[0], out.stride[1], out.stride[2],
          out.stride[3], context});
    };
    if (!p->offsets) return run(NoCells{});
    if (!with_offset(p->offsets.dtype, run)) error = "offsets: expected uint8, int16 or int32";
  });
  return known ? error : "x: expected float32, float16 or bfloat16";
}
