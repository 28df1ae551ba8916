// What goes around a library's convolution: y = act(y + bias) in place behind it; before its gradients, in
// one pass, grad_pre = grad_out * act'(y) and grad_bias = the sum of grad_pre over all but the channels.
//
// Tensors are dense: planes of pixels (NCHW) or pixels of channels (channels_last). Only grad_out has any
// strides.
#include "../conv2d.h"
#include "activation.h"
#include "conv2d_direct.h"
#include "conv2d_layout.h"
#include "dispatch.h"
#include "parallel.h"

namespace fastdl::cpu {
namespace {

constexpr int64_t kGrain = 16384;  // elements worth a thread

// ----------------------------------------------------------------------------------------- forward

template <class T, Activation activation>
void epilogue(const Conv2dEpilogue& p, Context* context) {
  const int64_t channels = p.out.size[1], pixels = p.out.size[2] * p.out.size[3], images = p.out.size[0];
  T* out = static_cast<T*>(p.out.data);
  const T* bias = static_cast<const T*>(p.bias.data);
  const float param = p.activation_param;

  auto run = [&](T* y, int64_t n, Vec b) {
    for (int64_t i = 0; i < n; i += kWidth) {
      store(y + i, activate<activation>(load(y + i, n - i) + b, param), n - i);
    }
  };
  if (bias == nullptr) {  // y - 0 is y, also where y is -0
    parallel(context, images * channels * pixels, kGrain,
             [&](int64_t begin, int64_t end) { run(out + begin, end - begin, broadcast(-0.0f)); });
  } else if (is_interleaved(p.out)) {
    parallel(context, images * pixels, kGrain / channels + 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        for (int64_t c = 0; c < channels; c += kWidth) {
          run(out + i * channels + c, channels - c < kWidth ? channels - c : kWidth,
              load(bias + c, channels - c));
        }
      }
    });
  } else {
    parallel(context, images * channels, kGrain / pixels + 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        run(out + i * pixels, pixels, broadcast(to_float(bias[i % channels])));
    });
  }
}

// ---------------------------------------------------------------------------------------- backward

// grad_out in the order in which out lies in memory.
template <class T>
struct GradOut {
  explicit GradOut(const Conv2dEpilogueBackward& p)
      : grad(p.grad_out),
        interleaved(is_interleaved(p.grad_pre ? p.grad_pre
                                   : p.out    ? p.out
                                              : p.grad_out)) {
    dense = interleaved ? is_interleaved(grad) : is_planar(grad);
  }

  // n elements from `begin` of a row (the pixels of an image's channel, or the channels of an image's pixel),
  // which is dense at `at`; in `buffer` unless they are contiguous as they are.
  const T* row(int64_t at, int64_t image, int64_t row, int64_t begin, int64_t n, T* buffer) const {
    const T* data = static_cast<const T*>(grad.data);
    if (dense) return data + at;
    data += image * grad.stride[0];
    const int64_t width = grad.size[3];
    if (interleaved) {
      data += row / width * grad.stride[2] + row % width * grad.stride[3] + begin * grad.stride[1];
      for (int64_t i = 0; i < n; ++i) buffer[i] = data[i * grad.stride[1]];
    } else {
      data += row * grad.stride[1];
      int64_t y = begin / width, x = begin % width;
      for (int64_t i = 0; i < n; ++i) {
        buffer[i] = data[y * grad.stride[2] + x * grad.stride[3]];
        if (++x == width) x = 0, ++y;
      }
    }
    return buffer;
  }

  const Tensor& grad;
  bool interleaved, dense;
};

// Sums are float32 for as many vectors, then float64: as exact as torch's cascades.
constexpr int64_t kVectors = 8, kChunk = kVectors * kWidth;

int64_t padded_to_vectors(int64_t n) { return (n + kWidth - 1) / kWidth * kWidth; }

typedef double Wide __attribute__((vector_size(kWidth * 8)));
FASTDL_INLINE void add_to(double* sums, Vec x) {
  Wide wide;
  std::memcpy(&wide, sums, sizeof wide);
  wide += __builtin_convertvector(x, Wide);
  std::memcpy(sums, &wide, sizeof wide);
}

// One vector of a contiguous piece, with n elements left: grad_pre = grad_out * act'(y), and 0 beyond n.
template <class T, Activation activation>
FASTDL_INLINE Vec pre_activation(const T* grad_out, const T* y, T* grad_pre, int64_t n, float param) {
  Vec g = load(grad_out, n);
  if constexpr (activation != Activation::kNone) g = activation_grad<activation>(g, load(y, n), param);
  if (grad_pre != nullptr) store(grad_pre, g, n);
  return n < kWidth ? select(iota() < static_cast<int32_t>(n), g, Vec{}) : g;
}

template <class T, Activation activation>
void planes_backward(const Conv2dEpilogueBackward& p, Context* context, double* partials, int64_t splits) {
  const GradOut<T> grad(p);
  const int64_t images = p.grad_out.size[0], channels = p.grad_out.size[1];
  const int64_t pixels = p.grad_out.size[2] * p.grad_out.size[3];
  const T* y = static_cast<const T*>(p.out ? p.out.data : p.grad_out.data);  // without activation not read
  T* grad_pre = static_cast<T*>(p.grad_pre.data);

  // a split is some of the images of one channel; neighbouring ones share images
  const int64_t grain = kGrain / (pixels * ((images + splits - 1) / splits)) + 1;
  parallel(context, splits * channels, grain, [&](int64_t begin, int64_t end) {
    T buffer[kChunk];
    for (int64_t item = begin; item < end; ++item) {
      const int64_t split = item / channels, c = item % channels;
      double lanes[kWidth] = {};
      for (int64_t n = images * split / splits; n < images * (split + 1) / splits; ++n) {
        for (int64_t i = 0; i < pixels; i += kChunk) {
          const int64_t count = pixels - i < kChunk ? pixels - i : kChunk,
                        at = (n * channels + c) * pixels + i;
          const T* g = grad.row(at, n, c, i, count, buffer);
          Vec some{};
          for (int64_t j = 0; j < count; j += kWidth) {
            some += pre_activation<T, activation>(g + j, y + at + j, grad_pre ? grad_pre + at + j : nullptr,
                                                  count - j, p.activation_param);
          }
          add_to(lanes, some);
        }
      }
      double sum = 0;
      for (double lane : lanes) sum += lane;
      partials[split * padded_to_vectors(channels) + c] = sum;
    }
  });
}

template <class T, Activation activation>
void channels_backward(const Conv2dEpilogueBackward& p, Context* context, double* partials, int64_t splits) {
  const GradOut<T> grad(p);
  const int64_t channels = p.grad_out.size[1], pixels = p.grad_out.size[2] * p.grad_out.size[3];
  const int64_t rows = p.grad_out.size[0] * pixels, padded = padded_to_vectors(channels);
  float* floats = reinterpret_cast<float*>(partials + splits * padded);
  const T* y = static_cast<const T*>(p.out ? p.out.data : p.grad_out.data);  // without activation not read
  T* grad_pre = static_cast<T*>(p.grad_pre.data);

  parallel(context, splits, 1, [&](int64_t begin, int64_t end) {
    T buffer[kWidth];
    for (int64_t split = begin; split < end; ++split) {
      double* sums = partials + split * padded;
      float* some = floats + split * padded;
      for (int64_t c = 0; c < padded; ++c) sums[c] = some[c] = 0;
      const int64_t first = rows * split / splits, last = rows * (split + 1) / splits;
      for (int64_t row = first; row < last; ++row) {
        for (int64_t c = 0; c < channels; c += kWidth) {
          const int64_t at = row * channels + c, n = channels - c;
          const T* g = grad.dense
                           ? grad.row(at, 0, 0, c, n, buffer)
                           : grad.row(at, row / pixels, row % pixels, c, n < kWidth ? n : kWidth, buffer);
          store(some + c,
                load(some + c) + pre_activation<T, activation>(g, y + at, grad_pre ? grad_pre + at : nullptr,
                                                               n, p.activation_param));
        }
        if ((row - first) % kVectors == kVectors - 1 || row == last - 1) {
          for (int64_t c = 0; c < channels; c += kWidth) {
            add_to(sums + c, load(some + c));
            store(some + c, Vec{});
          }
        }
      }
    }
  });
}

template <class T, Activation activation>
const char* epilogue_backward(const Conv2dEpilogueBackward& p, Context* context) {
  const bool interleaved = GradOut<T>(p).interleaved;
  const int64_t channels = p.grad_out.size[1], elements = p.grad_out.numel();
  // as many partial sums as there is work for, whatever the number of threads: always the same bits
  const int64_t most = interleaved ? elements / channels : p.grad_out.size[0],
                wanted = elements / (4 * kGrain) + 1;
  int64_t splits = most < wanted ? most : wanted;
  splits = splits < 256 ? splits : 256;
  const int64_t padded = padded_to_vectors(channels);
  auto* partials = static_cast<double*>(context->allocate(context, padded * splits * (8 + 4)));
  if (partials == nullptr) return "out of memory";
  if (interleaved) {
    channels_backward<T, activation>(p, context, partials, splits);
  } else {
    planes_backward<T, activation>(p, context, partials, splits);
  }
  if (p.grad_bias) {
    for (int64_t c = 0; c < channels; ++c) {
      double sum = 0;
      for (int64_t split = 0; split < splits; ++split) sum += partials[split * padded + c];
      static_cast<T*>(p.grad_bias.data)[c] = from_float<T>(static_cast<float>(sum));
    }
  }
  return nullptr;
}

}  // namespace

void activate_behind_floor(Activation activation, float param, float* y, int64_t n) {
  if (activation == Activation::kNone || activation == Activation::kReLU) return;
  with_activation(activation, [&](auto constant) {
    for (int64_t i = 0; i < n; i += kWidth) {
      store(y + i, activate<decltype(constant)::value>(load(y + i, n - i), param), n - i);
    }
  });
}

}  // namespace fastdl::cpu

FASTDL_EXPORT const char* fastdl_conv2d_epilogue(const fastdl::Conv2dEpilogue* params,
                                                 fastdl::Context* context) {
  using namespace fastdl::cpu;
  const bool known = with_float(params->out.dtype, [&](auto type) {
    with_activation(params->activation, [&](auto activation) {
      epilogue<decltype(type), decltype(activation)::value>(*params, context);
    });
  });
  return known ? nullptr : "no kernel for this dtype";
}

FASTDL_EXPORT const char* fastdl_conv2d_epilogue_backward(const fastdl::Conv2dEpilogueBackward* params,
                                                          fastdl::Context* context) {
  using namespace fastdl::cpu;
  const char* error = nullptr;
  const bool known = with_float(params->grad_out.dtype, [&](auto type) {
    error = with_activation(params->activation, [&](auto activation) {
      return epilogue_backward<decltype(type), decltype(activation)::value>(*params, context);
    });
  });
  return known ? error : "no kernel for this dtype";
}
