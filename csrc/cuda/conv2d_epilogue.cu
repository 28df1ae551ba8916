// y = act(y + bias) in place, one pass: what a library's convolution leaves to be done.
//
// The tensor is walked as it lies in memory. Element i belongs to channel (i / inner) % channels: inner is H
// * W in NCHW, 1 in channels_last.
#include "conv2d_common.cuh"

namespace fastdl {
namespace {

constexpr int kThreads = 256;

// Accesses in flight per thread: fewer where the code of an activation is long.
template <bool kCheap>
constexpr int kBatchOf = kCheap ? 4 : 1;

// kCheap: is_cheap(act). Grid: (batches of kThreads * kBatch vectors). kV elements a vector; what is left
// over goes to threads of the first block.
template <class T, int kV, bool kCheap>
__global__ void __launch_bounds__(kThreads)
    conv2d_epilogue_kernel(T* out, const T* bias, int64_t numel, int64_t inner, Divisor by_inner,
                           int64_t channels, Divisor by_channels, Activation act, float param) {
  constexpr int kBatch = kBatchOf<kCheap>;
  const auto apply = [&](float x) {
    return kCheap ? activate_cheap(x, act, param) : activate(x, act, param);
  };
  const int64_t vectors = numel / kV;
  const int64_t first = int64_t(blockIdx.x) * (kThreads * kBatch) + threadIdx.x;
  Vec<float, kV> value[kBatch];
#pragma unroll
  for (int b = 0; b < kBatch; ++b) {
    const int64_t i = first + b * kThreads;
    if (i < vectors) value[b] = load_float<kV>(out + i * kV);
  }
#pragma unroll
  for (int b = 0; b < kBatch; ++b) {
    const int64_t i = first + b * kThreads;
    if (i >= vectors) break;
    if (bias != nullptr) {
      int64_t row, at, image, k;
      by_inner.split(i * kV, row, at);
      by_channels.split(row, image, k);
      if (at + kV <= inner) {
        const float shift = to_float(load<1, Cache::kReadOnly>(bias + k)[0]);
#pragma unroll
        for (int j = 0; j < kV; ++j) value[b][j] += shift;
      } else {
#pragma unroll
        for (int j = 0; j < kV; ++j) {
          value[b][j] += to_float(load<1, Cache::kReadOnly>(bias + k)[0]);
          if (++at == inner) {
            at = 0;
            if (++k == channels) k = 0;
          }
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kV; ++j) value[b][j] = apply(value[b][j]);
    store_float(out + i * kV, value[b]);
  }
  if (kV > 1 && blockIdx.x == 0 && threadIdx.x < numel - vectors * kV) {
    const int64_t i = vectors * kV + threadIdx.x;
    int64_t row, at, image, k;
    by_inner.split(i, row, at);
    by_channels.split(row, image, k);
    const float shift = bias == nullptr ? 0.0f : to_float(bias[k]);
    out[i] = from_float<T>(apply(to_float(out[i]) + shift));
  }
}

}  // namespace

// The activation that a kernel has left out.
const char* finish_activation(const Tensor& out, Activation activation, float param, Context* context) {
  if (is_cheap(activation)) return nullptr;
  const Conv2dEpilogue p = {out, Tensor{}, activation, param};
  return fastdl_conv2d_epilogue(&p, context);
}

}  // namespace fastdl

FASTDL_EXPORT const char* fastdl_conv2d_epilogue(const fastdl::Conv2dEpilogue* p, fastdl::Context* context) {
  using namespace fastdl;
  if (!p->bias && p->activation == Activation::kNone) return nullptr;
  const DeviceGuard guard(context->device);
  if (guard.error()) return guard.error();
  const bool plain = is_contiguous(p->out);
  if (!plain && !is_channels_last(p->out)) return "expected out contiguous or channels_last";
  const int64_t channels = p->out.size[1], inner = plain ? p->out.size[2] * p->out.size[3] : 1;
  return dispatch_float(p->out.dtype, [&](auto type) -> const char* {
    using T = typename decltype(type)::type;
    const auto run = [&](auto wide, auto cheap) -> const char* {
      constexpr int kV = decltype(wide)::value ? kVec<T> : 1;
      constexpr bool kCheap = decltype(cheap)::value;
      const int64_t blocks = at_least_1(ceil_div(p->out.numel() / kV, int64_t(kThreads * kBatchOf<kCheap>)));
      FASTDL_TRY(check_grid(blocks));
      FASTDL_CUDA(launch(conv2d_epilogue_kernel<T, kV, kCheap>, dim3(unsigned(blocks)), dim3(kThreads), 0,
                         stream_of(context), static_cast<T*>(p->out.data),
                         static_cast<const T*>(p->bias.data), p->out.numel(), inner, Divisor(inner), channels,
                         Divisor(channels), p->activation, p->activation_param));
      return nullptr;
    };
    return dispatch_bool(aligned<T, kVec<T>>(p->out.data), [&](auto wide) {
      return dispatch_bool(is_cheap(p->activation), [&](auto cheap) { return run(wide, cheap); });
    });
  });
}
