// The direct kernels' entry points: what they cover, and which kernel serves it.
//
// They cover what they are faster at than oneDNN's convolution with our bias and activation behind it. Times
// of that over times of the direct kernel, float32, one thread of a server of 2022 (AMD Zen 4, AVX-512; AVX2
// in brackets, where oneDNN was held to AVX2 too):
//
//     1 -> 6, 5x5, 28x28 of 256 (LeNet)     2.5          depthwise 3x3, 144 channels of 56x56    2.2
//     3 -> 64, 3x3, 224x224 (VGG)           2.2          the same, stride 2                      1.5
//     3 -> 64, 7x7, stride 2 (ResNet)       1.2 (1.0)    the same of 14x14                       1.4
//     3 -> 64, 3x3, 32x32                   2.0          the same of 7x7                         0.4
//     8 -> 64, 3x3, 56x56                   1.2          stride 2, 28x28 to 14x14                1.4 (0.7)
//     8 -> 16, 5x5, 64x64                   1.2 (1.4)    5x5, 28x28                              2.0
//     3 -> 64, 11x11, stride 4 (AlexNet)    0.9          9x9, 56x56                              0.7 (0.7)
//     3 -> 64, 3x3, 22x22 to 20x20          1.0 (0.9)    64 -> 128, 3x3 (two outputs each)       4.6 (4.8)
//
// one channel, AMD Zen 5, two threads: 1 -> 8, 5x5, 12x12 3.5; 1 -> 10, 5x5, 21x21 2.0; 1 -> 16, 3x3, 14x14
// 1.3;
// and in channels_last, depthwise: 3x3 1.2 to 1.3, 5x5 0.7 and 7x7 1.0, so 3x3 alone was kept.
//
// Rows shorter than those vectors do not fill; many taps are what oneDNN is made for.
#include "../conv2d.h"

#include "conv2d_direct.h"
#include "conv2d_pack.h"

namespace fastdl::cpu {
namespace {

constexpr int64_t kMostChannels = 8, kMostTaps = 150;

bool planar_covers(const Problem& p, bool out_is_planar, int64_t most_step) {
  if (!out_is_planar || p.stride[0] > most_step || p.stride[1] > most_step) return false;
  const int64_t width = p.out_size[1];
  if (p.groups > 1 && p.channels == 1 && p.outputs == 1) {
    return p.taps() <= 49 && width >= (p.stride[1] == 1 ? 14 : 28);
  }
  return p.channels <= kMostChannels && p.taps() <= kMostTaps && width >= (p.channels == 1 ? 8 : 22);
}

// oneDNN's times, bias but no activation, over ours, AMD Zen 5, two threads (AVX2 in brackets): VGG 1.0
// (0.9); ResNet 1.1 (1.05); 3 -> 64, 3x3, 32x32 of 64 1.4 (1.0); LeNet 3.1 (3.0); 3 -> 32, 3x3, stride 2 1.1
// (1.0); 1x1 kernels 1.5; AlexNet's 363 taps 0.85. The activation, a pass for oneDNN, comes for nothing.
bool channels_covers(const Conv2dForward& p) {
  const Problem problem(p.x, p.weight, p.convolution);
  return problem.groups == 1 && is_interleaved(p.out) && problem.channels <= 4 && problem.taps() <= kMostTaps;
}

bool is_pointwise(const Problem& p) {
  return p.groups == 1 && p.kernel[0] == 1 && p.kernel[1] == 1 && p.padding[0] == 0 && p.padding[1] == 0;
}

// oneDNN's times over ours, relu behind it, AMD Zen 5, two threads (AVX2 in brackets). In planes: 64 -> 256
// of 56x56 2.1, back 1.9; 128 -> 512 of 28x28 1.4, 1.2; 256 -> 1024 of 14x14 1.2; 512 -> 128 of 8x8 1.3
// (1.1), of 7x7 1.0 (0.9); of 4x4 64 -> 64 2.0 (1.7), 512 -> 512 0.8; 16 -> 16 1.5 to 6 (0.9 to 5). In
// channels_last: 64 -> 256 of 56x56 1.2, 128 -> 512 of 28x28 1.1, 64 -> 64 1.0 to 2 (0.8 to 1.3), without
// relu 0.9 to 1.1; 16 -> 16 of 32x32 0.7; 512 -> 128 of 8 images of 14x14 0.9 (0.7).
bool pointwise_covers(const Conv2dForward& p) {
  const Problem problem(p.x, p.weight, p.convolution);
  if (!is_pointwise(problem)) return false;
  const int64_t pixels = problem.out_size[0] * problem.out_size[1];
  const int64_t weights = problem.channels * problem.outputs;
  if (is_planar(p.out)) {
    return problem.channels > kMostChannels &&
           (pixels >= (kWidth == 16 ? 49 : 64) || (pixels >= 16 && weights <= 1 << 13));
  }
  return kWidth == 16 && is_interleaved(p.out) && p.x.stride[1] == 1 &&
         p.convolution.activation != Activation::kNone && problem.channels >= 48 && problem.outputs >= 48 &&
         (weights <= 1 << 14 || problem.images * pixels >= 4096);
}

// The gradient for the input of a convolution of stride 1 is one, too: of grad_out, with each kernel turned
// by half a turn, its channels and outputs changing places. Strides can say the latter without groups, or
// with one channel in each.
Conv2dForward transposed(const Conv2dBackward& p) {
  Conv2dForward f{p.grad_out, p.weight, Tensor{}, p.grad_x, p.convolution};
  const int64_t groups = p.convolution.groups, outputs = p.weight.size[0] / groups;
  f.weight.size[0] = p.weight.size[1] * groups;
  f.weight.size[1] = outputs;
  f.weight.stride[0] = groups == 1 ? p.weight.stride[1] : outputs * p.weight.stride[0];
  f.weight.stride[1] = p.weight.stride[0];
  for (int i = 0; i < 2; ++i) {
    const int64_t last = p.weight.size[2 + i] - 1;
    f.weight.data = static_cast<float*>(f.weight.data) + last * p.weight.stride[2 + i];
    f.weight.stride[2 + i] = -p.weight.stride[2 + i];
    f.convolution.padding[i] = last * p.convolution.dilation[i] - p.convolution.padding[i];
  }
  return f;
}

// oneDNN's times over ours, AMD Zen 5, two threads: 1 <- 16 channels, 5x5, 42x42 of 64 (STN) 6; LeNet 7; VGG
// 3.6; 3 <- 64, 32x32 of 64 3.0; 8 <- 512 of the same 2.0; 8 <- 32, 14x14 1.5; 3 <- 32, 10x10 2.2; 3 <- 64,
// 8x8 1.2; 8 <- 64, 1x1 kernels, 22x22 3.3.
bool input_gradient_covers(const Conv2dBackward& p) {
  const Problem problem(p.x, p.weight, p.convolution);
  if (problem.channels > 1 && problem.groups > 1) return false;
  if (problem.stride[0] > 1 || problem.stride[1] > 1) return false;
  const Conv2dForward f = transposed(p);
  if (f.convolution.padding[0] < 0 || f.convolution.padding[1] < 0) return false;
  if (pointwise_covers(f)) return true;
  if (problem.outputs == 1) return fastdl_conv2d_forward_covers(&f);
  return is_planar(p.grad_x) && problem.channels <= kMostChannels && problem.size[1] >= 10;
}

// The same for the weight's gradient: in planes 64 -> 256 of 56x56 1.3, 256 -> 64 1.7, 24 -> 144 2.1, 16 ->
// 16 of 32x32 1.4, 128 -> 512 of 28x28 1.2, 64 -> 64 of 8x8 1.5, of 4x4 2.2, 512 -> 512 of 4x4 0.8, 256 ->
// 1024 of 14x14 1.0; in channels_last 0.6 to 1.2.
bool pointwise_wgrad_covers(const Conv2dBackward& p) {
  const Problem problem(p.x, p.weight, p.convolution);
  if (!is_pointwise(problem) || !is_planar(p.grad_out)) return false;
  const int64_t pixels = problem.out_size[0] * problem.out_size[1];
  const int64_t weights = problem.channels * problem.outputs;
  return problem.channels > kMostChannels &&
         ((pixels >= 64 && weights <= 1 << 16) || (pixels >= 16 && weights <= 1 << 13));
}

// In channels_last depthwise 3x3, AMD Zen 5, two threads: 144 channels of 56x56 2.0, stride 2 1.2, 32 of
// 112x112 1.6, 100 of 28x28 1.7, but 384 of 14x14 0.9. In planes by the same rule as forward, measured as
// above: LeNet 1.8, VGG 1.8, ResNet 1.0, depthwise 3x3 2.3 (stride 2: 1.3), 5x5 10, 7x7 12, of 14x14 1.8, of
// 7x7 0.3; 20 wide 0.8. Stride 4: 0.96.
bool weight_gradient_covers(const Conv2dBackward& p) {
  const Problem problem(p.x, p.weight, p.convolution);
  return (depthwise_channels_wgrad_fits(p) && problem.out_size[1] >= 20) || pointwise_wgrad_covers(p) ||
         planar_covers(problem, p.grad_out.stride[3] == 1, 2);
}

}  // namespace
}  // namespace fastdl::cpu

FASTDL_EXPORT bool fastdl_conv2d_forward_covers(const fastdl::Conv2dForward* params) {
  using namespace fastdl::cpu;
  if (params->x.dtype != fastdl::DType::kFloat32) return false;
  const Problem problem(params->x, params->weight, params->convolution);
  return depthwise_channels_fits(*params) || channels_covers(*params) || pointwise_covers(*params) ||
         planar_covers(problem, is_planar(params->out), kMaxStep);
}

FASTDL_EXPORT const char* fastdl_conv2d_forward(const fastdl::Conv2dForward* params,
                                                fastdl::Context* context) {
  using namespace fastdl::cpu;
  if (params->x.dtype != fastdl::DType::kFloat32) return "the direct kernels are for float32";
  if (depthwise_channels_fits(*params)) return depthwise_channels_forward(*params, context);
  if (pointwise_covers(*params)) {
    return is_planar(params->out) ? pointwise_planar_forward(*params, context)
                                  : pointwise_channels_forward(*params, context);
  }
  return is_interleaved(params->out) ? channels_forward(*params, context) : planar_forward(*params, context);
}

FASTDL_EXPORT bool fastdl_conv2d_max_pool2d_covers(const fastdl::Conv2dMaxPool2d* params) {
  using namespace fastdl::cpu;
  const int64_t *size = params->pool_kernel_size, *stride = params->pool_stride;
  const bool two = size[0] == 2 && size[1] == 2 && stride[0] == 2 && stride[1] == 2;
  const Problem problem(params->x, params->weight, params->convolution);
  return two && params->x.dtype == fastdl::DType::kFloat32 &&
         planar_covers(problem, is_planar(params->out), kMaxStep / 2);
}

FASTDL_EXPORT const char* fastdl_conv2d_max_pool2d(const fastdl::Conv2dMaxPool2d* params,
                                                   fastdl::Context* context) {
  if (params->x.dtype != fastdl::DType::kFloat32) return "the direct kernels are for float32";
  return fastdl::cpu::planar_max_pool2d(*params, context);
}

FASTDL_EXPORT bool fastdl_conv2d_backward_covers(const fastdl::Conv2dBackward* params) {
  using namespace fastdl::cpu;
  if (params->x.dtype != fastdl::DType::kFloat32) return false;
  if (params->grad_x && !input_gradient_covers(*params)) return false;
  return !params->grad_weight || weight_gradient_covers(*params);
}

FASTDL_EXPORT const char* fastdl_conv2d_backward(const fastdl::Conv2dBackward* params,
                                                 fastdl::Context* context) {
  using namespace fastdl::cpu;
  if (params->x.dtype != fastdl::DType::kFloat32) return "the direct kernels are for float32";
  const char* error = nullptr;
  if (params->grad_x) {
    const fastdl::Conv2dForward as_forward = transposed(*params);
    error = fastdl_conv2d_forward(&as_forward, context);
  }
  if (params->grad_weight && error == nullptr) {
    error = pointwise_wgrad_covers(*params)          ? pointwise_wgrad(*params, context)
            : depthwise_channels_wgrad_fits(*params) ? depthwise_channels_wgrad(*params, context)
                                                     : planar_wgrad(*params, context);
  }
  return error;
}
