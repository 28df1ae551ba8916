// The gradient for the weight of a depthwise 3x3 convolution in channels_last: vectors of channels, the nine
// taps' sums over a row of outputs in registers, then added to the thread's. Threads are added at the end, in
// their order.
#include "conv2d_direct.h"
#include "conv2d_pack.h"
#include "parallel.h"

namespace fastdl::cpu {
namespace {

constexpr int kSide = 3, kTaps = kSide * kSide;
constexpr int64_t kGrain = 1 << 15;  // numbers of grad_out worth a thread

struct DepthwiseGradient {
  DepthwiseGradient(const Conv2dBackward& params, Context* context)
      : p(params),
        problem(p.x, p.weight, p.convolution),
        channels(p.x.size[1]),
        pitch((channels + kWidth - 1) / kWidth * kWidth),
        rows(problem.images * problem.out_size[0]) {
    const int64_t worth = 1 + rows * problem.out_size[1] * channels / kGrain;
    threads = context->num_threads < worth ? context->num_threads : worth;
    sums = static_cast<float*>(context->allocate(context, 4 * threads * kTaps * pitch));
  }

  void run(Context* context) const {
    share_out(context, rows, threads, [&](int64_t begin, int64_t end, int64_t thread) {
      float* own = sums + thread * kTaps * pitch;
      for (int64_t i = 0; i < kTaps * pitch; i += kWidth) store(own + i, Vec{});
      for (int64_t row = begin; row < end; ++row) {
        problem.stride[0] == 1 ? add<1>(row, own) : add<2>(row, own);
      }
    });
    const Tensor& to = p.grad_weight;
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t t = 0; t < kTaps; ++t) {
        double total = 0;
        for (int64_t thread = 0; thread < threads; ++thread) total += sums[(thread * kTaps + t) * pitch + c];
        static_cast<float*>(to.data)[c * to.stride[0] + t / kSide * to.stride[2] + t % kSide * to.stride[3]] =
            static_cast<float>(total);
      }
    }
  }

  // What a row of grad_out adds.
  template <int STRIDE>
  void add(int64_t row, float* own) const {
    const int64_t image = row / problem.out_size[0], y = row % problem.out_size[0];
    const float* grad =
        static_cast<const float*>(p.grad_out.data) + image * p.grad_out.stride[0] + y * p.grad_out.stride[2];
    const float* x = static_cast<const float*>(p.x.data) + image * p.x.stride[0];
    const int64_t top = y * STRIDE - problem.padding[0];
    if (top >= 0 && top + kSide <= problem.size[0]) {
      for (int64_t c = 0; c < channels; c += kWidth) add_rows<STRIDE, kSide>(grad, x, top, c, own);
      return;
    }
    for (int64_t r = 0; r < kSide; ++r) {  // at the edges of the image, each row that is in it
      if (top + r < 0 || top + r >= problem.size[0]) continue;
      for (int64_t c = 0; c < channels; c += kWidth) {
        add_rows<STRIDE, 1>(grad, x, top + r, c, own + r * kSide * pitch);
      }
    }
  }

  // ROWS rows of taps, the first on row y of x, for a vector of channels.
  template <int STRIDE, int ROWS>
  FASTDL_INLINE void add_rows(const float* grad, const float* x, int64_t y, int64_t c, float* own) const {
    const int64_t n = channels - c, width = problem.out_size[1], padding = problem.padding[1];
    const int64_t step = p.x.stride[3], grad_step = p.grad_out.stride[3];
    grad += c;
    x += y * p.x.stride[2] + c;
    Vec acc[ROWS][kSide] = {};
    auto edge = [&](int64_t i) {  // not 0 * what lies there: a gradient may be infinite
      const Vec g = load(grad + i * grad_step, n);
      for (int s = 0; s < kSide; ++s) {
        const int64_t column = i * STRIDE - padding + s;
        if (column < 0 || column >= problem.size[1]) continue;
        for (int r = 0; r < ROWS; ++r) {
          acc[r][s] = fma(g, load(x + r * p.x.stride[2] + column * step, n), acc[r][s]);
        }
      }
    };
    int64_t i = 0;
    for (; i < width && i * STRIDE < padding; ++i) edge(i);
    for (; i < width && i * STRIDE - padding + kSide <= problem.size[1]; ++i) {
      const Vec g = load(grad + i * grad_step, n);
      const float* from = x + (i * STRIDE - padding) * step;
      // the next row: pixels are too far apart for the machine to see it coming
      __builtin_prefetch(grad + p.grad_out.stride[2] + i * grad_step);
      for (int ahead = 0; ahead < STRIDE * STRIDE; ++ahead) {
        __builtin_prefetch(from + (ROWS + ahead / STRIDE) * p.x.stride[2] + ahead % STRIDE * step);
      }
      FASTDL_UNROLL
      for (int r = 0; r < ROWS; ++r) {
        FASTDL_UNROLL
        for (int s = 0; s < kSide; ++s) {
          acc[r][s] = fma(g, load(from + r * p.x.stride[2] + s * step, n), acc[r][s]);
        }
      }
    }
    for (; i < width; ++i) edge(i);
    FASTDL_UNROLL
    for (int r = 0; r < ROWS; ++r) {
      FASTDL_UNROLL
      for (int s = 0; s < kSide; ++s) {
        float* sum = own + (r * kSide + s) * pitch + c;
        store(sum, load(sum) + acc[r][s]);
      }
    }
  }

  const Conv2dBackward& p;
  const Problem problem;
  const int64_t channels, pitch, rows;
  int64_t threads;
  float* sums;
};

}  // namespace

bool depthwise_channels_wgrad_fits(const Conv2dBackward& p) {
  const Problem problem(p.x, p.weight, p.convolution);
  return problem.channels == 1 && problem.outputs == 1 && problem.kernel[0] == kSide &&
         problem.kernel[1] == kSide && problem.stride[0] == problem.stride[1] && problem.stride[0] <= 2 &&
         problem.dilation[0] == 1 && problem.dilation[1] == 1 && p.x.size[1] > 1 && p.x.stride[1] == 1 &&
         p.grad_out.stride[1] == 1;
}

const char* depthwise_channels_wgrad(const Conv2dBackward& p, Context* context) {
  const DepthwiseGradient gradient(p, context);
  if (gradient.sums == nullptr) return "out of memory";
  gradient.run(context);
  return nullptr;
}

}  // namespace fastdl::cpu
