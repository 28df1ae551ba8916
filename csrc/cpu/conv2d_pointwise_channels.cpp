// 1x1 convolution in channels_last, as a matrix product: the weights are copied into panels of some outputs,
// and some pixels at a time are multiplied by each of them.
#include "conv2d_pointwise.h"

namespace fastdl::cpu {
namespace {

constexpr int64_t kPanelPixels = 96;

struct PointwiseChannels {
  PointwiseChannels(const Conv2dForward& params, Context* context)
      : p(params),
        problem(p.x, p.weight, p.convolution),
        channels(problem.channels),
        outputs(problem.outputs),
        plane(problem.out_size[0] * problem.out_size[1]),
        panels(Parts::of(problem.images * plane, 1, kPanelPixels)),
        blocks(Parts::of(outputs, kWidth, Product::kVectors)),
        slices(blocks.count, 1, slices_for(context, panels.count)),
        pixels(pixels_of(p.x, problem)),
        side_by_side((pixels.step(problem.out_size[0]) == channels || plane == 1) &&
                     (problem.images == 1 || p.x.stride[0] == plane * channels)) {
    const int64_t columns = blocks.units * kWidth;
    const int64_t copies = side_by_side ? 0 : context->num_threads * kPanelPixels * channels;
    weights = static_cast<float*>(context->allocate(context, 4 * (columns * (channels + 1) + copies)));
    if (weights == nullptr) return;
    biases = weights + columns * channels;
    scratch = biases + columns;
    const auto* bias = static_cast<const float*>(p.bias.data);
    for (int64_t k = 0; k < columns; ++k) biases[k] = k < outputs && bias != nullptr ? bias[k] : -0.0f;
    parallel(context, blocks.count, 1 + (1 << 16) / (channels * Product::kVectors * kWidth),
             [&](int64_t begin, int64_t end) {
               for (int64_t block = begin; block < end; ++block) copy_weights(block);
             });
  }

  // Vectors of a block, where the last one ends with zeros.
  int64_t pitch_of(int64_t block) const { return round_up(blocks.length(block), kWidth); }

  // To [C, outputs of the block].
  void copy_weights(int64_t block) const {
    const int64_t first = blocks.begin(block), n = blocks.length(block), pitch = pitch_of(block);
    const float* from = static_cast<const float*>(p.weight.data) + first * p.weight.stride[0];
    float* to = weights + first * channels;
    for (int64_t c = 0; c < channels; ++c, to += pitch) {
      for (int64_t k = 0; k < n; ++k) to[k] = from[k * p.weight.stride[0] + c * p.weight.stride[1]];
      for (int64_t k = n; k < pitch; ++k) to[k] = 0;
    }
  }

  void run(const Context* context) const {
    const int64_t products = problem.images * plane * outputs * channels;
    each_part(context, panels.count, slices.count, products,
              [&](int64_t panel, int64_t slice, int64_t thread) { compute(panel, slice, thread); });
  }

  void compute(int64_t panel, int64_t slice, int64_t thread) const {
    const int64_t first = panels.begin(panel), n = panels.length(panel);
    const auto* x = static_cast<const float*>(p.x.data) + (side_by_side ? first * channels : 0);
    if (!side_by_side) {
      float* copy = scratch + thread * kPanelPixels * channels;
      for (int64_t i = 0; i < n; ++i) {
        const int64_t image = (first + i) / plane, pixel = (first + i) % plane;
        std::memcpy(copy + i * channels, x + image * p.x.stride[0] + pixels.at(pixel), channels * 4);
      }
      x = copy;
    }
    const Activation activation = p.convolution.activation;
    float* out = static_cast<float*>(p.out.data) + first * outputs;
    for (int64_t block = slices.begin(slice); block < slices.begin(slice + 1); ++block) {
      const int64_t k = blocks.begin(block);
      product<Plus::kColumn>({x, channels, 1, weights + k * channels, pitch_of(block), channels, biases + k,
                              floor_of(activation), out + k, outputs, blocks.length(block)},
                             n);
      for (int64_t i = 0; i < n; ++i) {
        activate_behind_floor(activation, p.convolution.activation_param, out + i * outputs + k,
                              blocks.length(block));
      }
    }
  }

  const Conv2dForward& p;
  const Problem problem;
  const int64_t channels, outputs, plane;
  const Parts panels, blocks, slices;
  const Pixels pixels;
  const bool side_by_side;
  float *weights, *biases, *scratch;
};

}  // namespace

const char* pointwise_channels_forward(const Conv2dForward& p, Context* context) {
  const PointwiseChannels pointwise(p, context);
  if (pointwise.weights == nullptr) return "out of memory";
  pointwise.run(context);
  return nullptr;
}

}  // namespace fastdl::cpu
