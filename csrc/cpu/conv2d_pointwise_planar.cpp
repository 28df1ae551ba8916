// 1x1 convolution in planes of pixels, as a matrix product: a panel of some pixels of all channels is copied
// side by side, and every row of weights is multiplied by it.
#include "conv2d_pointwise.h"

namespace fastdl::cpu {
namespace {

constexpr int64_t kLeastOutputs = 4 * Product::kRows;  // that are worth another copy of the pixels

struct PointwisePlanar {
  PointwisePlanar(const Conv2dForward& params, Context* context)
      : p(params),
        problem(p.x, p.weight, p.convolution),
        channels(problem.channels),
        outputs(problem.outputs),
        plane(problem.out_size[0] * problem.out_size[1]),
        panels(Parts::of(plane, kWidth, Product::kVectors)),
        slices(outputs, kLeastOutputs, slices_for(context, problem.images * panels.count)),
        pixels(pixels_of(p.x, problem)),
        side_by_side(pixels.step(problem.out_size[0]) == 1 || plane == 1) {
    const bool dense = p.weight.stride[1] == 1 || channels == 1;
    const int64_t copied = dense ? 0 : outputs * channels;
    scratch = static_cast<float*>(
        context->allocate(context, 4 * (context->num_threads * panel_floats() + outputs + copied)));
    if (scratch == nullptr) return;
    biases = scratch + context->num_threads * panel_floats();
    for (int64_t k = 0; k < outputs; ++k) {
      biases[k] = p.bias ? static_cast<const float*>(p.bias.data)[k] : -0.0f;
    }
    weights = static_cast<const float*>(p.weight.data);
    weights_row = p.weight.stride[0];
    if (!dense) copy_weights(context, biases + outputs);
  }

  int64_t panel_floats() const { return channels * Product::kVectors * kWidth; }

  // To [K, C], whole cache lines of which are written at a time.
  void copy_weights(const Context* context, float* to) {
    constexpr int64_t kLine = 16;
    const Tensor& w = p.weight;
    const float* from = weights;
    parallel(context, ceil_div(channels, kLine), 1 + (1 << 16) / (outputs * kLine),
             [&](int64_t begin, int64_t end) {
               for (int64_t line = begin; line < end; ++line) {
                 const int64_t last = least(channels, (line + 1) * kLine);
                 for (int64_t k = 0; k < outputs; ++k) {
                   for (int64_t c = line * kLine; c < last; ++c)
                     to[k * channels + c] = from[k * w.stride[0] + c * w.stride[1]];
                 }
               }
             });
    weights = to;
    weights_row = channels;
  }

  void run(const Context* context) const {
    const int64_t products = problem.images * plane * outputs * channels;
    each_part(context, problem.images * panels.count, slices.count, products,
              [&](int64_t panel, int64_t slice, int64_t thread) {
                compute(panel / panels.count, panel % panels.count, slice, scratch + thread * panel_floats());
              });
  }

  void compute(int64_t image, int64_t panel, int64_t slice, float* copy) const {
    const int64_t first = panels.begin(panel), n = panels.length(panel), k = slices.begin(slice);
    const int64_t pitch = round_up(n, kWidth);
    const float* from = static_cast<const float*>(p.x.data) + image * p.x.stride[0];
    side_by_side ? copy_vectors(from + first, n, copy) : copy_pixels(from, first, n, pitch, copy);
    float* out = static_cast<float*>(p.out.data) + (image * outputs + k) * plane + first;
    const Activation activation = p.convolution.activation;
    product<Plus::kRow>({weights + k * weights_row, weights_row, 1, copy, pitch, channels, biases + k,
                         floor_of(activation), out, plane, n},
                        slices.length(slice));
    for (int64_t i = 0; i < slices.length(slice); ++i) {
      activate_behind_floor(activation, p.convolution.activation_param, out + i * plane, n);
    }
  }

  void copy_vectors(const float* from, int64_t n, float* to) const {
    for (int64_t c = 0; c < channels; ++c, from += p.x.stride[1]) {
      for (int64_t i = 0; i < n; i += kWidth, to += kWidth) {
        __builtin_prefetch(from + i + n);  // of the next panel
        store(to, load(from + i, n - i));
      }
    }
  }
  void copy_pixels(const float* from, int64_t first, int64_t n, int64_t pitch, float* to) const {
    int64_t at[Product::kVectors * kWidth];
    for (int64_t i = 0; i < n; ++i) at[i] = pixels.at(first + i);
    for (int64_t c = 0; c < channels; ++c, from += p.x.stride[1], to += pitch) {
      for (int64_t i = 0; i < n; ++i) to[i] = from[at[i]];
      for (int64_t i = n; i < pitch; ++i) to[i] = 0;
    }
  }

  const Conv2dForward& p;
  const Problem problem;
  const int64_t channels, outputs, plane;
  const Parts panels, slices;
  const Pixels pixels;
  const bool side_by_side;
  const float* weights;
  int64_t weights_row;
  float *scratch, *biases;
};

}  // namespace

const char* pointwise_planar_forward(const Conv2dForward& p, Context* context) {
  const PointwisePlanar pointwise(p, context);
  if (pointwise.scratch == nullptr) return "out of memory";
  pointwise.run(context);
  return nullptr;
}

}  // namespace fastdl::cpu
