// What backward's kernels share: dz = grad_out * act', and the two sums per channel, which are the gradients
// of bias and weight: sum dz and sum dz * xhat, xhat = (x - mean) * invstd.
#pragma once

#include "batch_norm_channel.cuh"
#include "batch_norm_reduce.cuh"

namespace fastdl {
namespace batch_norm {

template <class T>
struct Backward {
  const T *grad_out, *x, *out;
  const uint8_t* mask;
  Param weight, bias;
  const float *mean, *invstd;
  T *grad_x, *grad_residual;
  Param grad_weight, grad_bias;
  float* means;  // [2, C]: mean(dz), mean(dz * xhat), from the sums to the elementwise pass
  bool training;
  Activation act;
  float param;
  int64_t numel, channels, s;

  // Whether grad_x depends on the sums.
  __host__ __device__ bool batch() const { return training && grad_x; }
  // Whether act' is that of the pre-activation.
  __host__ __device__ bool recomputes() const { return act != Activation::kNone && !mask && !out; }
};

// sum dz and sum dz * (x - mean).
struct Sums {
  float total, product;
};

struct CombinedSums {
  double total, product;
};

// Per thread, of its V channels (in planes V times the same):
// grad_x = (dz - mean_dz - (x - mean) * slope) * scale, slope = invstd * mean(dz * xhat).
template <int V>
struct Coefficients {
  Vec<float, V> mean, scale, bias, mean_dz, slope;
};

template <int V, class T>
__device__ __forceinline__ Coefficients<V> coefficients_of(const Backward<T>& b, const Cut& cut,
                                                           const Place& place) {
  Coefficients<V> k = {};
  if (!place.exists) return k;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    const int64_t c = place.channel + (cut.rows ? i : 0);
    k.mean[i] = b.mean[c];
    k.scale[i] = read<T>(b.weight, c, 1.0f) * b.invstd[c];
    k.bias[i] = b.recomputes() ? read<T>(b.bias, c, 0.0f) : 0.0f;
  }
  return k;
}

// What is read of V elements; `out` is empty where act' comes from elsewhere.
template <class T, int V>
struct Elements {
  Vec<T, V> grad, x, out;
  unsigned bits;
};

template <class T, int V>
__device__ __forceinline__ Elements<T, V> load_elements(const Backward<T>& b, int64_t offset, bool reads_x) {
  Elements<T, V> e = {};
  e.grad = load<V>(b.grad_out + offset);
  if (reads_x) e.x = load<V>(b.x + offset);
  if (b.mask) e.bits = read_bits(b.mask, offset);
  if (b.out) e.out = load<V>(b.out + offset);
  return e;
}

// dz of an element: from the mask, from out, or from x all over again.
template <bool kAny, class T>
__device__ __forceinline__ float incoming(const Backward<T>& b, T grad, T x, T out, unsigned bit, float mean,
                                          float scale, float bias) {
  const float dy = to_float(grad);
  if (!kAny && b.act == Activation::kNone) return dy;
  if (b.mask) return bit ? dy : 0.0f;
  if (b.out) {
    if constexpr (kAny) return activation_grad(dy, to_float(out), b.act, b.param);
    const float y = to_float(out);
    return b.act == Activation::kReLU ? activation_grad(dy, y, Activation::kReLU, b.param)
                                      : activation_grad(dy, y, Activation::kLeakyReLU, b.param);
  }
  return grad_at<kAny, T>(dy, preactivation(to_float(x), mean, scale, bias), b.act, b.param);
}

template <bool kAny, class T, int V>
__device__ __forceinline__ Vec<float, V> incoming_all(const Backward<T>& b, const Coefficients<V>& k,
                                                      const Elements<T, V>& e) {
  Vec<float, V> dz;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    dz[i] = incoming<kAny>(b, e.grad[i], e.x[i], e.out[i], e.bits >> i & 1, k.mean[i], k.scale[i], k.bias[i]);
  }
  return dz;
}

// dz - mean(dz) - (x - mean) * slope, the product not rounded.
__device__ __forceinline__ float centred(float dz, float x, float mean, float mean_dz, float slope) {
  return __fmaf_rn(mean - x, slope, dz - mean_dz);
}

// The sums of this block's elements, per thread those of its V channels.
template <bool kAny, class T, int V, int kBatch, class Fetch>
__device__ __forceinline__ void sums_of(const Backward<T>& b, const Cut& cut, const Place& place,
                                        const Coefficients<V>& k, Fetch fetch, double* scratch,
                                        Sums (&sums)[V]) {
  Vec<float, V> total = {}, product = {};
  for_items<kBatch>(cut, place, walk_of<V>(cut, place, false), false, fetch,
                    [&](const Elements<T, V>& e, int64_t, bool inside, int64_t) {
                      if (!inside) return;
                      const Vec<float, V> dz = incoming_all<kAny>(b, k, e);
#pragma unroll
                      for (int i = 0; i < V; ++i) {
                        total[i] += dz[i];
                        product[i] = __fmaf_rn(dz[i], to_float(e.x[i]) - k.mean[i], product[i]);
                      }
                    });
  total = tile_sum<V>(total, cut, scratch);
  product = tile_sum<V>(product, cut, scratch);
#pragma unroll
  for (int i = 0; i < V; ++i) sums[i] = {total[i], product[i]};
}

template <int V>
__device__ __forceinline__ void put_sums(const Cut& cut, const Place& place, const Sums (&sums)[V],
                                         Sums* slot) {
  if (place.row != 0) return;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    if (i == 0 || cut.rows) slot[(cut.rows ? place.lane * V : 0) + i] = sums[i];
  }
}

// Of column threadIdx.x % columns, over all splits in a fixed order.
template <class Get>
__device__ __forceinline__ CombinedSums combine_sums(int columns, int splits, Get get, double* scratch) {
  const int column = static_cast<int>(threadIdx.x) % columns;
  Wide<2> sums = {};
  for (int split = static_cast<int>(threadIdx.x) / columns; split < splits; split += kThreads / columns) {
    const Sums part = get(split, column);
    sums = add(sums, Wide<2>{{part.total, part.product}});
  }
  sums = column_sum(sums, columns, scratch);
  return {sums.v[0], sums.v[1]};
}

// Writes the gradients of weight and bias of channel c if `writes`; returns mean(dz) and mean(dz * xhat).
template <class T>
__device__ __forceinline__ float2 finish_sums(const Backward<T>& b, int64_t c, const CombinedSums& sums,
                                              int64_t count, bool writes) {
  const double product = sums.product * b.invstd[c], n = static_cast<double>(count);
  if (writes) {
    write<T>(b.grad_bias, c, static_cast<float>(sums.total));
    write<T>(b.grad_weight, c, static_cast<float>(product));
  }
  return {static_cast<float>(sums.total / n), static_cast<float>(product / n)};
}

}  // namespace batch_norm
}  // namespace fastdl
