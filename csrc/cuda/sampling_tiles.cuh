// The ops that sample an image: which block and thread works on which pixels and channels.
#pragma once

#include "runtime.cuh"

namespace fastdl::sampling {

constexpr int kThreads = 256;
constexpr int kTileWidth = 32, kTileHeight = kThreads / kTileWidth;

// How an image of width x height pixels is cut into tiles of kThreads: 32 x 8 ones, or, where that would
// leave many threads idle, runs of pixels.
struct Tiling {
  int width, height;
  bool runs;
  int64_t across, count;
};

inline Tiling make_tiling(int64_t width, int64_t height) {
  Tiling t = {static_cast<int>(width), static_cast<int>(height), false, 0, 0};
  t.across = ceil_div(width, kTileWidth);
  t.count = t.across * ceil_div(height, kTileHeight);
  const int64_t runs = ceil_div(width * height, kThreads);
  t.runs = 4 * t.count > 5 * runs;
  if (t.runs) t.count = runs;
  return t;
}

// This thread's pixel of a tile: false if there is none.
__device__ __forceinline__ bool pixel_of(const Tiling& t, int64_t tile, int& h, int& w) {
  const int thread = static_cast<int>(threadIdx.x);
  if (t.runs) {
    const int64_t pixel = tile * kThreads + thread;
    h = static_cast<int>(pixel / t.width);
    w = static_cast<int>(pixel % t.width);
  } else {
    h = static_cast<int>(tile / t.across) * kTileHeight + thread / kTileWidth;
    w = static_cast<int>(tile % t.across) * kTileWidth + thread % kTileWidth;
  }
  return h < t.height && w < t.width;
}

// A rectangle of pixels, none if left > right.
struct Box {
  int left, top, right, bottom;

  __device__ __forceinline__ bool has(int x, int y) const {
    return x >= left && x <= right && y >= top && y <= bottom;
  }
  __device__ __forceinline__ bool meets(const Box& b) const {
    return left <= b.right && b.left <= right && top <= b.bottom && b.top <= bottom;
  }
};

// The pixels of a tile; where they are a run of several rows, the rows.
__device__ __forceinline__ Box box_of(const Tiling& t, int64_t tile) {
  if (t.runs) {
    const int64_t first = tile * kThreads, end = int64_t{t.width} * t.height;
    const int64_t last = first + kThreads < end ? first + kThreads - 1 : end - 1;
    const int top = static_cast<int>(first / t.width), bottom = static_cast<int>(last / t.width);
    if (top < bottom) return {0, top, t.width - 1, bottom};
    return {static_cast<int>(first % t.width), top, static_cast<int>(last % t.width), top};
  }
  const int left = static_cast<int>(tile % t.across) * kTileWidth;
  const int top = static_cast<int>(tile / t.across) * kTileHeight;
  return {left, top, min(left + kTileWidth, t.width) - 1, min(top + kTileHeight, t.height) - 1};
}

// The thread that has pixel (h, w) of the tile, whose box is given; -1 if none has.
__device__ __forceinline__ int thread_of(const Tiling& t, int64_t tile, const Box& box, int h, int w) {
  if (!box.has(w, h)) return -1;
  if (!t.runs) return (h - box.top) * kTileWidth + (w - box.left);
  const int64_t thread = int64_t{h} * t.width + w - tile * kThreads;
  return thread >= 0 && thread < kThreads ? static_cast<int>(thread) : -1;
}

// Groups of channels, so many that the device has a few blocks per multiprocessor, of at least `least`
// channels each.
inline int64_t channels_per_group(int64_t channels, int64_t blocks, int64_t least, const Device& device) {
  const int64_t wanted = ceil_div(int64_t{8} * device.multiprocessors, blocks);
  const int64_t groups = wanted < 1 ? 1 : wanted;
  return ceil_div(ceil_div(channels, groups), least) * least;
}

// Whether a tensor's channels can be read `lanes` at a time.
template <class T, int kLanes>
bool wide_channels(const Tensor& t) {
  return t.stride[1] == 1 && t.size[1] % kLanes == 0 && t.stride[0] % kLanes == 0 &&
         t.stride[2] % kLanes == 0 && t.stride[3] % kLanes == 0 && aligned<T, kLanes>(t.data);
}

// A grid for so many blocks; each goes through those it finds by adding gridDim.x.
inline dim3 grid_of(int64_t blocks) {
  return dim3(static_cast<unsigned>(blocks < kMaxGridX ? blocks : kMaxGridX));
}

}  // namespace fastdl::sampling
