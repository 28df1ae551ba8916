// Depthwise: what is covered, and which kernel takes it.
#include "conv2d_depthwise.cuh"

namespace fastdl {
namespace {

template <class T>
const char* run(const Depthwise<T>& p, int64_t size, int64_t stride, Context* context) {
  const bool wide =
      wide_channels<T>(p.src, p.src_at, p.channels) && wide_channels<T>(p.dst, p.dst_at, p.channels);
  return wide ? depthwise_rows(p, size, stride, context) : depthwise_planes(p, size, stride, context);
}

}  // namespace

// One channel per group and one output per channel; 3x3, 5x5 or 7x7, stride 1 or 2, undilated. Any library
// reads x once per tap or transposes here; a direct kernel is bound by memory alone (18 to 98 operations per
// element, of about 60 that an H200 has time for in float32 and 30 in half precision while it reads and
// writes one).
bool conv2d_depthwise_covers(const Tensor& x, const Tensor& weight, const Convolution& c) {
  const int64_t size = weight.size[2];
  return c.groups > 1 && c.groups == x.size[1] && c.groups == weight.size[0] && size == weight.size[3] &&
         (size == 3 || size == 5 || size == 7) && c.stride[0] == c.stride[1] && c.stride[0] <= 2 &&
         c.dilation[0] == 1 && c.dilation[1] == 1;
}

const char* conv2d_depthwise_forward(const Conv2dForward& p, Context* context) {
  return dispatch_float(p.x.dtype, [&](auto type) -> const char* {
    using T = typename decltype(type)::type;
    const Convolution& conv = p.convolution;
    Depthwise<T> d = {};
    d.src = static_cast<const T*>(p.x.data), d.weight = static_cast<const T*>(p.weight.data);
    d.bias = static_cast<const T*>(p.bias.data), d.dst = static_cast<T*>(p.out.data);
    d.src_at = strides_of(p.x), d.dst_at = strides_of(p.out);
    d.w_c = p.weight.stride[0], d.w_r = p.weight.stride[2], d.w_s = p.weight.stride[3];
    d.images = p.x.size[0], d.channels = p.x.size[1], d.src_h = p.x.size[2], d.src_w = p.x.size[3];
    d.dst_h = p.out.size[2], d.dst_w = p.out.size[3];
    d.pad_y = conv.padding[0], d.pad_x = conv.padding[1];
    d.act = is_cheap(conv.activation) ? conv.activation : Activation::kNone, d.param = conv.activation_param;
    FASTDL_TRY(run(d, p.weight.size[2], conv.stride[0], context));
    return finish_activation(p.out, conv.activation, conv.activation_param, context);
  });
}

const char* conv2d_depthwise_grad_x(const Conv2dBackward& p, Context* context) {
  return dispatch_float(p.x.dtype, [&](auto type) -> const char* {
    using T = typename decltype(type)::type;
    const Convolution& conv = p.convolution;
    const int64_t size = p.weight.size[2];
    Depthwise<T> d = {};
    d.src = static_cast<const T*>(p.grad_out.data), d.weight = static_cast<const T*>(p.weight.data);
    d.dst = static_cast<T*>(p.grad_x.data);
    d.src_at = strides_of(p.grad_out), d.dst_at = strides_of(p.grad_x);
    d.w_c = p.weight.stride[0], d.w_r = p.weight.stride[2], d.w_s = p.weight.stride[3];
    d.images = p.grad_x.size[0], d.channels = p.grad_x.size[1];
    d.src_h = p.grad_out.size[2], d.src_w = p.grad_out.size[3];
    d.dst_h = p.grad_x.size[2], d.dst_w = p.grad_x.size[3];
    d.pad_y = conv.padding[0], d.pad_x = conv.padding[1];
    d.act = Activation::kNone;
    if (conv.stride[0] == 2) {
      d.src_wide = wide_channels<T>(d.src, d.src_at, d.channels);
      d.dst_wide = wide_channels<T>(d.dst, d.dst_at, d.channels);
      return depthwise_transposed(d, size, context);
    }
    d.weight += (size - 1) * (d.w_r + d.w_s);
    d.w_r = -d.w_r, d.w_s = -d.w_s;
    d.pad_y = size - 1 - d.pad_y, d.pad_x = size - 1 - d.pad_x;
    return run(d, size, 1, context);
  });
}

}  // namespace fastdl
