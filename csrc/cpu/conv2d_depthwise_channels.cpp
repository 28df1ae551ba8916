// Depthwise 3x3 convolution in channels_last: vectors of channels, some pixels of a row at a time. Nothing is
// packed: what lies outside the image is read from a pixel of zeros.
#include "conv2d_direct.h"
#include "conv2d_pack.h"
#include "parallel.h"

namespace fastdl::cpu {
namespace {

constexpr int kSide = 3;
constexpr int kPixels = 4;           // outputs next to each other that are computed together
constexpr int64_t kGrain = 1 << 15;  // numbers of out worth a thread
constexpr int64_t kMostZeros = 1 << 14;

// PIXELS outputs of a row: out[p][c] = max(floor, bias[c] + sum over r, s of from[r][p * STRIDE + s][c] *
// w[r][s][c]). `row`: from one row of the input to the next.
template <int STRIDE, int PIXELS>
FASTDL_INLINE void channels_tile(const float* const* from, const float* weight, const float* bias,
                                 int64_t channels, int64_t weight_pitch, float floor, int64_t row,
                                 float* out) {
  constexpr int COLUMNS = (PIXELS - 1) * STRIDE + kSide;
  for (int64_t c = 0; c < channels; c += kWidth) {
    const int64_t n = channels - c;
    Vec acc[PIXELS];
    FASTDL_UNROLL
    for (int p = 0; p < PIXELS; ++p) acc[p] = load(bias + c);
    FASTDL_UNROLL
    for (int r = 0; r < kSide; ++r) {
      Vec taps[kSide];
      FASTDL_UNROLL
      for (int s = 0; s < kSide; ++s) taps[s] = load(weight + (r * kSide + s) * weight_pitch + c);
      FASTDL_UNROLL
      for (int column = 0; column < COLUMNS; ++column) {
        const Vec in = load(from[r * COLUMNS + column] + c, n);
        if (STRIDE == 1 && r == kSide - 1 && column < PIXELS) {  // what the next row of outputs has new
          __builtin_prefetch(from[r * COLUMNS + column] + c + row);
        }
        FASTDL_UNROLL
        for (int p = 0; p < PIXELS; ++p) {
          const int s = column - p * STRIDE;
          if (s >= 0 && s < kSide) acc[p] = fma(taps[s], in, acc[p]);
        }
      }
    }
    FASTDL_UNROLL
    for (int p = 0; p < PIXELS; ++p) store(out + p * channels + c, max(broadcast(floor), acc[p]), n);
  }
}

struct Channels {
  Channels(const Conv2dForward& params, Context* context)
      : p(params), problem(p.x, p.weight, p.convolution), channels(p.x.size[1]), pitch(channels + kWidth) {
    constexpr int taps = kSide * kSide;
    weight = static_cast<float*>(context->allocate(context, 4 * (taps + 1) * pitch));
    if (weight == nullptr) return;
    bias = weight + taps * pitch;
    for (int64_t c = 0; c < pitch; ++c) {
      const bool real = c < channels;
      for (int64_t t = 0; t < taps; ++t) {
        const int64_t at =
            c * p.weight.stride[0] + t / kSide * p.weight.stride[2] + t % kSide * p.weight.stride[3];
        weight[t * pitch + c] = real ? static_cast<const float*>(p.weight.data)[at] : 0.0f;
      }
      bias[c] = real && p.bias ? static_cast<const float*>(p.bias.data)[c] : -0.0f;
    }
  }

  template <int STRIDE>
  void run(Context* context) const {
    const int64_t rows = problem.images * problem.out_size[0], width = problem.out_size[1];
    parallel(context, rows, kGrain / (width * channels) + 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        float* out = static_cast<float*>(p.out.data) + row * width * channels;
        int64_t x = 0;
        for (; x + kPixels <= width; x += kPixels) tile<STRIDE, kPixels>(row, x, out + x * channels);
        for (; x < width; ++x) tile<STRIDE, 1>(row, x, out + x * channels);
        activate_behind_floor(p.convolution.activation, p.convolution.activation_param, out,
                              width * channels);
      }
    });
  }

  template <int STRIDE, int PIXELS>
  FASTDL_INLINE void tile(int64_t row, int64_t x, float* out) const {
    static const float zeros[kMostZeros] = {};
    constexpr int COLUMNS = (PIXELS - 1) * STRIDE + kSide;
    const float* from[kSide * COLUMNS];
    const float* image = static_cast<const float*>(p.x.data) + row / problem.out_size[0] * p.x.stride[0];
    const int64_t top = row % problem.out_size[0] * STRIDE - problem.padding[0];
    const int64_t left = x * STRIDE - problem.padding[1];
    for (int r = 0; r < kSide; ++r) {
      const bool inside = top + r >= 0 && top + r < problem.size[0];
      for (int i = 0; i < COLUMNS; ++i) {
        const bool pixel = inside && left + i >= 0 && left + i < problem.size[1];
        from[r * COLUMNS + i] =
            pixel ? image + (top + r) * p.x.stride[2] + (left + i) * p.x.stride[3] : zeros;
      }
    }
    channels_tile<STRIDE, PIXELS>(from, weight, bias, channels, pitch, floor_of(p.convolution.activation),
                                  p.x.stride[2], out);
  }

  const Conv2dForward& p;
  const Problem problem;
  const int64_t channels, pitch;
  float *weight, *bias;
};

}  // namespace

bool depthwise_channels_fits(const Conv2dForward& p) {
  const Problem problem(p.x, p.weight, p.convolution);
  return problem.channels == 1 && problem.outputs == 1 && problem.kernel[0] == kSide &&
         problem.kernel[1] == kSide && problem.stride[0] == problem.stride[1] && problem.stride[0] <= 2 &&
         problem.dilation[0] == 1 && problem.dilation[1] == 1 && p.x.stride[1] == 1 &&
         is_interleaved(p.out) && p.x.size[1] <= kMostZeros;
}

const char* depthwise_channels_forward(const Conv2dForward& p, Context* context) {
  const Channels channels(p, context);
  if (channels.weight == nullptr) return "out of memory";
  channels.problem.stride[0] == 1 ? channels.run<1>(context) : channels.run<2>(context);
  return nullptr;
}

}  // namespace fastdl::cpu
