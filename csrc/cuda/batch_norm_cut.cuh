// How x is cut: channel blocks, tiles and splits, for kernels and for the host.
//
// x is dense, in one of two forms:
//   planes  [N, C, S], S contiguous: a block of threads owns one channel; its items are the vectors of its
//   planes rows    [N * S, C], C contiguous (channels-last, 2-D): a block of threads owns `lanes` vectors of
//   channels side by
//           side; its items are the rows
// A vector is V elements side by side, a tile kThreads of them. The tiles of a channel block are dealt to
// `splits` blocks of threads in turns, so that all of them walk through memory together.
#pragma once

#include "runtime.cuh"

namespace fastdl {
namespace batch_norm {

constexpr int kThreads = 256;
constexpr int kMaxColumns = 64;  // channels of a channel block

struct Step {
  int64_t position, offset;
};

struct Cut {
  int64_t channels = 0;
  int64_t items = 0;           // of a channel block: the rows, or the vectors of a channel
  int64_t line = 1;            // items side by side: 1, or the vectors of a plane
  int64_t line_stride = 0;     // in elements, from one line to the next
  int64_t channel_stride = 0;  // from one channel to the next
  int64_t blocks = 0;          // channel blocks
  int64_t tiles = 0;           // of each
  int splits = 1;
  int lanes = 1;
  bool rows = false;
  Step up = {}, down = {};  // what `splits` tiles further or back are
  int64_t wrap = 0;         // from the end of a line to the start of the next

  __host__ __device__ int tile_items() const { return kThreads / lanes; }
  // Channels of a block, when a vector has `v` elements.
  __host__ __device__ int columns(int v) const { return rows ? lanes * v : 1; }
  __host__ __device__ int64_t per_channel(int v) const { return rows ? items : items * v; }
};

// ---- Device ----

// What a thread owns.
struct Place {
  int64_t block;
  int split;
  int lane, row;    // of the tile
  int64_t channel;  // the (first) one
  bool exists;
};

template <int V>
__device__ __forceinline__ Place place_of(const Cut& cut, int64_t block, int split) {
  Place place;
  place.block = block;
  place.split = split;
  place.lane = static_cast<int>(threadIdx.x) % cut.lanes;
  place.row = static_cast<int>(threadIdx.x) / cut.lanes;
  place.channel = cut.rows ? (block * cut.lanes + place.lane) * V : block;
  place.exists = place.channel < cut.channels;
  return place;
}

// A thread's way through its items, up or down; `trips` is the same in the whole block.
struct Walk {
  int64_t item, position, offset, trips;
};

template <int V>
__device__ __forceinline__ Walk walk_of(const Cut& cut, const Place& place, bool down) {
  Walk walk;
  walk.trips = (cut.tiles - place.split + cut.splits - 1) / cut.splits;
  const int64_t tile = down ? cut.tiles - 1 - place.split : place.split;
  walk.item = tile * cut.tile_items() + place.row;
  const int64_t line = walk.item / cut.line;
  walk.position = walk.item - line * cut.line;
  walk.offset = line * cut.line_stride + place.channel * cut.channel_stride + walk.position * V;
  return walk;
}

__device__ __forceinline__ void advance(Walk& walk, const Cut& cut, bool down) {
  const Step step = down ? cut.down : cut.up;
  const int64_t items = static_cast<int64_t>(cut.splits) * cut.tile_items();
  walk.item += down ? -items : items;
  walk.position += step.position;
  walk.offset += step.offset;
  if (walk.position >= cut.line) {
    walk.position -= cut.line;
    walk.offset += cut.wrap;
  }
}

// use(fetch(offset, trip), offset, inside) for all items of a thread, kBatch loads under way at once. All
// threads make all trips; those of which the item does not exist with inside == false.
template <int kBatch, class Fetch, class Use>
__device__ __forceinline__ void for_items(const Cut& cut, const Place& place, Walk walk, bool down,
                                          Fetch fetch, Use use) {
  using Value = decltype(fetch(int64_t(0), int64_t(0)));
  for (int64_t trip = 0; trip < walk.trips; trip += kBatch) {
    Value values[kBatch];
    int64_t offsets[kBatch];
    bool inside[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      offsets[i] = walk.offset;
      inside[i] = trip + i < walk.trips && walk.item < cut.items && place.exists;
      values[i] = Value{};
      if (inside[i]) values[i] = fetch(offsets[i], trip + i);
      advance(walk, cut, down);
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (trip + i < walk.trips) use(values[i], offsets[i], inside[i], trip + i);
    }
  }
}

// How many elements of each of its channels a block of threads sees.
template <int V>
__device__ __forceinline__ int64_t elements_of(const Cut& cut, const Place& place) {
  int64_t items = (cut.tiles - place.split + cut.splits - 1) / cut.splits * cut.tile_items();
  if ((cut.tiles - 1) % cut.splits == place.split) items -= cut.tiles * cut.tile_items() - cut.items;
  return cut.rows ? items : items * V;
}

// ---- Host ----

struct Shape {
  int64_t n, c, s;  // rows: s == 1
  bool rows;

  int64_t numel() const { return n * c * s; }
  int64_t contiguous() const { return rows ? c : s; }  // elements side by side that are treated alike
};

inline Shape shape_of(const Tensor& x) {
  Shape shape = {x.size[0], x.size[1], 1, false};
  int64_t dense = 1;
  bool contiguous = true;
  for (int i = x.dim - 1; i >= 0; --i) {
    if (x.size[i] != 1 && x.stride[i] != dense) contiguous = false;
    dense *= x.size[i];
  }
  for (int i = 2; i < x.dim; ++i) shape.s *= x.size[i];
  shape.rows = shape.s == 1 || !contiguous;
  if (shape.rows) {
    shape.n *= shape.s;
    shape.s = 1;
  }
  return shape;
}

inline int power_of_2(int64_t at_least, int at_most) {
  int n = 1;
  while (n < at_least && n < at_most) n *= 2;
  return n;
}

// The widest vector that divides the contiguous size and that the pointers, or'ed together, are aligned for.
template <class T>
int vector_of(const Shape& shape, uintptr_t pointers) {
  for (const int v : {kVec<T>, 4}) {
    if (v <= kVec<T> && shape.contiguous() % v == 0 && pointers % (sizeof(T) * v) == 0) return v;
  }
  return 1;
}

// Replaces p by a copy if it is not aligned for the vectors that the shape allows. Where a tensor lies must
// not show in the result, and the width of the vectors decides in which order sums are taken.
template <class T>
const char* align(const T*& p, const Shape& shape, Context* context) {
  if (reinterpret_cast<uintptr_t>(p) % (sizeof(T) * vector_of<T>(shape, 0)) == 0) return nullptr;
  const int64_t bytes = shape.numel() * int64_t(sizeof(T));
  void* const copy = context->allocate(context, bytes);
  if (!copy) return "out of memory";
  FASTDL_CUDA(cudaMemcpyAsync(copy, p, size_t(bytes), cudaMemcpyDeviceToDevice, stream_of(context)));
  p = static_cast<const T*>(copy);
  return nullptr;
}

inline void split(Cut& cut, int splits, int v) {
  cut.splits = splits;
  const int64_t items = static_cast<int64_t>(splits) * cut.tile_items();
  const int64_t lines = items / cut.line, rest = items % cut.line;
  cut.up = {rest, lines * cut.line_stride + rest * v};
  const int64_t back = rest ? cut.line - rest : 0, down = lines + (rest ? 1 : 0);
  cut.down = {back, -down * cut.line_stride + back * v};
  cut.wrap = cut.line_stride - cut.line * v;
}

// `lanes`: of rows, at most.
inline Cut cut_of(const Shape& shape, int v, int lanes) {
  Cut cut;
  cut.rows = shape.rows;
  cut.channels = shape.c;
  if (shape.rows) {
    cut.lanes = power_of_2(ceil_div(shape.c, v), lanes);
    cut.items = shape.n;
    cut.line_stride = shape.c;
    cut.channel_stride = 1;
    cut.blocks = ceil_div(shape.c, int64_t(cut.lanes) * v);
  } else {
    cut.items = shape.n * (shape.s / v);
    cut.line = shape.s / v;
    cut.line_stride = shape.c * shape.s;
    cut.channel_stride = shape.s;
    cut.blocks = shape.c;
  }
  cut.tiles = ceil_div(cut.items, int64_t(cut.tile_items()));
  split(cut, 1, v);
  return cut;
}

// For a reduction that streams: rows in 128 bytes (where a vector is one element, a warp's width of it), and
// blocks enough to fill the card once, more of them where a channel block's partials are few.
inline Cut streaming_cut(const Shape& shape, int v, const Device& device) {
  Cut cut = cut_of(shape, v, v == 1 ? 32 : 8);
  const int64_t target = int64_t(device.multiprocessors) * (shape.rows ? 2 : 4);
  const int64_t splits = ceil_div(target, cut.blocks);
  split(cut, static_cast<int>(splits < cut.tiles ? splits : cut.tiles), v);
  return cut;
}

// For the elementwise pass: up to eight tiles for a block, fewer where that would leave the card idle.
inline Cut elementwise_cut(const Shape& shape, int v, const Device& device) {
  Cut cut = cut_of(shape, v, 8);
  int64_t trips = cut.blocks * cut.tiles / (int64_t(device.multiprocessors) * 8);
  trips = trips < 1 ? 1 : trips > 8 ? 8 : trips;
  int64_t splits = ceil_div(cut.tiles, trips);
  const int64_t most = kMaxGridX / cut.blocks;
  if (splits > most) splits = most;
  split(cut, static_cast<int>(splits), v);
  return cut;
}

}  // namespace batch_norm
}  // namespace fastdl
