// What the files of fastdl._C share: from torch's tensors and Python's options to a library's, and the call
// itself.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/record_function.h>
#include <c10/core/Allocator.h>
#include <c10/core/DeviceGuard.h>
#include <dlfcn.h>
#include <pybind11/gil_safe_call_once.h>
#include <pybind11/stl.h>
#include <torch/csrc/stable/c/shim.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <array>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "affine_grid_sample.h"
#include "batch_norm.h"
#include "conv2d.h"
#include "cross_entropy.h"
#include "library.h"
#include "max_pool2d.h"
#include "tps_grid_sample.h"

namespace py = pybind11;

namespace fastdl {

using Pair = std::array<int64_t, 2>;
using Optional = std::optional<at::Tensor>;

// ------------------------------------------------------------------ from Python's to the library's

inline DType dtype_of(const at::Tensor& t) {
  switch (t.scalar_type()) {
    case at::kFloat:
      return DType::kFloat32;
    case at::kHalf:
      return DType::kFloat16;
    case at::kBFloat16:
      return DType::kBFloat16;
    case at::kByte:
      return DType::kUInt8;
    case at::kShort:
      return DType::kInt16;
    case at::kInt:
      return DType::kInt32;
    case at::kLong:
      return DType::kInt64;
    default:
      throw std::invalid_argument("fastdl._C: a dtype that no kernel knows");
  }
}

inline Tensor view(const at::Tensor& t) {
  if (t.dim() > kMaxDim) throw std::invalid_argument("fastdl._C: a tensor of more than 5 dimensions");
  Tensor v;
  v.data = t.data_ptr();
  v.dim = static_cast<int32_t>(t.dim());
  v.dtype = dtype_of(t);
  for (int64_t i = 0; i < t.dim(); ++i) {
    v.size[i] = t.size(i);
    v.stride[i] = t.stride(i);
  }
  return v;
}

inline Tensor view(const Optional& t) { return t.has_value() ? view(*t) : Tensor{}; }

template <class Enum, size_t n>
Enum among(const std::array<const char*, n>& names, const std::string& name) {
  auto found = std::find(names.begin(), names.end(), name);
  if (found == names.end()) throw std::invalid_argument("fastdl._C: unknown option '" + name + "'");
  return static_cast<Enum>(found - names.begin());
}

inline Activation activation_of(const std::string& name) {
  static const std::array<const char*, 7> names = {"",        "relu", "leaky_relu", "elu",
                                                   "sigmoid", "tanh", "softplus"};
  return among<Activation>(names, name);
}

inline Reduction reduction_of(const std::string& name) {
  static const std::array<const char*, 3> names = {"none", "mean", "sum"};
  return among<Reduction>(names, name);
}

inline Interpolation mode_of(const std::string& name) {
  static const std::array<const char*, 2> names = {"bilinear", "nearest"};
  return among<Interpolation>(names, name);
}

inline PaddingMode padding_mode_of(const std::string& name) {
  static const std::array<const char*, 3> names = {"zeros", "border", "reflection"};
  return among<PaddingMode>(names, name);
}

inline Window window(const Pair& kernel_size, const Pair& stride, const Pair& padding, const Pair& dilation) {
  Window w;
  for (int i = 0; i < 2; ++i) {
    w.kernel_size[i] = kernel_size[i];
    w.stride[i] = stride[i];
    w.padding[i] = padding[i];
    w.dilation[i] = dilation[i];
  }
  return w;
}

inline Convolution convolution(const Pair& stride, const Pair& padding, const Pair& dilation, int64_t groups,
                               const std::string& activation, double activation_param) {
  Convolution c;
  for (int i = 0; i < 2; ++i) {
    c.stride[i] = stride[i];
    c.padding[i] = padding[i];
    c.dilation[i] = dilation[i];
  }
  c.groups = groups;
  c.activation = activation_of(activation);
  c.activation_param = static_cast<float>(activation_param);
  return c;
}

// ------------------------------------------------------------------------------------------- calls

// By the function that torch exports: at::parallel_for would be compiled in here, with the threads of
// whatever OpenMP this file is linked with.
inline void parallel_for(int64_t n, int64_t grain, void (*fn)(void*, int64_t, int64_t), void* data) {
  struct Body {
    void (*fn)(void*, int64_t, int64_t);
    void* data;
  } body{fn, data};
  torch_parallel_for(
      0, n, grain,
      [](int64_t begin, int64_t end, void* context) {
        auto* body = static_cast<Body*>(context);
        body->fn(body->data, begin, end);
      },
      &body);
}

inline int32_t torch_threads() {
  uint32_t threads = 1;
  torch_get_num_threads(&threads);
  return static_cast<int32_t>(threads);
}

// torch's current stream of a CUDA device, asked of torch in Python: its C++ header is not in a CPU build.
inline void* current_stream(const c10::Device& device) {
  if (!device.is_cuda()) return nullptr;
  py::gil_scoped_acquire gil;  // autograd's threads come without it
  PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<py::object> ask;
  auto find = [] { return py::object(py::module_::import("torch._C").attr("_cuda_getCurrentRawStream")); };
  auto stream = ask.call_once_and_store_result(find).get_stored()(device.index());
  return reinterpret_cast<void*>(stream.cast<uintptr_t>());
}

// One call: its scratch lives as long as this. Freeing CUDA scratch is in stream order, by torch's allocator.
struct Call : Context {
  explicit Call(const at::Tensor& on) : guard(on.device()), allocator(c10::GetAllocator(on.device().type())) {
    Context::allocate = &Call::scratch;
    Context::parallel_for = &fastdl::parallel_for;
    num_threads = torch_threads();
    device = on.is_cuda() ? on.device().index() : 0;
    stream = current_stream(on.device());
  }

  static void* scratch(Context* context, int64_t bytes) {
    auto* call = static_cast<Call*>(context);
    try {
      call->blocks.push_back(call->allocator->allocate(std::max<int64_t>(bytes, 1)));
    } catch (const std::exception&) {
      return nullptr;
    }
    return call->blocks.back().get();
  }

  c10::DeviceGuard guard;
  c10::Allocator* allocator;
  std::vector<c10::DataPtr> blocks;
};

template <class Params>
using Entry = const char* (*)(const Params*, Context*);
template <class Params>
using Covers = bool (*)(const Params*);

// A kernel library. It stays open to the end of the process.
class Library {
 public:
  explicit Library(const std::string& path) : handle_(dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) {
    if (handle_ == nullptr) throw std::runtime_error(dlerror());
    auto version = symbol<int32_t (*)()>("version")();
    if (version != kVersion) {
      throw std::runtime_error(path + " has version " + std::to_string(version) +
                               " of the kernels' interface, not " + std::to_string(kVersion) +
                               ": build fastdl again");
    }
  }

  std::string describe() const { return symbol<const char* (*)()>("describe")(); }

  // With or without the GIL, which a library has no use for: callers that hold it release it.
  template <class Params>
  void run(const char* name, const Params& params, const at::Tensor& on) const {
    RECORD_FUNCTION(std::string("fastdl::") + name, {});  // for torch.profiler
    auto entry = symbol<Entry<Params>>(name);
    Call call(on);
    const char* error = entry(&params, &call);
    if (error != nullptr) throw std::runtime_error(std::string("fastdl.") + name + ": " + error);
  }

  // Asked with the tensor's device as the current one: what it can do is part of the answer.
  template <class Params>
  bool covers(const char* name, const Params& params, const at::Tensor& on) const {
    const c10::DeviceGuard guard(on.device());
    return symbol<Covers<Params>>(name)(&params);
  }

 private:
  // `name` outlives this.
  template <class Function>
  Function symbol(const char* name) const {
    const std::lock_guard lock(mutex_);
    void*& found = found_[name];
    if (found == nullptr) found = dlsym(handle_, (std::string("fastdl_") + name).c_str());
    if (found == nullptr) throw std::runtime_error(std::string("fastdl._C: this library has no ") + name);
    return reinterpret_cast<Function>(found);
  }

  void* handle_;
  mutable std::mutex mutex_;
  mutable std::unordered_map<std::string_view, void*> found_;  // dlsym takes longer than some calls have
};

}  // namespace fastdl
