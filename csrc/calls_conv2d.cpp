// The short ways of conv2d and conv2d_max_pool2d (see calls.cpp), for what a library has direct kernels for.
// On the CPU and with no backend named, torch's own convolution is a short way too: "auto" would come to it
// in any case.
#include <ATen/ops/conv2d.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/relu.h>

#include "calls.h"

namespace fastdl {
namespace {

using at::Tensor;

struct ConvOptions {
  const Library* library;
  Pair stride, padding, dilation;
  int64_t groups;
  std::string activation;
  double activation_param;
  std::array<bool, 3> needs;  // gradients of x, weight, bias

  Convolution fused() const {
    return convolution(stride, padding, dilation, groups, activation, activation_param);
  }
  Convolution plain() const { return convolution(stride, padding, dilation, groups, "", 0.0); }
};

at::MemoryFormat format_of(const Tensor& x, const Tensor& weight) {
  auto last = at::MemoryFormat::ChannelsLast;
  return x.suggest_memory_format() == last || weight.suggest_memory_format() == last
             ? last
             : at::MemoryFormat::Contiguous;
}

// A dense tensor as at::empty would make it, for the questions of what is covered: its memory is never
// touched.
fastdl::Tensor imagined(at::IntArrayRef size, at::MemoryFormat format, const Tensor& like) {
  fastdl::Tensor t;
  t.data = reinterpret_cast<void*>(256);  // aligned as memory is
  t.dim = 4;
  t.dtype = dtype_of(like);
  const bool last = format == at::MemoryFormat::ChannelsLast;
  const int64_t strides[4] = {size[1] * size[2] * size[3], last ? 1 : size[2] * size[3],
                              last ? size[3] * size[1] : size[3], last ? size[1] : 1};
  for (int i = 0; i < 4; ++i) t.size[i] = size[i], t.stride[i] = strides[i];
  return t;
}

// ------------------------------------------------------------------------------------------ conv2d

std::array<int64_t, 4> output_size(const Tensor& x, const Tensor& weight, const ConvOptions& o) {
  std::array<int64_t, 4> size = {x.size(0), weight.size(0), 0, 0};
  for (int i = 0; i < 2; ++i) {
    const int64_t reach = x.size(2 + i) + 2 * o.padding[i] - o.dilation[i] * (weight.size(2 + i) - 1) - 1;
    size[2 + i] = reach < 0 ? 0 : reach / o.stride[i] + 1;
  }
  return size;
}

Tensor conv_forward(const ConvOptions& o, const Tensor& x, const Tensor& weight, const Optional& bias) {
  Tensor out = at::empty(output_size(x, weight, o), x.options(), format_of(x, weight));
  Conv2dForward p{view(x), view(weight), view(bias), view(out), o.fused()};
  o.library->run("conv2d_forward", p, x);
  return out;
}

// The gradients of x and weight, those wanted, from that of the pre-activation: fastdl/native/conv2d.py's
// backward.
std::pair<Tensor, Tensor> conv_gradients(const ConvOptions& o, const Tensor& grad, const Tensor& x,
                                         const Tensor& weight) {
  const auto format = format_of(x, weight);
  Tensor grad_x, grad_weight;
  std::array<bool, 3> left = {o.needs[0], o.needs[1], false};
  if (left[0]) {
    Conv2dBackward p{view(grad), view(x), view(weight), imagined(x.sizes(), format, x), {}, o.plain()};
    if (o.library->covers("conv2d_backward_covers", p, x)) {
      grad_x = at::empty(x.sizes(), x.options(), format);
      p.grad_x = view(grad_x);
      o.library->run("conv2d_backward", p, grad);
      left[0] = false;
    }
  }
  if (left[1]) {
    grad_weight = at::empty_like(weight);
    Conv2dBackward p{view(grad), view(x), view(weight), {}, view(grad_weight), o.plain()};
    if (o.library->covers("conv2d_backward_covers", p, x)) {
      o.library->run("conv2d_backward", p, grad);
      left[1] = false;
    }
  }
  if (left[0] || left[1]) {
    auto found = at::convolution_backward(grad, x, weight, at::OptionalIntArrayRef(), o.stride, o.padding,
                                          o.dilation, false, {0, 0}, o.groups, left);
    if (left[0]) grad_x = std::get<0>(found).contiguous(format);
    if (left[1] && std::get<1>(found).strides() == grad_weight.strides())
      grad_weight = std::get<1>(found);
    else if (left[1])
      grad_weight.copy_(std::get<1>(found));
  }
  return {grad_x, grad_weight};
}

// The gradient of the pre-activation and that of the bias. `out`: undefined without an activation.
std::pair<Tensor, Tensor> epilogue_backward(const ConvOptions& o, const Tensor& grad_out, const Tensor& out,
                                            int64_t channels) {
  Tensor grad_pre, grad_bias;
  if (out.defined() && (o.needs[0] || o.needs[1])) grad_pre = at::empty_like(out);
  if (o.needs[2]) grad_bias = at::empty({channels}, grad_out.options());
  if (grad_pre.defined() || grad_bias.defined()) {
    const Convolution c = o.fused();
    Conv2dEpilogueBackward p{view(grad_out),     view_if(out), view_if(grad_pre),
                             view_if(grad_bias), c.activation, c.activation_param};
    o.library->run("conv2d_epilogue_backward", p, grad_out);
  }
  return {grad_pre.defined() ? grad_pre : grad_out, grad_bias};
}

struct Conv2d : Function<Conv2d> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, const Optional& bias,
                        ConvOptions o) {
    Tensor out = conv_forward(o, x, weight, bias);
    ctx->save_for_backward({x, weight, or_undefined(bias), o.activation.empty() ? Tensor() : out});
    keep(ctx, std::move(o));
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto& o = kept<ConvOptions>(ctx);
    auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &bias = saved[2], &out = saved[3];
    variable_list found(3);
    if (at::GradMode::is_enabled()) {
      py::gil_scoped_acquire gil;
      found = differentiable("conv2d", grads[0], x, weight, optional(bias), o.stride, o.padding, o.dilation,
                             o.groups, o.activation, o.activation_param);
    } else {
      auto [grad, grad_bias] = epilogue_backward(o, grads[0], out, weight.size(0));
      auto [grad_x, grad_weight] = conv_gradients(o, grad, x, weight);
      found = {grad_x, grad_weight, grad_bias};
    }
    return {found[0], found[1], found[2], Tensor()};
  }
};

// The options of a plain call, if it is one and gives at least one pixel.
std::optional<ConvOptions> conv_options(const Library& library, const Tensor& x, const Tensor& weight,
                                        const Optional& bias, py::handle stride, py::handle padding,
                                        py::handle dilation, int64_t groups, const std::string& activation,
                                        double activation_param) {
  auto s = pair(stride), p = pair(padding), d = pair(dilation);
  if (!s || !p || !d || x.dim() != 4 || weight.dim() != 4 || !is_plain_input(x)) return std::nullopt;
  for (int i = 0; i < 2; ++i) {
    if ((*s)[i] <= 0 || (*p)[i] < 0 || (*d)[i] <= 0) return std::nullopt;
    if ((*s)[i] > 255 || (*p)[i] > (1 << 24) || (*d)[i] > (1 << 24)) return std::nullopt;
  }
  if (!is_plain(weight, x.device()) || weight.scalar_type() != x.scalar_type()) return std::nullopt;
  if (groups <= 0 || groups > 65535 || weight.size(0) % groups != 0 || x.size(1) != weight.size(1) * groups)
    return std::nullopt;
  if (bias && (!is_plain(*bias, x.device()) || bias->scalar_type() != x.scalar_type() || bias->dim() != 1 ||
               bias->size(0) != weight.size(0) || !bias->is_contiguous()))
    return std::nullopt;
  ConvOptions o{&library,
                *s,
                *p,
                *d,
                groups,
                activation,
                activation_param,
                {needs_grad({x}), needs_grad({weight}), needs_grad({bias})}};
  const auto size = output_size(x, weight, o);
  return size[2] > 0 && size[3] > 0 ? std::optional<ConvOptions>(o) : std::nullopt;
}

py::object conv2d(const Library& library, const Tensor& x, const Tensor& weight, const Optional& bias,
                  py::handle stride, py::handle padding, py::handle dilation, int64_t groups,
                  const std::string& activation, double activation_param, bool automatic) {
  auto o =
      conv_options(library, x, weight, bias, stride, padding, dilation, groups, activation, activation_param);
  if (!o) return py::none();
  Conv2dForward p{view(x), view(weight), view(bias),
                  imagined(output_size(x, weight, *o), format_of(x, weight), x), o->fused()};
  const bool direct = library.covers("conv2d_forward_covers", p, x);
  if (!direct && !(automatic && x.is_cpu() && (activation.empty() || activation == "relu")))
    return py::none();
  Tensor out;
  {
    py::gil_scoped_release release;
    if (!direct) {  // fastdl.reference.conv2d
      out = at::conv2d(x, weight, bias, o->stride, o->padding, o->dilation, groups);
      if (activation == "relu") at::relu_(out);
    } else {
      out = needs_grad({x, weight, bias}) ? Conv2d::apply(x, weight, bias, *o)
                                          : conv_forward(*o, x, weight, bias);
    }
  }
  return py::cast(out);
}

// ------------------------------------------------------------------------------- conv2d_max_pool2d

struct ConvPoolOptions {
  ConvOptions conv;
  Pair kernel_size, stride;  // of the pool: no padding, no dilation
};

std::array<int64_t, 4> pooled_size(const Tensor& x, const Tensor& weight, const ConvPoolOptions& o) {
  auto size = output_size(x, weight, o.conv);
  for (int i = 0; i < 2; ++i) {
    const int64_t reach = size[2 + i] - o.kernel_size[i];
    size[2 + i] = reach < 0 ? 0 : reach / o.stride[i] + 1;
  }
  return size;
}

Conv2dMaxPool2d pool_params(const ConvPoolOptions& o, const Tensor& x, const Tensor& weight,
                            const Optional& bias) {
  return {view(x),
          view(weight),
          view(bias),
          {},
          {},
          o.conv.fused(),
          {o.kernel_size[0], o.kernel_size[1]},
          {o.stride[0], o.stride[1]}};
}

std::pair<Tensor, Tensor> conv_pool_forward(const ConvPoolOptions& o, const Tensor& x, const Tensor& weight,
                                            const Optional& bias, bool save) {
  const auto format = format_of(x, weight);
  Tensor out = at::empty(pooled_size(x, weight, o), x.options(), format);
  Tensor offsets = save ? at::empty(out.sizes(), x.options().dtype(at::kByte), format) : Tensor();
  Conv2dMaxPool2d p = pool_params(o, x, weight, bias);
  p.out = view(out);
  p.offsets = view_if(offsets);
  o.conv.library->run("conv2d_max_pool2d", p, x);
  return {out, offsets};
}

struct ConvPool : Function<ConvPool> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, const Optional& bias,
                        ConvPoolOptions o) {
    auto [out, offsets] = conv_pool_forward(o, x, weight, bias, true);
    ctx->save_for_backward({x, weight, or_undefined(bias), out, offsets});
    keep(ctx, std::move(o));
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto& o = kept<ConvPoolOptions>(ctx);
    auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &bias = saved[2], &out = saved[3], &offsets = saved[4];
    variable_list found(3);
    if (at::GradMode::is_enabled()) {
      py::gil_scoped_acquire gil;
      const auto& c = o.conv;
      found = differentiable("conv2d_max_pool2d", grads[0], x, weight, optional(bias), c.stride, c.padding,
                             c.dilation, c.groups, c.activation, c.activation_param, o.kernel_size, o.stride);
      return {found[0], found[1], found[2], Tensor()};
    }
    // the derivative and the bias's gradient where there is less to read, behind the pool
    auto [grad_pooled, grad_bias] =
        epilogue_backward(o.conv, grads[0], o.conv.activation.empty() ? Tensor() : out, weight.size(0));
    if (o.conv.needs[0] || o.conv.needs[1]) {
      Tensor grad = at::empty(output_size(x, weight, o.conv), grads[0].options(), format_of(x, weight));
      MaxPool2dBackward p{view(grad_pooled), view(offsets), view(grad),
                          window(o.kernel_size, o.stride, {0, 0}, {1, 1})};
      o.conv.library->run("max_pool2d_backward", p, grad_pooled);
      std::tie(found[0], found[1]) = conv_gradients(o.conv, grad, x, weight);
    }
    return {found[0], found[1], grad_bias, Tensor()};
  }
};

py::object conv2d_max_pool2d(const Library& library, const Tensor& x, const Tensor& weight,
                             const Optional& bias, py::handle stride, py::handle padding, py::handle dilation,
                             int64_t groups, const std::string& activation, double activation_param,
                             py::handle pool_kernel_size, py::handle pool_stride) {
  auto c =
      conv_options(library, x, weight, bias, stride, padding, dilation, groups, activation, activation_param);
  auto k = pair(pool_kernel_size), s = pair(pool_stride);
  if (!c || !k || !s || (*k)[0] <= 0 || (*k)[1] <= 0 || (*s)[0] <= 0 || (*s)[1] <= 0) return py::none();
  ConvPoolOptions o{*c, *k, *s};
  const auto size = pooled_size(x, weight, o);
  if (size[2] < 1 || size[3] < 1) return py::none();
  Conv2dMaxPool2d p = pool_params(o, x, weight, bias);
  p.out = imagined(size, format_of(x, weight), x);
  if (!library.covers("conv2d_max_pool2d_covers", p, x)) return py::bool_(false);  // plain, but two kernels
  Tensor out;
  {
    py::gil_scoped_release release;
    out = needs_grad({x, weight, bias}) ? ConvPool::apply(x, weight, bias, std::move(o))
                                        : conv_pool_forward(o, x, weight, bias, false).first;
  }
  return py::cast(out);
}

}  // namespace

void define_conv2d_calls(py::module_& m) {
  m.def("conv2d", &conv2d);
  m.def("conv2d_max_pool2d", &conv2d_max_pool2d);
}

}  // namespace fastdl
