// grad_pre = grad_out * act'(out) and grad_bias[k] = its sum over pixels, one pass.
//
// A block owns some channels and one split of the pixels (n, y, x). In NCHW that is one channel, and threads
// run along the pixels; in channels_last threads run along the channels first. Partial sums go through
// conv2d_partials.cu. Strided form: one element a thread, everything addressed through strides; dense form:
// 16 bytes a thread, all tensors of one dense layout.
#include "conv2d_common.cuh"

namespace fastdl {
namespace {

constexpr int kThreads = 256;

template <class T>
struct EpilogueBackward {
  const T* grad_out;
  const T* out;    // or nullptr: no activation
  T* grad_pre;     // or nullptr
  float* partial;  // [splits][channels], or nullptr
  Strides4 grad_out_at, out_at, grad_pre_at;
  int64_t channels, pixels, per_split;  // pixels: N * H * W
  int64_t inner;                        // H * W
  Divisor by_inner, by_width;
  Activation act;
  float param;
};

// The gradients of kV elements at the offsets of the three tensors, stored and returned.
template <int kV, class T>
__device__ __forceinline__ Vec<float, kV> gradient(const EpilogueBackward<T>& p, int64_t grad_out_at,
                                                   int64_t out_at, int64_t grad_pre_at) {
  Vec<float, kV> g = load_float<kV>(p.grad_out + grad_out_at);
  if (p.out != nullptr) {
    const Vec<float, kV> y = load_float<kV>(p.out + out_at);
#pragma unroll
    for (int j = 0; j < kV; ++j) g[j] = activation_grad(g[j], y[j], p.act, p.param);
  }
  if (p.grad_pre != nullptr) store_float(p.grad_pre + grad_pre_at, g);
  return g;
}

__device__ __forceinline__ int64_t offset(const Strides4& s, int64_t n, int64_t k, int64_t y, int64_t x) {
  return n * s.n + k * s.c + y * s.y + x * s.x;
}

// NCHW. Grid: (channels, splits). Dense: inner % kV == 0. per_split % kV == 0.
template <class T, int kV, bool kDense>
__global__ void __launch_bounds__(kThreads) conv2d_epilogue_backward_planes(EpilogueBackward<T> p) {
  __shared__ double scratch[kThreads / kWarp];
  const int64_t k = blockIdx.x, begin = int64_t(blockIdx.y) * p.per_split;
  const int64_t end = min(begin + p.per_split, p.pixels);
  Vec<float, kV> sum;
#pragma unroll
  for (int j = 0; j < kV; ++j) sum[j] = 0.0f;
#pragma unroll 2
  for (int64_t i = begin + threadIdx.x * kV; i < end; i += kThreads * kV) {
    int64_t n, at;
    p.by_inner.split(i, n, at);
    Vec<float, kV> g;
    if constexpr (kDense) {
      const int64_t here = (n * p.channels + k) * p.inner + at;
      g = gradient<kV>(p, here, here, here);
    } else {
      int64_t y, x;
      p.by_width.split(at, y, x);
      g = gradient<kV>(p, offset(p.grad_out_at, n, k, y, x), offset(p.out_at, n, k, y, x),
                       offset(p.grad_pre_at, n, k, y, x));
    }
#pragma unroll
    for (int j = 0; j < kV; ++j) sum[j] += g[j];
  }
  if (p.partial == nullptr) return;
  double total = sum[0];
#pragma unroll
  for (int j = 1; j < kV; ++j) total += sum[j];
  total = block_reduce<kThreads>(total, Sum(), scratch);
  if (threadIdx.x == 0) p.partial[int64_t(blockIdx.y) * p.channels + k] = static_cast<float>(total);
}

// channels_last. Grid: (blocks of `across` vectors of channels, splits); kThreads / across rows of threads
// take every so-many-th pixel. Dense: channels % kV == 0.
template <class T, int kV, bool kDense>
__global__ void __launch_bounds__(kThreads) conv2d_epilogue_backward_rows(EpilogueBackward<T> p, int across) {
  __shared__ float sums[kThreads * kV];
  const int rows = kThreads / across, column = threadIdx.x % across, row = threadIdx.x / across;
  const int64_t k = (int64_t(blockIdx.x) * across + column) * kV, begin = int64_t(blockIdx.y) * p.per_split;
  const int64_t end = min(begin + p.per_split, p.pixels);
  Vec<float, kV> sum;
#pragma unroll
  for (int j = 0; j < kV; ++j) sum[j] = 0.0f;
  if (row < rows && k < p.channels) {
#pragma unroll 2
    for (int64_t i = begin + row; i < end; i += rows) {
      Vec<float, kV> g;
      if constexpr (kDense) {
        const int64_t here = i * p.channels + k;
        g = gradient<kV>(p, here, here, here);
      } else {
        int64_t n, at, y, x;
        p.by_inner.split(i, n, at);
        p.by_width.split(at, y, x);
        g = gradient<kV>(p, offset(p.grad_out_at, n, k, y, x), offset(p.out_at, n, k, y, x),
                         offset(p.grad_pre_at, n, k, y, x));
      }
#pragma unroll
      for (int j = 0; j < kV; ++j) sum[j] += g[j];
    }
  }
  if (p.partial == nullptr) return;
#pragma unroll
  for (int j = 0; j < kV; ++j) sums[threadIdx.x * kV + j] = sum[j];
  __syncthreads();
  const int width = across * kV;  // sums is [rows][width]
  for (int j = threadIdx.x; j < width; j += kThreads) {
    const int64_t channel = int64_t(blockIdx.x) * width + j;
    double total = 0.0;
    for (int other = 0; other < rows; ++other) total += sums[other * width + j];
    if (channel < p.channels)
      p.partial[int64_t(blockIdx.y) * p.channels + channel] = static_cast<float>(total);
  }
}

// Pixels of a split: as many splits as give each multiprocessor some blocks, of `least` pixels and more.
int64_t pixels_per_split(int64_t pixels, int64_t blocks, int64_t least, const Context* context) {
  const int64_t wanted = at_least_1(int64_t(8) * device_properties(context->device).multiprocessors / blocks);
  const int64_t splits = min(min(wanted, at_least_1(pixels / least)), kMaxGridYZ);
  return ceil_div(ceil_div(pixels, splits), least) * least;
}

template <class T, int kV, bool kDense>
const char* run(EpilogueBackward<T>& p, bool planes, const Tensor& grad_bias, Context* context) {
  const int64_t vectors = ceil_div(p.channels, int64_t(kV));
  const int across = planes ? 1 : static_cast<int>(ceil_div(vectors, ceil_div(vectors, int64_t(kWarp))));
  const int64_t blocks = planes ? p.channels : ceil_div(vectors, int64_t(across));
  FASTDL_TRY(check_grid(blocks));
  p.per_split = pixels_per_split(p.pixels, blocks, planes ? kThreads * kV : 4 * (kThreads / across), context);
  const int64_t splits = ceil_div(p.pixels, p.per_split);
  if (splits > kMaxGridYZ) return "more blocks than a grid has room for";
  if (grad_bias) {
    p.partial = static_cast<float*>(context->allocate(context, splits * p.channels * int64_t(sizeof(float))));
    if (p.partial == nullptr) return "no memory for partial sums";
  }
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(splits));
  if (planes) {
    FASTDL_CUDA(launch(conv2d_epilogue_backward_planes<T, kV, kDense>, grid, dim3(kThreads), 0,
                       stream_of(context), p));
  } else {
    FASTDL_CUDA(launch(conv2d_epilogue_backward_rows<T, kV, kDense>, grid, dim3(kThreads), 0,
                       stream_of(context), p, across));
  }
  return grad_bias ? conv2d_add_partials(p.partial, splits, grad_bias, context) : nullptr;
}

}  // namespace
}  // namespace fastdl

FASTDL_EXPORT const char* fastdl_conv2d_epilogue_backward(const fastdl::Conv2dEpilogueBackward* p,
                                                          fastdl::Context* context) {
  using namespace fastdl;
  if (!p->grad_pre && !p->grad_bias) return nullptr;
  const DeviceGuard guard(context->device);
  if (guard.error()) return guard.error();
  const Tensor& g = p->grad_out;
  const Tensor& saved = p->activation == Activation::kNone ? Tensor{} : p->out;
  // All three in one dense layout: then the same walk serves them. Otherwise the layout of what is written.
  const auto all = [&](bool (*is)(const Tensor&)) {
    return is(g) && (!saved || is(saved)) && (!p->grad_pre || is(p->grad_pre));
  };
  const Tensor& leading = p->grad_pre ? p->grad_pre : saved ? saved : g;
  const bool plain = all(is_contiguous), last = !plain && all(is_channels_last);
  const bool planes = plain || (!last && !is_channels_last(leading));
  return dispatch_float(g.dtype, [&](auto type) -> const char* {
    using T = typename decltype(type)::type;
    constexpr int kV = kVec<T>;
    EpilogueBackward<T> q = {};
    q.grad_out = static_cast<const T*>(g.data);
    q.out = static_cast<const T*>(saved.data);
    q.grad_pre = static_cast<T*>(p->grad_pre.data);
    q.grad_out_at = strides_of(g), q.out_at = strides_of(saved), q.grad_pre_at = strides_of(p->grad_pre);
    q.channels = g.size[1], q.inner = g.size[2] * g.size[3], q.pixels = g.size[0] * q.inner;
    q.by_inner = Divisor(q.inner), q.by_width = Divisor(g.size[3]);
    q.act = p->activation, q.param = p->activation_param;
    const bool wide = (plain || last) && (planes ? q.inner : q.channels) % kV == 0 &&
                      aligned<T, kV>(q.grad_out) && aligned<T, kV>(q.out) && aligned<T, kV>(q.grad_pre);
    return wide ? run<T, kV, true>(q, planes, p->grad_bias, context)
                : run<T, 1, false>(q, planes, p->grad_bias, context);
  });
}
