// What the short ways share (calls.cpp, calls_conv2d.cpp): which calls are plain, what their autograd nodes
// keep.
#pragma once

#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/forward_grad.h>
#include <torch/csrc/jit/frontend/tracer.h>

#include "bindings.h"

namespace fastdl {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// ---------------------------------------------------------------------------- what is a plain call

inline bool is_kernel_dtype(at::ScalarType t) {
  return t == at::kFloat || t == at::kHalf || t == at::kBFloat16;
}

// No transform, mode or tracer looks at the calls of this thread.
inline bool undisturbed(const c10::Device& device) {
  const auto tls = c10::impl::tls_local_dispatch_key_set();
  return !tls.included_.has(c10::DispatchKey::FuncTorchDynamicLayerFrontMode) &&
         !c10::impl::TorchDispatchModeTLS::any_modes_set() &&
         !at::autocast::is_autocast_enabled(device.type()) &&
         !torch::autograd::ForwardADLevel::try_get_by_idx(0) && !torch::jit::tracer::isTracing();
}

// An ordinary tensor in memory, on `device`.
inline bool is_plain(const at::Tensor& t, const c10::Device& device) {
  return t.defined() && t.layout() == at::kStrided && t.device() == device && t.numel() > 0 &&
         !t.key_set().has_any(
             c10::DispatchKeySet({c10::DispatchKey::Python, c10::DispatchKey::Negative,
                                  c10::DispatchKey::Conjugate, c10::DispatchKey::ZeroTensor}));
}

inline bool is_plain_input(const at::Tensor& t) {
  return is_kernel_dtype(t.scalar_type()) && is_plain(t, t.device()) && undisturbed(t.device());
}

inline bool needs_grad(std::initializer_list<Optional> tensors) {
  return at::GradMode::is_enabled() && std::any_of(tensors.begin(), tensors.end(),
                                                   [](const Optional& t) { return t && t->requires_grad(); });
}

// An int for both axes, or two of them; nothing for anything else.
inline std::optional<Pair> pair(const py::handle& value) {
  auto integer = [](PyObject* o) -> std::optional<int64_t> {
    if (!PyLong_CheckExact(o)) return std::nullopt;
    int overflow = 0;
    int64_t n = PyLong_AsLongLongAndOverflow(o, &overflow);
    return overflow ? std::nullopt : std::optional<int64_t>(n);
  };
  PyObject* o = value.ptr();
  if (auto n = integer(o)) return Pair{*n, *n};
  if (!PyTuple_CheckExact(o) || PyTuple_GET_SIZE(o) != 2) return std::nullopt;
  auto first = integer(PyTuple_GET_ITEM(o, 0)), second = integer(PyTuple_GET_ITEM(o, 1));
  return first && second ? std::optional<Pair>(Pair{*first, *second}) : std::nullopt;
}

// --------------------------------------------------------------------------------- what nodes keep

// A node's options: one typed value in autograd's context.
template <class Options>
struct KeptOptions : torch::CustomClassHolder {
  explicit KeptOptions(Options o) : options(std::move(o)) {}
  Options options;
};

template <class Options>
void keep(AutogradContext* ctx, Options options) {
  ctx->saved_data["options"] =
      c10::IValue::make_capsule(c10::make_intrusive<KeptOptions<Options>>(std::move(options)));
}

template <class Options>
const Options& kept(AutogradContext* ctx) {
  auto capsule = ctx->saved_data["options"].toCapsule();
  return static_cast<KeptOptions<Options>*>(capsule.get())->options;  // the context keeps it alive
}

// The gradients with create_graph: fastdl.ops.<op>.differentiable_backward(...), in plain torch, which
// returns a list.
template <class... Args>
variable_list differentiable(const char* op, Args&&... args) {
  py::gil_scoped_acquire gil;
  auto module = py::module_::import((std::string("fastdl.ops.") + op).c_str());
  variable_list grads;
  for (auto grad : module.attr("differentiable_backward")(std::forward<Args>(args)...)) {
    grads.push_back(grad.is_none() ? at::Tensor() : grad.template cast<at::Tensor>());
  }
  return grads;
}

inline py::object optional(const at::Tensor& t) { return t.defined() ? py::cast(t) : py::none(); }

inline at::Tensor or_undefined(const Optional& t) { return t.has_value() ? *t : at::Tensor(); }

inline fastdl::Tensor view_if(const at::Tensor& t) { return t.defined() ? view(t) : fastdl::Tensor{}; }

}  // namespace fastdl
