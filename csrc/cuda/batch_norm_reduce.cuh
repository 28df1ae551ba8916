// Sums over the rows of a tile, and how the blocks of threads that share a channel block add up their parts.
#pragma once

#include "batch_norm_cut.cuh"
#include "hopper.cuh"

namespace fastdl {
namespace batch_norm {

template <int N>
__device__ __forceinline__ Vec<float, N> add(const Vec<float, N>& a, const Vec<float, N>& b) {
  Vec<float, N> sum;
#pragma unroll
  for (int i = 0; i < N; ++i) sum[i] = a[i] + b[i];
  return sum;
}

// Sums of float values in double: a few per channel, so the cost does not matter and the order hardly does.
template <int N>
struct Wide {
  double v[N];
};
template <int N>
__device__ __forceinline__ Wide<N> add(const Wide<N>& a, const Wide<N>& b) {
  Wide<N> sum;
#pragma unroll
  for (int i = 0; i < N; ++i) sum.v[i] = a.v[i] + b.v[i];
  return sum;
}

// Room for kThreads values of up to 32 bytes.
constexpr int kScratchDoubles = kThreads * 4;

// The sum over the threads of the same threadIdx.x % columns, to all of them. `columns`: a power of two of at
// most kMaxColumns; `scratch` is shared and free again on return.
template <class X>
__device__ __forceinline__ X column_sum(const X& own, int columns, double* scratch) {
  static_assert(sizeof(X) <= sizeof(double) * kScratchDoubles / kThreads, "fits the scratch memory");
  X value = own;
  X* const shared = reinterpret_cast<X*>(scratch);
  for (int lanes = columns; lanes < kWarp; lanes *= 2) value = add(value, shuffle_xor(value, lanes));
  shared[threadIdx.x] = value;
  __syncthreads();
  const int stride = columns < kWarp ? kWarp : columns;
  X sum = shared[static_cast<int>(threadIdx.x) % columns];
  for (int i = static_cast<int>(threadIdx.x) % columns + stride; i < kThreads; i += stride) {
    sum = add(sum, shared[i]);
  }
  __syncthreads();
  return sum;
}

// Per thread V channels (rows) or V parts of one channel (planes) -> per thread V sums, in planes all the
// same.
template <int V>
__device__ __forceinline__ Vec<float, V> tile_sum(const Vec<float, V>& value, const Cut& cut,
                                                  double* scratch) {
  if (!cut.rows) {
    Vec<float, V> halves = value;  // by halves: fewer roundings behind each other
#pragma unroll
    for (int n = V / 2; n > 0; n /= 2) {
#pragma unroll
      for (int i = 0; i < n; ++i) halves[i] += halves[i + n];
    }
    Vec<float, 1> one;
    one[0] = halves[0];
    one = column_sum(one, 1, scratch);
    Vec<float, V> same;
#pragma unroll
    for (int i = 0; i < V; ++i) same[i] = one[0];
    return same;
  }
  return column_sum(value, cut.lanes, scratch);
}

// ---- Between blocks of threads ----

// Which blocks of threads share a channel block while its elements stay in their shared memory.
enum class Team : int { kAlone, kCluster, kGrid };

// A block's way to tell its partial sums, [columns] of P, to the others of its team.
template <class P>
struct Exchange {
  Team team;
  P* mine;            // [kMaxColumns], shared
  P* partials;        // kGrid: [splits, columns] of this channel block, global
  unsigned* arrived;  // kGrid: 0 before the kernel
  int columns, split, splits;

  __device__ __forceinline__ P* slot() const {
    return team == Team::kGrid ? partials + int64_t(split) * columns : mine;
  }
  // After all have written their slots.
  __device__ __forceinline__ void meet() const {
    if (team == Team::kAlone) {
      __syncthreads();
    } else if (team == Team::kCluster) {
      cluster_barrier();
    } else {
      __syncthreads();
      if (threadIdx.x == 0) {
        __threadfence();
        atomicAdd(arrived, 1u);
        while (load_acquire(arrived) < unsigned(splits)) __nanosleep(32);
        __threadfence();
      }
      __syncthreads();
    }
  }
  __device__ __forceinline__ P get(int split, int column) const {
    if (team == Team::kAlone) return mine[column];
    if (team == Team::kCluster) return map_shared(mine, unsigned(split))[column];
    return load_partial(partials + int64_t(split) * columns + column);
  }
  // Around the rest of the kernel: a block may leave when nobody reads its shared memory any more.
  __device__ __forceinline__ void read_all() const {
    if (team == Team::kCluster) cluster_arrive();
  }
  __device__ __forceinline__ void leave() const {
    if (team == Team::kCluster) cluster_wait();
  }

  __device__ static __forceinline__ P load_partial(const P* p) {
    constexpr int kWords = sizeof(P) / sizeof(float);
    const Vec<float, kWords> words = load<kWords, Cache::kL2>(reinterpret_cast<const float*>(p));
    P value;
    memcpy(&value, &words, sizeof(P));
    return value;
  }
};

// ---- Host ----

// How a call with its tensors in shared memory is cut.
struct Plan {
  bool resident = false;
  Team team = Team::kAlone;
  Cut cut;
  int64_t shared_bytes = 0;
};

// A team for `tensors` tensors of T in shared memory, or none: then the tensor streams, and is read twice.
//
// One block alone, or a cluster of up to 8, where that makes blocks enough to fill the card or the work is
// short; two of them on a multiprocessor if possible, so that one reads while the other writes. Else, if all
// of the tensor fits onto the card at once, blocks that wait for each other through global memory.
template <class T>
Plan resident_plan(const Shape& shape, int v, int tensors, const Device& device, int static_bytes) {
  constexpr int kShortTrips = 16;
  const int64_t tile_bytes = int64_t(kThreads) * v * sizeof(T) * tensors;
  const int64_t full = device.shared_per_block - static_bytes;
  const int64_t half = device.shared_per_multiprocessor / 2 - 1024 - static_bytes;
  const int widest = v == 1 ? 32 : 4, narrowest = shape.rows ? widest / 2 : widest;
  Plan plan;
  const auto take = [&](const Cut& cut, Team team, int splits) {
    plan = {true, team, cut, ceil_div(cut.tiles, int64_t(splits)) * tile_bytes};
    split(plan.cut, splits, v);
    return plan;
  };
  for (const int64_t limit : {half < full ? half : full, full}) {
    for (int lanes = widest; lanes >= narrowest; lanes /= 2) {
      const Cut cut = cut_of(shape, v, lanes);
      for (int splits = 1; splits <= (device.capability >= 90 ? 8 : 1) && splits <= cut.tiles; splits *= 2) {
        if (cut.blocks > kMaxGridX / splits) break;
        const int64_t trips = ceil_div(cut.tiles, int64_t(splits));
        const bool busy = cut.blocks * splits >= device.multiprocessors || trips <= kShortTrips;
        if (busy && trips * tile_bytes <= limit)
          return take(cut, splits == 1 ? Team::kAlone : Team::kCluster, splits);
      }
    }
  }
  for (int lanes = widest; lanes >= narrowest; lanes /= 2) {
    const Cut cut = cut_of(shape, v, lanes);
    int64_t splits = device.multiprocessors / cut.blocks;
    if (splits > cut.tiles) splits = cut.tiles;
    if (splits > 1 && ceil_div(cut.tiles, splits) * tile_bytes <= full) {
      return take(cut, Team::kGrid, static_cast<int>(splits));
    }
  }
  return plan;
}

inline Launch launch_of(const Plan& plan, cudaStream_t stream) {
  Launch how;
  how.grid = dim3(static_cast<unsigned>(plan.cut.blocks * plan.cut.splits));
  how.block = dim3(kThreads);
  how.shared_bytes = plan.shared_bytes;
  how.stream = stream;
  if (plan.team == Team::kCluster) how.cluster = dim3(static_cast<unsigned>(plan.cut.splits));
  how.cooperative = plan.team == Team::kGrid;
  return how;
}

// Counters (zeroed) and partial sums for the blocks of threads that share a channel block.
template <class P>
struct Scratch {
  unsigned* counters = nullptr;
  P* partials = nullptr;

  const char* make(const Cut& cut, int v, Context* context) {
    const int64_t counter_bytes = ceil_div(cut.blocks * int64_t(sizeof(unsigned)), int64_t(64)) * 64;
    const int64_t bytes = counter_bytes + cut.blocks * cut.splits * cut.columns(v) * int64_t(sizeof(P));
    char* const memory = static_cast<char*>(context->allocate(context, bytes));
    if (!memory) return "out of memory";
    counters = reinterpret_cast<unsigned*>(memory);
    partials = reinterpret_cast<P*>(memory + counter_bytes);
    if (cut.splits > 1) FASTDL_CUDA(cudaMemsetAsync(counters, 0, counter_bytes, stream_of(context)));
    return nullptr;
  }
};

}  // namespace batch_norm
}  // namespace fastdl
