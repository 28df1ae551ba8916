// Whole calls of the ops that sample an image: see calls.cpp.
#include <ATen/ops/matmul.h>

#include "calls.h"

namespace fastdl {
namespace {

using at::Tensor;

struct SampleOptions {
  const Library* library;
  Interpolation mode;
  PaddingMode padding_mode;
  bool align_corners;
  std::string mode_name, padding_mode_name;
  Pair size;

  SampleOptions(const Library& library, const std::string& mode, const std::string& padding_mode,
                bool align_corners, Pair size)
      : library(&library),
        mode(mode_of(mode)),
        padding_mode(padding_mode_of(padding_mode)),
        align_corners(align_corners),
        mode_name(mode),
        padding_mode_name(padding_mode),
        size(size) {}
};

// `warps` [N, ...]: theta or points.
bool is_plain_sampling(const Tensor& input, const Tensor& warps, const std::array<int64_t, 4>& size,
                       const std::string& mode, const std::string& padding_mode) {
  if (input.dim() != 4 || !is_plain_input(input)) return false;
  if (warps.dim() != 3 || warps.size(0) != size[0] || !is_plain(warps, input.device()) ||
      !is_kernel_dtype(warps.scalar_type()))
    return false;
  if (size[1] < 1 || size[2] < 1 || size[3] < 1 || (input.size(0) != 1 && input.size(0) != size[0]))
    return false;
  return (mode == "bilinear" || mode == "nearest") &&
         (padding_mode == "zeros" || padding_mode == "border" || padding_mode == "reflection");
}

Tensor empty_out(const SampleOptions& o, const Tensor& input, const Tensor& theta) {
  return at::empty({theta.size(0), input.size(1), o.size[0], o.size[1]}, input.options(),
                   at::MemoryFormat::Contiguous);
}

// Those asked for, of the image and of theta.
variable_list empty_grads(AutogradContext* ctx, const Tensor& input, const Tensor& theta) {
  auto contiguous = at::MemoryFormat::Contiguous;
  variable_list grads(2);
  if (ctx->needs_input_grad(0)) grads[0] = at::empty(input.sizes(), input.options(), contiguous);
  if (ctx->needs_input_grad(1)) grads[1] = at::empty(theta.sizes(), theta.options(), contiguous);
  return grads;
}

// ------------------------------------------------------------------------------ affine_grid_sample

Tensor affine_forward(const SampleOptions& o, const Tensor& input, const Tensor& theta) {
  Tensor out = empty_out(o, input, theta);
  AffineGridSampleForward p{view(input), view(theta), view(out), o.mode, o.padding_mode, o.align_corners};
  o.library->run("affine_grid_sample_forward", p, input);
  return out;
}

struct AffineGridSample : Function<AffineGridSample> {
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& theta, SampleOptions o) {
    Tensor out = affine_forward(o, input, theta);
    ctx->save_for_backward({input, theta});
    keep(ctx, std::move(o));
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto& o = kept<SampleOptions>(ctx);
    auto saved = ctx->get_saved_variables();
    const Tensor &input = saved[0], &theta = saved[1];
    variable_list found;
    if (at::GradMode::is_enabled()) {
      found = differentiable("affine_grid_sample", grads[0], input, theta, o.size, o.mode_name,
                             o.padding_mode_name, o.align_corners);
    } else {
      found = empty_grads(ctx, input, theta);
      AffineGridSampleBackward p{view(grads[0]),    view(input), view(theta),    view_if(found[0]),
                                 view_if(found[1]), o.mode,      o.padding_mode, o.align_corners};
      o.library->run("affine_grid_sample_backward", p, input);
    }
    return {found[0], found[1], Tensor()};
  }
};

py::object affine_grid_sample(const Library& library, const Tensor& input, const Tensor& theta, int64_t n,
                              int64_t c, int64_t height, int64_t width, const std::string& mode,
                              const std::string& padding_mode, bool align_corners) {
  if (!is_plain_sampling(input, theta, {n, c, height, width}, mode, padding_mode)) return py::none();
  if (theta.size(1) != 2 || theta.size(2) != 3) return py::none();
  SampleOptions o(library, mode, padding_mode, align_corners, {height, width});
  const bool save = needs_grad({input, theta});
  Tensor out;
  {
    py::gil_scoped_release release;
    out = save ? AffineGridSample::apply(input, theta, std::move(o)) : affine_forward(o, input, theta);
  }
  return py::cast(out);
}

// --------------------------------------------------------------------------------- tps_grid_sample

struct SplineOptions : SampleOptions {
  Tensor controls;  // [K, 2] float32
  Tensor system;    // [K, 3 + K] float64, from points to coefficients
};

// The coefficients [N, 2, 3 + K] of the splines through points [N, K, 2]; in float64, as they are small
// differences of large sums.
Tensor coefficients(const SplineOptions& o, const Tensor& points) {
  return at::matmul(points.to(at::kDouble).transpose(1, 2), o.system).to(at::kFloat);
}
Tensor grad_points_of(const SplineOptions& o, const Tensor& grad_theta, const Tensor& points) {
  return at::matmul(grad_theta.to(at::kDouble), o.system.t()).transpose(1, 2).to(points.scalar_type());
}

Tensor spline_forward(const SplineOptions& o, const Tensor& input, const Tensor& theta) {
  Tensor out = empty_out(o, input, theta);
  TPSGridSampleForward p{view(input), view(theta),    view(o.controls), view(out),
                         o.mode,      o.padding_mode, o.align_corners};
  o.library->run("tps_grid_sample_forward", p, input);
  return out;
}

struct TPSGridSample : Function<TPSGridSample> {
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& points, SplineOptions o) {
    Tensor theta = coefficients(o, points);
    Tensor out = spline_forward(o, input, theta);
    ctx->save_for_backward({input, points, theta});
    keep(ctx, std::move(o));
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto& o = kept<SplineOptions>(ctx);
    auto saved = ctx->get_saved_variables();
    const Tensor &input = saved[0], &points = saved[1];
    variable_list found;
    if (at::GradMode::is_enabled()) {
      Tensor theta = coefficients(o, points);  // as a function of points
      found = differentiable("tps_grid_sample", grads[0], input, theta, o.controls, o.size, o.mode_name,
                             o.padding_mode_name, o.align_corners);
    } else {
      const Tensor& theta = saved[2];
      found = empty_grads(ctx, input, theta);
      TPSGridSampleBackward p{view(grads[0]),   view(input),       view(theta),
                              view(o.controls), view_if(found[0]), view_if(found[1]),
                              o.mode,           o.padding_mode,    o.align_corners};
      o.library->run("tps_grid_sample_backward", p, input);
    }
    if (found[1].defined()) found[1] = grad_points_of(o, found[1], points);
    return {found[0], found[1], Tensor()};
  }
};

// `controls` and `system`: made from the number of points in fastdl/ops/tps_grid_sample.py.
py::object tps_grid_sample(const Library& library, const Tensor& input, const Tensor& points,
                           const Tensor& controls, const Tensor& system, int64_t n, int64_t c, int64_t height,
                           int64_t width, const std::string& mode, const std::string& padding_mode,
                           bool align_corners) {
  if (!is_plain_sampling(input, points, {n, c, height, width}, mode, padding_mode)) return py::none();
  if (points.size(1) != controls.size(0) || points.size(2) != 2) return py::none();
  SplineOptions o{{library, mode, padding_mode, align_corners, {height, width}}, controls, system};
  const bool save = needs_grad({input, points});
  Tensor out;
  {
    py::gil_scoped_release release;
    out = save ? TPSGridSample::apply(input, points, std::move(o))
               : spline_forward(o, input, coefficients(o, points));
  }
  return py::cast(out);
}

}  // namespace

void define_sampling_calls(py::module_& m) {
  m.def("affine_grid_sample", &affine_grid_sample);
  m.def("tps_grid_sample", &tps_grid_sample);
}

}  // namespace fastdl
