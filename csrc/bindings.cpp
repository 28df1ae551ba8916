// The Python module fastdl._C: opens kernel libraries (library.h) and calls them with torch's tensors. Its
// files are those of csrc/ that know torch: bindings.h, this one, calls.h and calls*.cpp. Shapes, dtypes and
// devices were checked in Python (fastdl/ops), where the outputs were allocated too: here a tensor becomes a
// view, a string an enum, and an error message an exception.
#include "bindings.h"

#include <torch/version.h>

namespace fastdl {

void define_calls(py::module_& m);  // calls.cpp

namespace {

// ----------------------------------------------------------- the ops, with the arguments of Python

void max_pool2d_forward(const Library& library, const at::Tensor& x, const at::Tensor& out,
                        const Optional& offsets, Pair kernel_size, Pair stride, Pair padding, Pair dilation) {
  MaxPool2dForward p{view(x), view(out), view(offsets), window(kernel_size, stride, padding, dilation)};
  py::gil_scoped_release release;
  library.run("max_pool2d_forward", p, x);
}

void max_pool2d_backward(const Library& library, const at::Tensor& grad_out, const at::Tensor& offsets,
                         const at::Tensor& grad_x, Pair kernel_size, Pair stride, Pair padding,
                         Pair dilation) {
  MaxPool2dBackward p{view(grad_out), view(offsets), view(grad_x),
                      window(kernel_size, stride, padding, dilation)};
  py::gil_scoped_release release;
  library.run("max_pool2d_backward", p, grad_out);
}

void batch_norm_forward(const Library& library, const at::Tensor& x, const Optional& weight,
                        const Optional& bias, const Optional& residual, const Optional& running_mean,
                        const Optional& running_var, const at::Tensor& out, const Optional& mean,
                        const Optional& invstd, const Optional& mask, bool training, double momentum,
                        double eps, const std::string& activation, double activation_param) {
  BatchNormForward p{view(x),
                     view(weight),
                     view(bias),
                     view(residual),
                     view(running_mean),
                     view(running_var),
                     view(out),
                     view(mean),
                     view(invstd),
                     view(mask),
                     training,
                     momentum,
                     eps,
                     activation_of(activation),
                     static_cast<float>(activation_param)};
  py::gil_scoped_release release;
  library.run("batch_norm_forward", p, x);
}

void batch_norm_backward(const Library& library, const at::Tensor& grad_out, const at::Tensor& x,
                         const Optional& weight, const Optional& bias, const Optional& out,
                         const at::Tensor& mean, const at::Tensor& invstd, const Optional& mask,
                         const Optional& grad_x, const Optional& grad_weight, const Optional& grad_bias,
                         const Optional& grad_residual, bool training, const std::string& activation,
                         double activation_param) {
  BatchNormBackward p{view(grad_out),
                      view(x),
                      view(weight),
                      view(bias),
                      view(out),
                      view(mean),
                      view(invstd),
                      view(mask),
                      view(grad_x),
                      view(grad_weight),
                      view(grad_bias),
                      view(grad_residual),
                      training,
                      activation_of(activation),
                      static_cast<float>(activation_param)};
  py::gil_scoped_release release;
  library.run("batch_norm_backward", p, x);
}

void cross_entropy_forward(const Library& library, const at::Tensor& input, const at::Tensor& target,
                           const Optional& weight, const at::Tensor& loss, const Optional& lse,
                           const at::Tensor& total_weight, int64_t ignore_index, double label_smoothing,
                           const std::string& reduction) {
  CrossEntropyForward p{view(input),  view(target),    view(weight),
                        view(loss),   view(lse),       view(total_weight),
                        ignore_index, label_smoothing, reduction_of(reduction)};
  py::gil_scoped_release release;
  library.run("cross_entropy_forward", p, input);
}

void cross_entropy_backward(const Library& library, const at::Tensor& grad_loss, const at::Tensor& input,
                            const at::Tensor& target, const Optional& weight, const at::Tensor& lse,
                            const at::Tensor& total_weight, const at::Tensor& grad_input,
                            int64_t ignore_index, double label_smoothing, const std::string& reduction) {
  CrossEntropyBackward p{
      view(grad_loss),    view(input),      view(target), view(weight),    view(lse),
      view(total_weight), view(grad_input), ignore_index, label_smoothing, reduction_of(reduction)};
  py::gil_scoped_release release;
  library.run("cross_entropy_backward", p, input);
}

void cross_entropy_scale(const Library& library, const at::Tensor& grad, const at::Tensor& factor) {
  CrossEntropyScale p{view(grad), view(factor)};
  py::gil_scoped_release release;
  library.run("cross_entropy_scale", p, grad);
}

void affine_grid_sample_forward(const Library& library, const at::Tensor& input, const at::Tensor& theta,
                                const at::Tensor& out, const std::string& mode,
                                const std::string& padding_mode, bool align_corners) {
  AffineGridSampleForward p{
      view(input), view(theta), view(out), mode_of(mode), padding_mode_of(padding_mode), align_corners};
  py::gil_scoped_release release;
  library.run("affine_grid_sample_forward", p, input);
}

void affine_grid_sample_backward(const Library& library, const at::Tensor& grad_out, const at::Tensor& input,
                                 const at::Tensor& theta, const Optional& grad_input,
                                 const Optional& grad_theta, const std::string& mode,
                                 const std::string& padding_mode, bool align_corners) {
  AffineGridSampleBackward p{view(grad_out),
                             view(input),
                             view(theta),
                             view(grad_input),
                             view(grad_theta),
                             mode_of(mode),
                             padding_mode_of(padding_mode),
                             align_corners};
  py::gil_scoped_release release;
  library.run("affine_grid_sample_backward", p, input);
}

void tps_grid_sample_forward(const Library& library, const at::Tensor& input, const at::Tensor& theta,
                             const at::Tensor& control_points, const at::Tensor& out, const std::string& mode,
                             const std::string& padding_mode, bool align_corners) {
  TPSGridSampleForward p{view(input),  view(theta),   view(control_points),
                         view(out),    mode_of(mode), padding_mode_of(padding_mode),
                         align_corners};
  py::gil_scoped_release release;
  library.run("tps_grid_sample_forward", p, input);
}

void tps_grid_sample_backward(const Library& library, const at::Tensor& grad_out, const at::Tensor& input,
                              const at::Tensor& theta, const at::Tensor& control_points,
                              const Optional& grad_input, const Optional& grad_theta, const std::string& mode,
                              const std::string& padding_mode, bool align_corners) {
  TPSGridSampleBackward p{view(grad_out),   view(input),      view(theta),   view(control_points),
                          view(grad_input), view(grad_theta), mode_of(mode), padding_mode_of(padding_mode),
                          align_corners};
  py::gil_scoped_release release;
  library.run("tps_grid_sample_backward", p, input);
}

Conv2dForward conv2d_forward_params(const at::Tensor& x, const at::Tensor& weight, const Optional& bias,
                                    const at::Tensor& out, Pair stride, Pair padding, Pair dilation,
                                    int64_t groups, const std::string& activation, double activation_param) {
  return {view(x), view(weight), view(bias), view(out),
          convolution(stride, padding, dilation, groups, activation, activation_param)};
}

Conv2dBackward conv2d_backward_params(const at::Tensor& grad_out, const at::Tensor& x,
                                      const at::Tensor& weight, const Optional& grad_x,
                                      const Optional& grad_weight, Pair stride, Pair padding, Pair dilation,
                                      int64_t groups) {
  return {view(grad_out), view(x),           view(weight),
          view(grad_x),   view(grad_weight), convolution(stride, padding, dilation, groups, "", 0.0)};
}

Conv2dMaxPool2d conv2d_max_pool2d_params(const at::Tensor& x, const at::Tensor& weight, const Optional& bias,
                                         const at::Tensor& out, const Optional& offsets, Pair stride,
                                         Pair padding, Pair dilation, int64_t groups,
                                         const std::string& activation, double activation_param,
                                         Pair pool_kernel_size, Pair pool_stride) {
  return {view(x),
          view(weight),
          view(bias),
          view(out),
          view(offsets),
          convolution(stride, padding, dilation, groups, activation, activation_param),
          {pool_kernel_size[0], pool_kernel_size[1]},
          {pool_stride[0], pool_stride[1]}};
}

// The same arguments under both names: what a direct kernel would be called with, and the call.
template <auto params, class = decltype(params)>
struct Direct;
template <auto params, class Params, class... Args>
struct Direct<params, Params (*)(const at::Tensor&, Args...)> {
  static auto run(const char* name) {
    return [name](const Library& library, const at::Tensor& first, Args... args) {
      auto p = params(first, args...);
      py::gil_scoped_release release;
      library.run(name, p, first);
    };
  }
  static auto covers(const char* name) {
    return [name](const Library& library, const at::Tensor& first, Args... args) {
      return library.covers(name, params(first, args...), first);
    };
  }
};

void conv2d_epilogue(const Library& library, const at::Tensor& out, const Optional& bias,
                     const std::string& activation, double activation_param) {
  Conv2dEpilogue p{view(out), view(bias), activation_of(activation), static_cast<float>(activation_param)};
  py::gil_scoped_release release;
  library.run("conv2d_epilogue", p, out);
}

void conv2d_epilogue_backward(const Library& library, const at::Tensor& grad_out, const Optional& out,
                              const Optional& grad_pre, const Optional& grad_bias,
                              const std::string& activation, double activation_param) {
  Conv2dEpilogueBackward p{view(grad_out),
                           view(out),
                           view(grad_pre),
                           view(grad_bias),
                           activation_of(activation),
                           static_cast<float>(activation_param)};
  py::gil_scoped_release release;
  library.run("conv2d_epilogue_backward", p, grad_out);
}

py::dict build_info() {
  py::dict info;
  info["torch"] = TORCH_VERSION;
#ifdef __VERSION__
  info["compiler"] = __VERSION__;
#endif
  info["interface"] = kVersion;
  return info;
}

}  // namespace
}  // namespace fastdl

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  using namespace fastdl;
  m.doc() = "fastdl's kernel libraries, called with torch's tensors.";
  m.def("build_info", &build_info, "What this module was built with.");

  define_calls(m);

  using Forward = Direct<&conv2d_forward_params>;
  using Backward = Direct<&conv2d_backward_params>;
  using MaxPool = Direct<&conv2d_max_pool2d_params>;
  const auto kw = py::kw_only();

  py::class_<Library>(m, "Library", "A shared object of kernels: one method per op and direction.")
      .def(py::init<const std::string&>(), py::arg("path"))
      .def("describe", &Library::describe)
      .def("max_pool2d_forward", &max_pool2d_forward, py::arg("x"), py::arg("out"), py::arg("offsets"), kw,
           py::arg("kernel_size"), py::arg("stride"), py::arg("padding"), py::arg("dilation"))
      .def("max_pool2d_backward", &max_pool2d_backward, py::arg("grad_out"), py::arg("offsets"),
           py::arg("grad_x"), kw, py::arg("kernel_size"), py::arg("stride"), py::arg("padding"),
           py::arg("dilation"))
      .def("batch_norm_forward", &batch_norm_forward, py::arg("x"), py::arg("weight"), py::arg("bias"),
           py::arg("residual"), py::arg("running_mean"), py::arg("running_var"), py::arg("out"),
           py::arg("mean"), py::arg("invstd"), py::arg("mask"), kw, py::arg("training"), py::arg("momentum"),
           py::arg("eps"), py::arg("activation"), py::arg("activation_param"))
      .def("batch_norm_backward", &batch_norm_backward, py::arg("grad_out"), py::arg("x"), py::arg("weight"),
           py::arg("bias"), py::arg("out"), py::arg("mean"), py::arg("invstd"), py::arg("mask"),
           py::arg("grad_x"), py::arg("grad_weight"), py::arg("grad_bias"), py::arg("grad_residual"), kw,
           py::arg("training"), py::arg("activation"), py::arg("activation_param"))
      .def("cross_entropy_forward", &cross_entropy_forward, py::arg("input"), py::arg("target"),
           py::arg("weight"), py::arg("loss"), py::arg("lse"), py::arg("total_weight"), kw,
           py::arg("ignore_index"), py::arg("label_smoothing"), py::arg("reduction"))
      .def("cross_entropy_backward", &cross_entropy_backward, py::arg("grad_loss"), py::arg("input"),
           py::arg("target"), py::arg("weight"), py::arg("lse"), py::arg("total_weight"),
           py::arg("grad_input"), kw, py::arg("ignore_index"), py::arg("label_smoothing"),
           py::arg("reduction"))
      .def("cross_entropy_scale", &cross_entropy_scale, py::arg("grad"), py::arg("factor"))
      .def("affine_grid_sample_forward", &affine_grid_sample_forward, py::arg("input"), py::arg("theta"),
           py::arg("out"), kw, py::arg("mode"), py::arg("padding_mode"), py::arg("align_corners"))
      .def("affine_grid_sample_backward", &affine_grid_sample_backward, py::arg("grad_out"), py::arg("input"),
           py::arg("theta"), py::arg("grad_input"), py::arg("grad_theta"), kw, py::arg("mode"),
           py::arg("padding_mode"), py::arg("align_corners"))
      .def("tps_grid_sample_forward", &tps_grid_sample_forward, py::arg("input"), py::arg("theta"),
           py::arg("control_points"), py::arg("out"), kw, py::arg("mode"), py::arg("padding_mode"),
           py::arg("align_corners"))
      .def("tps_grid_sample_backward", &tps_grid_sample_backward, py::arg("grad_out"), py::arg("input"),
           py::arg("theta"), py::arg("control_points"), py::arg("grad_input"), py::arg("grad_theta"), kw,
           py::arg("mode"), py::arg("padding_mode"), py::arg("align_corners"))
      .def("conv2d_forward", Forward::run("conv2d_forward"), py::arg("x"), py::arg("weight"), py::arg("bias"),
           py::arg("out"), kw, py::arg("stride"), py::arg("padding"), py::arg("dilation"), py::arg("groups"),
           py::arg("activation"), py::arg("activation_param"))
      .def("conv2d_forward_covers", Forward::covers("conv2d_forward_covers"), py::arg("x"), py::arg("weight"),
           py::arg("bias"), py::arg("out"), kw, py::arg("stride"), py::arg("padding"), py::arg("dilation"),
           py::arg("groups"), py::arg("activation"), py::arg("activation_param"))
      .def("conv2d_backward", Backward::run("conv2d_backward"), py::arg("grad_out"), py::arg("x"),
           py::arg("weight"), py::arg("grad_x"), py::arg("grad_weight"), kw, py::arg("stride"),
           py::arg("padding"), py::arg("dilation"), py::arg("groups"))
      .def("conv2d_backward_covers", Backward::covers("conv2d_backward_covers"), py::arg("grad_out"),
           py::arg("x"), py::arg("weight"), py::arg("grad_x"), py::arg("grad_weight"), kw, py::arg("stride"),
           py::arg("padding"), py::arg("dilation"), py::arg("groups"))
      .def("conv2d_max_pool2d", MaxPool::run("conv2d_max_pool2d"), py::arg("x"), py::arg("weight"),
           py::arg("bias"), py::arg("out"), py::arg("offsets"), kw, py::arg("stride"), py::arg("padding"),
           py::arg("dilation"), py::arg("groups"), py::arg("activation"), py::arg("activation_param"),
           py::arg("pool_kernel_size"), py::arg("pool_stride"))
      .def("conv2d_max_pool2d_covers", MaxPool::covers("conv2d_max_pool2d_covers"), py::arg("x"),
           py::arg("weight"), py::arg("bias"), py::arg("out"), py::arg("offsets"), kw, py::arg("stride"),
           py::arg("padding"), py::arg("dilation"), py::arg("groups"), py::arg("activation"),
           py::arg("activation_param"), py::arg("pool_kernel_size"), py::arg("pool_stride"))
      .def("conv2d_epilogue", &conv2d_epilogue, py::arg("out"), py::arg("bias"), kw, py::arg("activation"),
           py::arg("activation_param"))
      .def("conv2d_epilogue_backward", &conv2d_epilogue_backward, py::arg("grad_out"), py::arg("out"),
           py::arg("grad_pre"), py::arg("grad_bias"), kw, py::arg("activation"), py::arg("activation_param"));
}
