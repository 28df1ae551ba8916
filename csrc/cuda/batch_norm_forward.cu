// batch_norm forward: out = act((x - mean) * invstd * weight + bias + residual).
//
// Training takes one launch where the elements of a channel block stay in the shared memory of the blocks of
// threads that own it, and x is read once; else two: statistics, finished by the last block of each channel
// block, and the elementwise pass, which walks x backwards to find in the cache what the first one read last.
// Evaluation is that pass.
#include "../batch_norm.h"
#include "batch_norm_moments.cuh"

namespace fastdl {
namespace batch_norm {
namespace {

constexpr int kStaticBytes = 10 << 10;  // more than what the kernels here have in static shared memory

// For a batch of V elements under way at once.
template <int V>
constexpr int kBatch = V == 1 ? 8 : 4;

template <class T>
struct Forward {
  const T *x, *residual;
  T* out;
  uint8_t* mask;
  Param weight, bias;
  Statistics statistics;
  bool training;
  float eps;
  Activation act;
  float param;
  int64_t numel, channels, s;

  // mean and invstd of channel c, from the batch or from the running ones.
  __device__ __forceinline__ float2 load_statistics(int64_t c) const {
    if (training) return {statistics.mean[c], statistics.invstd[c]};
    return {read<T>(statistics.running_mean, c, 0.0f),
            invstd_of(read<T>(statistics.running_var, c, 1.0f), eps)};
  }
};

// Per thread: mean, scale and bias of its V channels (in planes V times the same).
template <int V>
struct Coefficients {
  Vec<float, V> mean, scale, bias;
};

template <class T, int V, class Load>
__device__ __forceinline__ Coefficients<V> coefficients_of(const Forward<T>& f, const Cut& cut,
                                                           const Place& place, Load statistics) {
  Coefficients<V> k = {};
  if (!place.exists) return k;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    const int64_t c = place.channel + (cut.rows ? i : 0);
    const float2 both = statistics(i);
    k.mean[i] = both.x;
    k.scale[i] = read<T>(f.weight, c, 1.0f) * both.y;
    k.bias[i] = read<T>(f.bias, c, 0.0f);
  }
  return k;
}

// out and mask of V elements. With a mask, reached by whole warps.
template <class T, int V>
__device__ __forceinline__ void put_elements(const Forward<T>& f, const Coefficients<V>& k,
                                             const Vec<T, V>& x, const Vec<T, V>& residual, int64_t offset,
                                             bool inside) {
  Vec<float, V> y;
#pragma unroll
  for (int i = 0; i < V; ++i) y[i] = preactivation(to_float(x[i]), k.mean[i], k.scale[i], k.bias[i]);
  if (f.residual) {
#pragma unroll
    for (int i = 0; i < V; ++i) y[i] += to_float(residual[i]);
  }
  activate_all<false>(y, f.act, f.param);
  const Vec<T, V> out = narrow<T>(y);
  if (inside) store<Cache::kStreaming>(f.out + offset, out);
  if constexpr (V > 1) {
    if (f.mask) write_bits<V>(f.mask, offset, relu_bits(out), inside);
  }
}

template <class T, int V>
struct Pair {
  Vec<T, V> x, residual;
};

// ---- Kernels ----

template <class T, int V>
__global__ void __launch_bounds__(kThreads, 2)
    batch_norm_statistics(Cut cut, const T* x, Statistics statistics, Moments* partials, unsigned* counters) {
  __shared__ __align__(16) double scratch[kScratchDoubles];
  __shared__ bool last;
  const Place place = place_of<V>(cut, blockIdx.x % cut.blocks, static_cast<int>(blockIdx.x / cut.blocks));
  Moments moments[V];
  moments_of<T, V, kBatch<V>>(
      cut, place, x, [&](int64_t offset, int64_t) { return load<V>(x + offset); }, scratch, moments);
  const int columns = cut.columns(V);
  partials += place.block * cut.splits * columns;
  put_moments<V>(cut, place, moments, partials + int64_t(place.split) * columns);
  if (cut.splits == 1) {
    __syncthreads();
  } else if (!last_block_done(counters + place.block, unsigned(cut.splits), &last)) {
    return;
  }
  const Combined combined = combine_moments(
      columns, cut.splits, double(cut.per_channel(V)),
      [&](int split, int column) {
        return Exchange<Moments>::load_partial(partials + int64_t(split) * columns + column);
      },
      scratch);
  const int64_t c = place.block * columns + threadIdx.x;
  if (int(threadIdx.x) < columns && c < cut.channels) write_statistics<T>(statistics, c, combined);
}

// Statistics and elementwise pass in one, the block's elements in shared memory: [trips, kThreads] vectors,
// each read by the thread that wrote it.
template <class T, int V>
__global__ void __launch_bounds__(kThreads, 2)
    batch_norm_resident(Cut cut, Forward<T> f, Team team, Moments* partials, unsigned* counters) {
  FASTDL_DYNAMIC_SHARED(T, elements);
  __shared__ __align__(16) double scratch[kScratchDoubles];
  __shared__ __align__(16) Moments mine[kMaxColumns];
  __shared__ float2 statistics[kMaxColumns];
  const int columns = cut.columns(V);
  const Place place = place_of<V>(cut, blockIdx.x / cut.splits, static_cast<int>(blockIdx.x % cut.splits));
  const auto slot = [&](int64_t trip) { return elements + (trip * kThreads + threadIdx.x) * V; };

  const Walk walk = walk_of<V>(cut, place, false);
  for_items<8>(
      cut, place, walk, false,
      [&](int64_t offset, int64_t) { return load<V, Cache::kStreaming>(f.x + offset); },
      [&](const Vec<T, V>& x, int64_t, bool, int64_t trip) { store(slot(trip), x); });

  Moments moments[V];
  moments_of<T, V, kBatch<V>>(
      cut, place, f.x, [&](int64_t, int64_t trip) { return load<V>(slot(trip)); }, scratch, moments);
  const Exchange<Moments> exchange = {
      team,        mine,      partials + place.block * cut.splits * columns, counters + place.block, columns,
      place.split, cut.splits};
  put_moments<V>(cut, place, moments, exchange.slot());
  exchange.meet();
  const Combined combined = combine_moments(
      columns, cut.splits, double(cut.per_channel(V)),
      [&](int split, int column) { return exchange.get(split, column); }, scratch);
  exchange.read_all();
  const int64_t c = place.block * columns + threadIdx.x;
  if (int(threadIdx.x) < columns && c < cut.channels) {
    if (place.split == 0) {
      statistics[threadIdx.x] = write_statistics<T>(f.statistics, c, combined);
    } else {
      statistics[threadIdx.x] = {
          static_cast<float>(combined.mean),
          static_cast<float>(1.0 / sqrt(combined.m2 / combined.count + f.statistics.eps))};
    }
  }
  __syncthreads();

  const Coefficients<V> k = coefficients_of<T, V>(
      f, cut, place, [&](int i) { return statistics[cut.rows ? place.lane * V + i : 0]; });
  for_items<kBatch<V>>(
      cut, place, walk, false,
      [&](int64_t offset, int64_t) {
        return f.residual ? load<V, Cache::kStreaming>(f.residual + offset) : Vec<T, V>{};
      },
      [&](const Vec<T, V>& residual, int64_t offset, bool inside, int64_t trip) {
        put_elements<T, V>(f, k, load<V>(slot(trip)), residual, offset, inside);
      });
  exchange.leave();
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads, 2) batch_norm_normalise(Cut cut, Forward<T> f) {
  const Place place = place_of<V>(cut, blockIdx.x % cut.blocks, static_cast<int>(blockIdx.x / cut.blocks));
  const Coefficients<V> k = coefficients_of<T, V>(f, cut, place, [&](int i) {
    const int64_t c = place.channel + (cut.rows ? i : 0);
    const float2 both = f.load_statistics(c);
    if (!f.training && f.statistics.mean && place.split == 0 && place.row == 0) {
      f.statistics.mean[c] = both.x;
      f.statistics.invstd[c] = both.y;
    }
    return both;
  });
  for_items<V == 8 ? 3 : kBatch<V>>(  // four would not fit the registers
      cut, place, walk_of<V>(cut, place, true), true,
      [&](int64_t offset, int64_t) {
        Pair<T, V> pair = {load<V, Cache::kStreaming>(f.x + offset), {}};
        if (f.residual) pair.residual = load<V, Cache::kStreaming>(f.residual + offset);
        return pair;
      },
      [&](const Pair<T, V>& pair, int64_t offset, bool inside, int64_t) {
        put_elements<T, V>(f, k, pair.x, pair.residual, offset, inside);
      });
}

// The same for any size, alignment and activation, x as one flat array. `wide`: the tensors are aligned for
// vectors.
template <class T, bool kAny>
__global__ void __launch_bounds__(kThreads, 2) batch_norm_normalise_flat(Forward<T> f, bool wide) {
  constexpr int V = kVec<T>;
  struct Entry {
    float mean, scale, bias;
  };
  FASTDL_DYNAMIC_SHARED(Entry, table);
  const Flat flat = flat_of<V>(f.channels, f.s);
  const int64_t offset = flat.begin + int64_t(threadIdx.x) * V, left = f.numel - offset;
  const Vec<T, V> x = load_some<V>(f.x + offset, left, wide);
  const Vec<T, V> residual = f.residual ? load_some<V>(f.residual + offset, left, wide) : Vec<T, V>{};
  for (int i = static_cast<int>(threadIdx.x); i < flat.entries; i += kThreads) {
    const int64_t c = (flat.line + i) % f.channels;
    const float2 both = f.load_statistics(c);
    table[i] = {both.x, read<T>(f.weight, c, 1.0f) * both.y, read<T>(f.bias, c, 0.0f)};
  }
  if (!f.training && f.statistics.mean) {
    for (int64_t c = global_thread(); c < f.channels; c += grid_threads()) {
      const float2 both = f.load_statistics(c);
      f.statistics.mean[c] = both.x;
      f.statistics.invstd[c] = both.y;
    }
  }
  __syncthreads();

  Vec<float, V> y;
  for_flat<V>(flat, offset, f.s, [&](int i, int entry) {
    y[i] = preactivation(to_float(x[i]), table[entry].mean, table[entry].scale, table[entry].bias);
    if (f.residual) y[i] += to_float(residual[i]);
  });
  activate_all<kAny>(y, f.act, f.param);
  const Vec<T, V> out = narrow<T>(y);
  store_some<V>(f.out + offset, out, left, wide);
  if (f.mask) {
    unsigned bits = relu_bits(out);
    if (left < V) bits &= left > 0 ? (1u << left) - 1 : 0;
    write_bits<V>(f.mask, offset, bits, left > 0);
  }
}

// The mask from out, where a vector of the kernels above does not own whole bytes of it.
template <class T>
__global__ void __launch_bounds__(kThreads)
    batch_norm_pack_mask(const T* out, uint8_t* mask, int64_t numel, bool wide) {
  constexpr int V = kVec<T>;
  const int64_t offset = global_thread() * V, left = numel - offset;
  unsigned bits = relu_bits(load_some<V>(out + offset, left, wide));
  if (left < V) bits &= left > 0 ? (1u << left) - 1 : 0;
  write_bits<V>(mask, offset, bits, left > 0);
}

// ---- Host ----

template <class T>
const char* blocks_of(int64_t numel, dim3* grid) {
  const int64_t blocks = ceil_div(numel, int64_t(kThreads) * kVec<T>);
  *grid = dim3(static_cast<unsigned>(blocks > 0 ? blocks : 1));
  return blocks <= kMaxGridX ? nullptr : "a tensor too large for one launch";
}

template <class T, int V>
const char* resident(const Shape& shape, const Plan& plan, Forward<T> f, bool wide, Context* context) {
  Scratch<Moments> scratch;
  if (plan.team == Team::kGrid) {
    if (const char* error = scratch.make(plan.cut, V, context)) return error;
  }
  uint8_t* const mask = f.mask;
  const bool packs = mask && (V == 1 || shape.contiguous() % 8 != 0);
  if (packs) f.mask = nullptr;
  FASTDL_CUDA(launch(&batch_norm_resident<T, V>, launch_of(plan, stream_of(context)), plan.cut, f, plan.team,
                     scratch.partials, scratch.counters));
  if (!packs) return nullptr;
  dim3 grid;
  if (const char* error = blocks_of<T>(f.numel, &grid)) return error;
  return describe(launch(&batch_norm_pack_mask<T>, grid, dim3(kThreads), 0, stream_of(context), f.out, mask,
                         f.numel, wide));
}

template <class T, int V>
const char* statistics(const Shape& shape, const Forward<T>& f, const Device& device, Context* context) {
  const Cut cut = streaming_cut(shape, V, device);
  Scratch<Moments> scratch;
  if (const char* error = scratch.make(cut, V, context)) return error;
  return describe(launch(&batch_norm_statistics<T, V>, dim3(static_cast<unsigned>(cut.blocks * cut.splits)),
                         dim3(kThreads), 0, stream_of(context), cut, f.x, f.statistics, scratch.partials,
                         scratch.counters));
}

template <class T>
const char* normalise(const Shape& shape, int v, const Forward<T>& f, bool wide, const Device& device,
                      Context* context) {
  constexpr int V = kVec<T>;
  if (v == V && simple(f.act) && (!f.mask || shape.contiguous() % 8 == 0)) {
    const Cut cut = elementwise_cut(shape, V, device);
    return describe(launch(&batch_norm_normalise<T, V>, dim3(static_cast<unsigned>(cut.blocks * cut.splits)),
                           dim3(kThreads), 0, stream_of(context), cut, f));
  }
  dim3 grid;
  if (const char* error = blocks_of<T>(f.numel, &grid)) return error;
  return dispatch_bool(!simple(f.act), [&](auto any) {
    return describe(launch(&batch_norm_normalise_flat<T, decltype(any)::value>, grid, dim3(kThreads),
                           flat_entries(shape, V) * 3 * int64_t(sizeof(float)), stream_of(context), f, wide));
  });
}

template <class T>
const char* forward(const BatchNormForward& p, Context* context) {
  const Device& device = device_properties(context->device);
  const Shape shape = shape_of(p.x);
  const DType x = p.x.dtype;
  Forward<T> f;
  f.x = static_cast<const T*>(p.x.data);
  f.residual = static_cast<const T*>(p.residual.data);
  f.out = static_cast<T*>(p.out.data);
  f.mask = static_cast<uint8_t*>(p.mask.data);
  f.weight = param_of(p.weight, x);
  f.bias = param_of(p.bias, x);
  f.statistics = {static_cast<float*>(p.mean.data),
                  static_cast<float*>(p.invstd.data),
                  param_of(p.running_mean, x),
                  param_of(p.running_var, x),
                  p.momentum,
                  p.eps};
  f.training = p.training;
  f.eps = static_cast<float>(p.eps);
  f.act = p.activation;
  f.param = p.activation_param;
  f.numel = shape.numel();
  f.channels = shape.c;
  f.s = shape.s;
  if (shape.c > kMaxGridX) return "too many channels";

  for (const T** input : {&f.x, &f.residual}) {
    if (const char* error = align(*input, shape, context)) return error;
  }
  const uintptr_t pointers = reinterpret_cast<uintptr_t>(f.x) | reinterpret_cast<uintptr_t>(f.residual) |
                             reinterpret_cast<uintptr_t>(f.out);
  const bool wide = pointers % 16 == 0;
  if (f.numel == 0) {
    if (shape.c == 0 || !p.mean) return nullptr;
    f.s = 1;
    if (!p.training) return normalise<T>({0, shape.c, 1, true}, 0, f, wide, device, context);
    // No batch, no statistics: the running ones stay.
    const size_t bytes = static_cast<size_t>(shape.c) * sizeof(float);
    FASTDL_CUDA(cudaMemsetAsync(p.mean.data, 0, bytes, stream_of(context)));
    return describe(cudaMemsetAsync(p.invstd.data, 0, bytes, stream_of(context)));
  }
  const int v = vector_of<T>(shape, pointers);
  if (p.training) {
    const Plan plan = simple(f.act) ? resident_plan<T>(shape, v, 1, device, kStaticBytes) : Plan{};
    const auto run = [&](auto n) {
      constexpr int V = decltype(n)::value;
      return plan.resident ? resident<T, V>(shape, plan, f, wide, context)
                           : statistics<T, V>(shape, f, device, context);
    };
    const char* error;
    if constexpr (sizeof(T) == 2) {
      error = dispatch_int<8, 4, 1>(v, run);
    } else {
      error = dispatch_int<4, 1>(v, run);
    }
    if (error || plan.resident) return error;
  }
  return normalise<T>(shape, v, f, wide, device, context);
}

}  // namespace
}  // namespace batch_norm
}  // namespace fastdl

FASTDL_EXPORT const char* fastdl_batch_norm_forward(const fastdl::BatchNormForward* p,
                                                    fastdl::Context* context) {
  using namespace fastdl;
  const DeviceGuard guard(context->device);
  if (guard.error()) return guard.error();
  return dispatch_float(
      p->x.dtype, [&](auto type) { return batch_norm::forward<typename decltype(type)::type>(*p, context); });
}
