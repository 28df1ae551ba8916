// batch_norm backward, with dz = grad_out * act':
//
//   grad_bias = sum dz, grad_weight = sum dz * xhat, grad_residual = dz, xhat = (x - mean) * invstd
//   grad_x = (dz - mean(dz) - xhat * mean(dz * xhat)) * weight * invstd, or dz * weight * invstd in
//   evaluation
//
// One launch where grad_out and x of a channel block stay in the shared memory of the blocks of threads that
// own it; else the sums, finished by the last block of each channel block, and the elementwise pass,
// backwards. Where only one of them is asked for, that one alone.
#include "../batch_norm.h"
#include "batch_norm_gradients.cuh"

namespace fastdl {
namespace batch_norm {
namespace {

constexpr int kStaticBytes = 10 << 10;  // more than what the kernels here have in static shared memory

template <int V>
constexpr int kBatch = V == 1 ? 4 : 2;
template <int V>
constexpr int kSharedBatch = V == 8 ? 1 : kBatch<V>;  // where they come from shared memory

// grad_x and grad_residual of V elements.
template <class T, int V>
__device__ __forceinline__ void put_gradients(const Backward<T>& b, const Coefficients<V>& k,
                                              const Vec<float, V>& dz, const Vec<T, V>& x, int64_t offset) {
  if (b.grad_residual) store<Cache::kStreaming>(b.grad_residual + offset, narrow<T>(dz));
  if (!b.grad_x) return;
  Vec<float, V> grad = dz;
  if (b.training) {
#pragma unroll
    for (int i = 0; i < V; ++i)
      grad[i] = centred(grad[i], to_float(x[i]), k.mean[i], k.mean_dz[i], k.slope[i]);
  }
#pragma unroll
  for (int i = 0; i < V; ++i) grad[i] *= k.scale[i];
  store<Cache::kStreaming>(b.grad_x + offset, narrow<T>(grad));
}

// ---- Kernels ----

template <bool kAny, class T, int V>
__global__ void __launch_bounds__(kThreads, 2)
    batch_norm_gradient_sums(Cut cut, Backward<T> b, Sums* partials, unsigned* counters) {
  __shared__ __align__(16) double scratch[kScratchDoubles];
  __shared__ bool last;
  const Place place = place_of<V>(cut, blockIdx.x % cut.blocks, static_cast<int>(blockIdx.x / cut.blocks));
  const Coefficients<V> k = coefficients_of<V>(b, cut, place);
  const bool reads_x = b.grad_weight.data || b.means || b.recomputes();
  Sums sums[V];
  sums_of<kAny, T, V, kAny ? 1 : kBatch<V>>(
      b, cut, place, k, [&](int64_t offset, int64_t) { return load_elements<T, V>(b, offset, reads_x); },
      scratch, sums);
  const int columns = cut.columns(V);
  partials += place.block * cut.splits * columns;
  put_sums<V>(cut, place, sums, partials + int64_t(place.split) * columns);
  if (cut.splits == 1) {
    __syncthreads();
  } else if (!last_block_done(counters + place.block, unsigned(cut.splits), &last)) {
    return;
  }
  const CombinedSums combined = combine_sums(
      columns, cut.splits,
      [&](int split, int column) {
        return Exchange<Sums>::load_partial(partials + int64_t(split) * columns + column);
      },
      scratch);
  const int64_t c = place.block * columns + threadIdx.x;
  if (int(threadIdx.x) >= columns || c >= cut.channels) return;
  const float2 means = finish_sums(b, c, combined, cut.per_channel(V), true);
  if (b.means) {
    b.means[c] = means.x;
    b.means[cut.channels + c] = means.y;
  }
}

// Sums and elementwise pass in one, grad_out and x of the block in shared memory: [2, trips, kThreads]
// vectors, each read by the thread that wrote it.
template <class T, int V>
__global__ void __launch_bounds__(kThreads, 2)
    batch_norm_backward_resident(Cut cut, Backward<T> b, Team team, Sums* partials, unsigned* counters) {
  FASTDL_DYNAMIC_SHARED(T, elements);
  __shared__ __align__(16) double scratch[kScratchDoubles];
  __shared__ __align__(16) Sums mine[kMaxColumns];
  __shared__ float2 means[kMaxColumns];
  const int columns = cut.columns(V);
  const Place place = place_of<V>(cut, blockIdx.x / cut.splits, static_cast<int>(blockIdx.x % cut.splits));
  const Walk walk = walk_of<V>(cut, place, false);
  const int64_t trips = (cut.tiles + cut.splits - 1) / cut.splits;
  const auto slot = [&](int64_t trip) { return elements + (trip * kThreads + threadIdx.x) * V; };
  T* const second = elements + trips * kThreads * V;
  const auto slot_of_x = [&](int64_t trip) { return second + (trip * kThreads + threadIdx.x) * V; };
  for_items<4>(
      cut, place, walk, false,
      [&](int64_t offset, int64_t) {
        Elements<T, V> e = {};
        e.grad = load<V, Cache::kStreaming>(b.grad_out + offset);
        e.x = load<V, Cache::kStreaming>(b.x + offset);
        return e;
      },
      [&](const Elements<T, V>& e, int64_t, bool, int64_t trip) {
        store(slot(trip), e.grad);
        store(slot_of_x(trip), e.x);
      });
  const auto fetch = [&](int64_t offset, int64_t trip) {
    Elements<T, V> e = {};
    e.grad = load<V>(slot(trip));
    e.x = load<V>(slot_of_x(trip));
    if (b.mask) e.bits = read_bits(b.mask, offset);
    if (b.out) e.out = load<V>(b.out + offset);
    return e;
  };

  Coefficients<V> k = coefficients_of<V>(b, cut, place);
  Sums sums[V];
  sums_of<false, T, V, kSharedBatch<V>>(b, cut, place, k, fetch, scratch, sums);
  const Exchange<Sums> exchange = {
      team,        mine,      partials + place.block * cut.splits * columns, counters + place.block, columns,
      place.split, cut.splits};
  put_sums<V>(cut, place, sums, exchange.slot());
  exchange.meet();
  const CombinedSums combined = combine_sums(
      columns, cut.splits, [&](int split, int column) { return exchange.get(split, column); }, scratch);
  exchange.read_all();
  const int64_t c = place.block * columns + threadIdx.x;
  if (int(threadIdx.x) < columns && c < cut.channels) {
    means[threadIdx.x] = finish_sums(b, c, combined, cut.per_channel(V), place.split == 0);
  }
  __syncthreads();

  if (place.exists) {
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const int channel = cut.rows ? i : 0;
      const float2 both = means[cut.rows ? place.lane * V + i : 0];
      k.mean_dz[i] = both.x;
      k.slope[i] = both.y * b.invstd[place.channel + channel];
    }
  }
  for_items<kSharedBatch<V>>(cut, place, walk, false, fetch,
                             [&](const Elements<T, V>& e, int64_t offset, bool inside, int64_t) {
                               if (inside) put_gradients(b, k, incoming_all<false>(b, k, e), e.x, offset);
                             });
  exchange.leave();
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads, 2) batch_norm_backward(Cut cut, Backward<T> b) {
  const Place place = place_of<V>(cut, blockIdx.x % cut.blocks, static_cast<int>(blockIdx.x / cut.blocks));
  Coefficients<V> k = coefficients_of<V>(b, cut, place);
  if (b.batch() && place.exists) {
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const int64_t c = place.channel + (cut.rows ? i : 0);
      k.mean_dz[i] = b.means[c];
      k.slope[i] = b.means[cut.channels + c] * b.invstd[c];
    }
  }
  const bool reads_x = b.batch() || b.recomputes();
  for_items<kBatch<V>>(
      cut, place, walk_of<V>(cut, place, true), true,
      [&](int64_t offset, int64_t) { return load_elements<T, V>(b, offset, reads_x); },
      [&](const Elements<T, V>& e, int64_t offset, bool inside, int64_t) {
        if (inside) put_gradients(b, k, incoming_all<false>(b, k, e), e.x, offset);
      });
}

// The same for any size, alignment and activation, x as one flat array. `wide`: the tensors are aligned for
// vectors.
template <class T, bool kAny>
__global__ void __launch_bounds__(kThreads, 2) batch_norm_backward_flat(Backward<T> b, bool wide) {
  constexpr int V = kVec<T>;
  struct Entry {
    float mean, scale, bias, mean_dz, slope;
  };
  FASTDL_DYNAMIC_SHARED(Entry, table);
  const Flat flat = flat_of<V>(b.channels, b.s);
  const int64_t offset = flat.begin + int64_t(threadIdx.x) * V, left = b.numel - offset;
  const bool reads_x = b.batch() || b.recomputes();
  Elements<T, V> e = {};
  e.grad = load_some<V>(b.grad_out + offset, left, wide);
  if (reads_x) e.x = load_some<V>(b.x + offset, left, wide);
  if (b.mask && left > 0) e.bits = read_bits(b.mask, offset);
  if (b.out) e.out = load_some<V>(b.out + offset, left, wide);
  for (int i = static_cast<int>(threadIdx.x); i < flat.entries; i += kThreads) {
    const int64_t c = (flat.line + i) % b.channels;
    Entry entry = {b.mean[c], read<T>(b.weight, c, 1.0f) * b.invstd[c], read<T>(b.bias, c, 0.0f), 0.0f, 0.0f};
    if (b.batch()) {
      entry.mean_dz = b.means[c];
      entry.slope = b.means[b.channels + c] * b.invstd[c];
    }
    table[i] = entry;
  }
  __syncthreads();

  Vec<float, V> dz, grad;
  for_flat<V>(flat, offset, b.s, [&](int i, int which) {
    const Entry& k = table[which];
    dz[i] = incoming<kAny>(b, e.grad[i], e.x[i], e.out[i], e.bits >> i & 1, k.mean, k.scale, k.bias);
    grad[i] = b.training ? centred(dz[i], to_float(e.x[i]), k.mean, k.mean_dz, k.slope) : dz[i];
    grad[i] *= k.scale;
  });
  if (b.grad_residual) store_some<V>(b.grad_residual + offset, narrow<T>(dz), left, wide);
  if (b.grad_x) store_some<V>(b.grad_x + offset, narrow<T>(grad), left, wide);
}

// ---- Host ----

template <class T, int V>
const char* resident(const Plan& plan, const Backward<T>& b, Context* context) {
  Scratch<Sums> scratch;
  if (plan.team == Team::kGrid) {
    if (const char* error = scratch.make(plan.cut, V, context)) return error;
  }
  return describe(launch(&batch_norm_backward_resident<T, V>, launch_of(plan, stream_of(context)), plan.cut,
                         b, plan.team, scratch.partials, scratch.counters));
}

template <class T, int V>
const char* gradient_sums(const Shape& shape, const Backward<T>& b, const Device& device, Context* context) {
  const Cut cut = streaming_cut(shape, V, device);
  Scratch<Sums> scratch;
  if (const char* error = scratch.make(cut, V, context)) return error;
  return dispatch_bool(!simple(b.act), [&](auto any) {
    return describe(launch(&batch_norm_gradient_sums<decltype(any)::value, T, V>,
                           dim3(static_cast<unsigned>(cut.blocks * cut.splits)), dim3(kThreads), 0,
                           stream_of(context), cut, b, scratch.partials, scratch.counters));
  });
}

template <class T>
const char* gradients(const Shape& shape, int v, const Backward<T>& b, bool wide, const Device& device,
                      Context* context) {
  constexpr int V = kVec<T>;
  if (v == V && simple(b.act)) {
    const Cut cut = elementwise_cut(shape, V, device);
    return describe(launch(&batch_norm_backward<T, V>, dim3(static_cast<unsigned>(cut.blocks * cut.splits)),
                           dim3(kThreads), 0, stream_of(context), cut, b));
  }
  const int64_t blocks = ceil_div(b.numel, int64_t(kThreads) * V);
  if (blocks > kMaxGridX) return "a tensor too large for one launch";
  return dispatch_bool(!simple(b.act), [&](auto any) {
    return describe(launch(&batch_norm_backward_flat<T, decltype(any)::value>,
                           dim3(static_cast<unsigned>(blocks)), dim3(kThreads),
                           flat_entries(shape, V) * 5 * int64_t(sizeof(float)), stream_of(context), b, wide));
  });
}

template <class T>
const char* backward(const BatchNormBackward& p, Context* context) {
  const Device& device = device_properties(context->device);
  const Shape shape = shape_of(p.x);
  const DType x = p.x.dtype;
  Backward<T> b;
  b.grad_out = static_cast<const T*>(p.grad_out.data);
  b.x = static_cast<const T*>(p.x.data);
  b.out = p.mask ? nullptr : static_cast<const T*>(p.out.data);
  b.mask = static_cast<const uint8_t*>(p.mask.data);
  b.weight = param_of(p.weight, x);
  b.bias = param_of(p.bias, x);
  b.mean = static_cast<const float*>(p.mean.data);
  b.invstd = static_cast<const float*>(p.invstd.data);
  b.grad_x = static_cast<T*>(p.grad_x.data);
  b.grad_residual = static_cast<T*>(p.grad_residual.data);
  b.grad_weight = param_of(p.grad_weight, x);
  b.grad_bias = param_of(p.grad_bias, x);
  b.means = nullptr;
  b.training = p.training;
  b.act = p.activation;
  b.param = p.activation_param;
  b.numel = shape.numel();
  b.channels = shape.c;
  b.s = shape.s;
  if (shape.c > kMaxGridX) return "too many channels";

  if (b.numel == 0) {
    for (const Tensor* grad : {&p.grad_weight, &p.grad_bias}) {
      const size_t bytes = static_cast<size_t>(shape.c) * (grad->dtype == x ? sizeof(T) : sizeof(float));
      if (*grad && bytes) FASTDL_CUDA(cudaMemsetAsync(grad->data, 0, bytes, stream_of(context)));
    }
    return nullptr;
  }
  for (const T** input : {&b.grad_out, &b.x, &b.out}) {
    if (const char* error = align(*input, shape, context)) return error;
  }
  const uintptr_t pointers = reinterpret_cast<uintptr_t>(b.grad_out) | reinterpret_cast<uintptr_t>(b.x) |
                             reinterpret_cast<uintptr_t>(b.out) | reinterpret_cast<uintptr_t>(b.grad_x) |
                             reinterpret_cast<uintptr_t>(b.grad_residual);
  const int v = vector_of<T>(shape, pointers);
  const bool sums = b.grad_weight.data || b.grad_bias.data || b.batch();
  const bool elements = b.grad_x || b.grad_residual;
  if (sums) {
    const Plan plan =
        elements && simple(b.act) ? resident_plan<T>(shape, v, 2, device, kStaticBytes) : Plan{};
    if (!plan.resident && b.batch()) {
      b.means = static_cast<float*>(context->allocate(context, 2 * shape.c * int64_t(sizeof(float))));
      if (!b.means) return "out of memory";
    }
    const auto run = [&](auto n) {
      constexpr int V = decltype(n)::value;
      return plan.resident ? resident<T, V>(plan, b, context)
                           : gradient_sums<T, V>(shape, b, device, context);
    };
    const char* error;
    if constexpr (sizeof(T) == 2) {
      error = dispatch_int<8, 4, 1>(v, run);
    } else {
      error = dispatch_int<4, 1>(v, run);
    }
    if (error || plan.resident) return error;
  }
  return elements ? gradients<T>(shape, v, b, pointers % 16 == 0, device, context) : nullptr;
}

}  // namespace
}  // namespace batch_norm
}  // namespace fastdl

FASTDL_EXPORT const char* fastdl_batch_norm_backward(const fastdl::BatchNormBackward* p,
                                                     fastdl::Context* context) {
  using namespace fastdl;
  const DeviceGuard guard(context->device);
  if (guard.error()) return guard.error();
  return dispatch_float(p->x.dtype, [&](auto type) {
    return batch_norm::backward<typename decltype(type)::type>(*p, context);
  });
}
