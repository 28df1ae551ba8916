// Whole calls in C++, autograd included: the short way of fastdl/ops for a plain call that a kernel library
// serves. Small networks are bound by what a call costs before any kernel runs, and in C++ that is a tenth of
// Python's.
//
// A function here returns None for whatever is not plain (an argument to complain of, a layout to copy,
// autocast, transforms, tracing, ...): fastdl/ops then goes its own way, which knows everything. What both
// allocate and save is the same; tests/test_short_way.py holds the results equal bit for bit.
#include "calls.h"

namespace fastdl {
namespace {

using at::Tensor;

// -------------------------------------------------------------------------------------- max_pool2d

struct PoolOptions {
  const Library* library;
  Window window;
  std::vector<int64_t> size;
  at::MemoryFormat format;
};

int64_t pool_output_size(int64_t size, const Window& w, int axis, bool ceil_mode) {
  int64_t reach = size + 2 * w.padding[axis] - w.dilation[axis] * (w.kernel_size[axis] - 1) - 1;
  if (reach < 0) return 0;
  int64_t windows = (reach + (ceil_mode ? w.stride[axis] - 1 : 0)) / w.stride[axis] + 1;
  if (ceil_mode && (windows - 1) * w.stride[axis] >= size + w.padding[axis]) --windows;
  return windows;
}

std::pair<Tensor, Tensor> pool_forward(const PoolOptions& o, const Tensor& x, Pair output, bool save) {
  const int64_t cells = o.window.kernel_size[0] * o.window.kernel_size[1];
  const auto dtype = cells <= 256 ? at::kByte : cells <= (1 << 15) ? at::kShort : at::kInt;
  Tensor out = at::empty({x.size(0), x.size(1), output[0], output[1]}, x.options(), o.format);
  Tensor offsets = save ? at::empty(out.sizes(), x.options().dtype(dtype), o.format) : Tensor();
  MaxPool2dForward p{view(x), view(out), view_if(offsets), o.window};
  o.library->run("max_pool2d_forward", p, x);
  return {out, offsets};
}

struct MaxPool2d : Function<MaxPool2d> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, PoolOptions o, Pair output) {
    auto [out, offsets] = pool_forward(o, x, output, true);
    ctx->save_for_backward({offsets});
    keep(ctx, std::move(o));
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto& o = kept<PoolOptions>(ctx);
    Tensor offsets = ctx->get_saved_variables()[0], grad_x;
    if (at::GradMode::is_enabled()) {
      const auto& w = o.window;
      auto two = [](const int64_t* v) { return Pair{v[0], v[1]}; };
      py::gil_scoped_acquire gil;
      grad_x = differentiable("max_pool2d", grads[0], offsets, o.size, two(w.kernel_size), two(w.stride),
                              two(w.padding), two(w.dilation))[0];
    } else {
      grad_x = at::empty(o.size, grads[0].options(), o.format);
      MaxPool2dBackward p{view(grads[0]), view(offsets), view(grad_x), o.window};
      o.library->run("max_pool2d_backward", p, grads[0]);
    }
    return {grad_x, Tensor(), Tensor()};
  }
};

py::object max_pool2d(const Library& library, const Tensor& x, py::handle kernel_size, py::handle stride,
                      py::handle padding, py::handle dilation, bool ceil_mode) {
  auto k = pair(kernel_size), s = stride.is_none() ? k : pair(stride), p = pair(padding), d = pair(dilation);
  if (!k || !s || !p || !d || x.dim() != 4 || !is_plain_input(x)) return py::none();
  Window w = window(*k, *s, *p, *d);
  Pair output;
  for (int i = 0; i < 2; ++i) {
    if (w.kernel_size[i] <= 0 || w.stride[i] <= 0 || w.dilation[i] <= 0 || w.padding[i] < 0)
      return py::none();
    if (w.padding[i] > w.kernel_size[i] / 2 || w.kernel_size[i] > (1 << 24) || w.dilation[i] > (1 << 24))
      return py::none();
    output[i] = pool_output_size(x.size(2 + i), w, i, ceil_mode);
    if (output[i] < 1) return py::none();
  }
  PoolOptions o{&library, w, x.sizes().vec(), x.suggest_memory_format()};
  const bool save = needs_grad({x});
  Tensor out;
  {
    py::gil_scoped_release release;
    out = save ? MaxPool2d::apply(x, std::move(o), output) : pool_forward(o, x, output, false).first;
  }
  return py::cast(out);
}

// ----------------------------------------------------------------------------------- cross_entropy

struct LossOptions {
  const Library* library;
  int64_t ignore_index;
  double label_smoothing;
  Reduction reduction;
  std::string reduction_name;
};

// A tensor with its axes from `axis` on as one, which it need not have; without an op of torch's where there
// are none or one.
struct Flat {
  Tensor tensor;
  fastdl::Tensor view;
};

Flat flat(const Tensor& t, int64_t axis) {
  if (t.dim() > axis + 1) {
    auto shape = t.sizes().slice(0, axis).vec();
    shape.push_back(-1);
    return flat(t.reshape(shape), axis);
  }
  Flat made{t, view(t)};
  if (t.dim() == axis) {
    made.view.dim = static_cast<int32_t>(axis) + 1;
    made.view.size[axis] = made.view.stride[axis] = 1;
  }
  return made;
}

struct Loss {
  Tensor loss, lse, total_weight;  // the last two for backward alone
};

Loss loss_forward(const LossOptions& o, const Tensor& input, const Tensor& target, const Optional& weight,
                  bool save) {
  const Flat logits = flat(input, 2), classes = flat(target, 1);
  const bool each = o.reduction == Reduction::kNone;
  auto floats = input.options().dtype(at::kFloat);
  Loss made{at::empty(each ? target.sizes() : at::IntArrayRef{}, input.options()), Tensor(), Tensor()};
  if (save) made.lse = at::empty({classes.view.size[0], classes.view.size[1]}, floats);
  if (save && o.reduction == Reduction::kMean) made.total_weight = at::empty({}, floats);
  CrossEntropyForward p{logits.view,       classes.view,
                        view(weight),      each ? flat(made.loss, 1).view : view(made.loss),
                        view_if(made.lse), view_if(made.total_weight),
                        o.ignore_index,    o.label_smoothing,
                        o.reduction};
  o.library->run("cross_entropy_forward", p, input);
  return made;
}

struct CrossEntropy : Function<CrossEntropy> {
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& target,
                        const Optional& weight, LossOptions o) {
    Loss made = loss_forward(o, input, target, weight, true);
    ctx->save_for_backward({input, target, or_undefined(weight), made.lse, made.total_weight});
    keep(ctx, std::move(o));
    return made.loss;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto& o = kept<LossOptions>(ctx);
    auto saved = ctx->get_saved_variables();
    const Tensor &input = saved[0], &target = saved[1], &weight = saved[2];
    Tensor grad_input;
    if (at::GradMode::is_enabled()) {
      py::gil_scoped_acquire gil;
      grad_input = differentiable("cross_entropy", grads[0], input, target, optional(weight), o.ignore_index,
                                  o.reduction_name, o.label_smoothing)[0];
    } else {
      const Flat logits = flat(input, 2), classes = flat(target, 1);
      const Flat grad_loss = flat(grads[0], o.reduction == Reduction::kNone ? 1 : 0);
      const Flat grad_logits = flat(at::empty_like(logits.tensor), 2);
      CrossEntropyBackward p{grad_loss.view,    logits.view,       classes.view,     view_if(weight),
                             view(saved[3]),    view_if(saved[4]), grad_logits.view, o.ignore_index,
                             o.label_smoothing, o.reduction};
      o.library->run("cross_entropy_backward", p, input);
      grad_input = grad_logits.tensor.view_as(input);
    }
    return {grad_input, Tensor(), Tensor(), Tensor()};
  }
};

// Whether all class indices are classes or ignored; CPU tensors.
bool in_range(const Tensor& target, int64_t classes, int64_t ignore_index) {
  auto all = [&](auto type) {
    using T = decltype(type);
    const T* t = static_cast<const T*>(target.const_data_ptr());
    return std::all_of(t, t + target.numel(), [&](T value) {
      auto index = static_cast<int64_t>(value);
      return static_cast<uint64_t>(index) < static_cast<uint64_t>(classes) || index == ignore_index;
    });
  };
  return target.scalar_type() == at::kLong ? all(int64_t{}) : all(uint8_t{});
}

py::object cross_entropy(const Library& library, const Tensor& input, const Tensor& target,
                         const Optional& weight, int64_t ignore_index, const std::string& reduction,
                         double label_smoothing) {
  if (input.dim() < 2 || !is_plain_input(input) || !is_plain(target, input.device())) return py::none();
  if (target.scalar_type() != at::kLong && target.scalar_type() != at::kByte) return py::none();
  if (target.dim() != input.dim() - 1 || target.size(0) != input.size(0) || !target.is_contiguous())
    return py::none();
  if (target.sizes().slice(1) != input.sizes().slice(2)) return py::none();
  if (!(label_smoothing >= 0.0 && label_smoothing <= 1.0)) return py::none();
  if (reduction != "none" && reduction != "mean" && reduction != "sum") return py::none();
  if (weight.has_value()) {
    if (!is_plain(*weight, input.device()) || weight->scalar_type() != input.scalar_type() ||
        weight->dim() != 1 || weight->size(0) != input.size(1) || !weight->is_contiguous() ||
        weight->requires_grad())
      return py::none();
  }
  // the complaint is Python's to word; a GPU is not waited for
  if (input.is_cpu() && !in_range(target, input.size(1), ignore_index)) return py::none();
  LossOptions o{&library, ignore_index, label_smoothing, reduction_of(reduction), reduction};
  const bool save = needs_grad({input});
  Tensor loss;
  {
    py::gil_scoped_release release;
    loss = save ? CrossEntropy::apply(input, target, weight, std::move(o))
                : loss_forward(o, input, target, weight, false).loss;
  }
  return py::cast(loss);
}

// -------------------------------------------------------------------------------------- batch_norm

struct NormOptions {
  const Library* library;
  bool training;
  double momentum, eps;
  Activation activation;
  float activation_param;
  std::string activation_name;
  bool has_residual;
  std::array<bool, 4> needs;  // gradients of x, weight, bias, residual
};

struct Norm {
  Tensor out, mean, invstd, mask;
};

struct NormInputs {
  Tensor x;
  Optional weight, bias, residual, running_mean, running_var;
};

Norm norm_forward(const NormOptions& o, const NormInputs& t, bool save) {
  Norm made;
  made.out = at::empty_like(t.x);
  if (o.training || save) {
    made.mean = at::empty({t.x.size(1)}, t.x.options().dtype(at::kFloat));
    made.invstd = at::empty_like(made.mean);
  }
  if (save && o.has_residual && o.activation == Activation::kReLU)
    made.mask =
        at::empty({(t.x.numel() + 7) / 8}, t.x.options().dtype(at::kByte), at::MemoryFormat::Contiguous);
  BatchNormForward p{view(t.x),
                     view(t.weight),
                     view(t.bias),
                     view(t.residual),
                     view(t.running_mean),
                     view(t.running_var),
                     view(made.out),
                     view_if(made.mean),
                     view_if(made.invstd),
                     view_if(made.mask),
                     o.training,
                     o.momentum,
                     o.eps,
                     o.activation,
                     o.activation_param};
  o.library->run("batch_norm_forward", p, t.x);
  if (o.training) {
    for (const Optional& moved : {t.running_mean, t.running_var})
      if (moved && !moved->is_inference()) moved->unsafeGetTensorImpl()->bump_version();
  }
  return made;
}

struct BatchNorm : Function<BatchNorm> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Optional& weight, const Optional& bias,
                        const Optional& residual, const Optional& running_mean, const Optional& running_var,
                        NormOptions o) {
    Norm made = norm_forward(o, {x, weight, bias, residual, running_mean, running_var}, true);
    const bool saves_out =
        o.has_residual && o.activation != Activation::kNone && o.activation != Activation::kReLU;
    ctx->save_for_backward({x, or_undefined(weight), or_undefined(bias), saves_out ? made.out : Tensor(),
                            made.mean, made.invstd, made.mask});
    keep(ctx, std::move(o));
    return made.out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto& o = kept<NormOptions>(ctx);
    auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &bias = saved[2];
    variable_list found(4);
    if (at::GradMode::is_enabled()) {
      py::gil_scoped_acquire gil;
      found = differentiable("batch_norm", grads[0], x, optional(weight), optional(bias), optional(saved[3]),
                             saved[4], saved[5], optional(saved[6]), o.training, o.eps, o.activation_name,
                             o.activation_param, o.has_residual);
    } else {
      Tensor grad_out = grads[0].contiguous(x.suggest_memory_format());
      const bool passed_on = o.needs[3] && o.activation == Activation::kNone;  // no kernel copies it
      if (o.needs[0]) found[0] = at::empty_like(x);
      if (o.needs[1]) found[1] = at::empty_like(weight);
      if (o.needs[2]) found[2] = at::empty_like(bias);
      if (o.needs[3] && !passed_on) found[3] = at::empty_like(x);
      BatchNormBackward p{view(grad_out),    view(x),           view_if(weight),   view_if(bias),
                          view_if(saved[3]), view(saved[4]),    view(saved[5]),    view_if(saved[6]),
                          view_if(found[0]), view_if(found[1]), view_if(found[2]), view_if(found[3]),
                          o.training,        o.activation,      o.activation_param};
      if (found[0].defined() || found[1].defined() || found[2].defined() || found[3].defined())
        o.library->run("batch_norm_backward", p, x);
      if (passed_on) found[3] = grad_out;
    }
    return {found[0], found[1], found[2], found[3], Tensor(), Tensor(), Tensor()};
  }
};

py::object batch_norm(const Library& library, const Tensor& x, const Optional& running_mean,
                      const Optional& running_var, const Optional& weight, const Optional& bias,
                      bool training, double momentum, double eps, const Optional& residual,
                      const std::string& activation, double activation_param) {
  if (x.dim() < 2 || x.dim() > 5 || !is_plain_input(x) || !(eps > 0.0)) return py::none();
  const auto format = x.suggest_memory_format();
  if (!x.is_contiguous(format)) return py::none();
  if (training ? running_mean.has_value() != running_var.has_value() || x.numel() == x.size(1)
               : !running_mean.has_value() || !running_var.has_value())
    return py::none();
  for (const Optional* t : {&running_mean, &running_var, &weight, &bias}) {
    if (!t->has_value()) continue;
    const Tensor& v = **t;
    if (!is_plain(v, x.device()) || v.dim() != 1 || v.size(0) != x.size(1) || !v.is_contiguous() ||
        (v.scalar_type() != at::kFloat && v.scalar_type() != x.scalar_type()))
      return py::none();
  }
  if ((running_mean && running_mean->requires_grad()) || (running_var && running_var->requires_grad()))
    return py::none();
  if (residual.has_value() &&
      (!is_plain(*residual, x.device()) || residual->scalar_type() != x.scalar_type() ||
       residual->sizes() != x.sizes() || residual->strides() != x.strides()))
    return py::none();
  NormInputs t{x, weight, bias, residual, running_mean, running_var};
  NormOptions o{&library,
                training,
                momentum,
                eps,
                activation_of(activation),
                static_cast<float>(activation_param),
                activation,
                residual.has_value(),
                {needs_grad({x}), needs_grad({weight}), needs_grad({bias}), needs_grad({residual})}};
  const bool save = needs_grad({x, weight, bias, residual});
  Tensor out;
  {
    py::gil_scoped_release release;
    out = save ? BatchNorm::apply(t.x, t.weight, t.bias, t.residual, t.running_mean, t.running_var,
                                  std::move(o))
               : norm_forward(o, t, false).out;
  }
  return py::cast(out);
}

}  // namespace

void define_conv2d_calls(py::module_& m);    // calls_conv2d.cpp
void define_sampling_calls(py::module_& m);  // calls_sampling.cpp

void define_calls(py::module_& m) {
  define_conv2d_calls(m);
  define_sampling_calls(m);
  m.def("max_pool2d", &max_pool2d);
  m.def("cross_entropy", &cross_entropy);
  m.def("batch_norm", &batch_norm);
}

}  // namespace fastdl
