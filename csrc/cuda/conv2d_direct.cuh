// Convolution with few channels, directly: what its kernels share. The channels times the taps are one flat
// axis of `taps`; a block holds in shared memory
//     the image    the part of x under its pixels, as floats; the columns sorted by their remainder modulo
//                  the stride: neighbouring pixels then read neighbouring words under every tap
//     offsets      per tap, how far it lies from a pixel's corner in the image
//     weights      [taps of a chunk][channels of the block], as floats
// and each thread has some pixels times some channels in registers.
#pragma once

#include "conv2d_common.cuh"

namespace fastdl {

constexpr int kDirectThreads = 256;          // at most
constexpr int64_t kDirectShared = 48 << 10;  // what every GPU gives without asking
constexpr int64_t kDirectImage = 34 << 10;   // of it, at most, for the image

struct Direct {
  Strides4 x_at;
  int64_t channels, in_h, in_w;  // of x, per group
  int64_t R, S, taps;
  int64_t stride_y, stride_x, pad_y, pad_x, dilation_y, dilation_x;
  // The tile of a block: pixels, and the image under them.
  int tile_h, tile_w, image_h, image_w;  // image: rows, columns
  int phase, pitch, plane;               // floats from remainder to remainder, row to row, channel to channel
  int64_t tiles_y, tiles_x;
  Divisor by_stride_x, by_image_w, by_image_h, by_channels, by_tile_w;
  bool channels_first;  // how x is read: along its columns, or along its channels
  bool taps_last;       // the order of taps: (r, s, c), or (c, r, s)

  int64_t image_bytes() const {
    return ceil_div(int64_t(plane) * channels, int64_t(4)) * 4 * int64_t(sizeof(float));
  }
  int64_t offset_bytes() const { return ceil_div(taps, int64_t(4)) * 4 * int64_t(sizeof(int)); }
};

// The tile with the most pixels, of at most `pixels`, whose image fits into image_bytes; of equals the
// widest. Pixels are step_y, step_x apart in x, and look at extent_y, extent_x of it. False if none fits.
inline bool plan_tile(Direct& d, int64_t out_h, int64_t out_w, int64_t step_y, int64_t step_x,
                      int64_t extent_y, int64_t extent_x, int64_t pixels, int64_t image_bytes) {
  int64_t best = 0;
  for (int64_t most_w = out_w <= 2 * kWarp ? out_w : kWarp; most_w >= 1; most_w /= 2) {
    const int64_t w = ceil_div(out_w, ceil_div(out_w, most_w)), image_w = (w - 1) * step_x + extent_x;
    const int64_t pitch = ceil_div(image_w, d.stride_x) * d.stride_x;
    const int64_t fitting = image_bytes / (pitch * d.channels * int64_t(sizeof(float)));  // rows
    if (w > pixels || fitting < extent_y) continue;
    int64_t h = min(min(out_h, pixels / w), (fitting - extent_y) / step_y + 1);
    h = ceil_div(out_h, ceil_div(out_h, h));
    if (h * w <= best) continue;
    best = h * w;
    d.tile_h = static_cast<int>(h), d.tile_w = static_cast<int>(w);
    d.image_h = static_cast<int>((h - 1) * step_y + extent_y), d.image_w = static_cast<int>(image_w);
    d.pitch = static_cast<int>(pitch), d.phase = static_cast<int>(pitch / d.stride_x);
    d.plane = d.image_h * d.pitch;
    d.tiles_y = ceil_div(out_h, h), d.tiles_x = ceil_div(out_w, w);
  }
  if (best == 0) return false;
  d.by_stride_x = Divisor(d.stride_x), d.by_image_w = Divisor(d.image_w), d.by_image_h = Divisor(d.image_h);
  d.by_channels = Divisor(d.channels), d.by_tile_w = Divisor(d.tile_w);
  return true;
}

inline Direct direct_of(const Tensor& x, const Tensor& weight, const Convolution& c) {
  Direct d = {};
  d.x_at = strides_of(x);
  d.channels = weight.size[1], d.in_h = x.size[2], d.in_w = x.size[3];
  d.R = weight.size[2], d.S = weight.size[3], d.taps = d.channels * d.R * d.S;
  d.stride_y = c.stride[0], d.stride_x = c.stride[1], d.pad_y = c.padding[0], d.pad_x = c.padding[1];
  d.dilation_y = c.dilation[0], d.dilation_x = c.dilation[1];
  d.channels_first = d.x_at.c != 1 || d.channels == 1;
  return d;
}

inline int64_t extent(int64_t kernel, int64_t dilation) { return (kernel - 1) * dilation + 1; }

// ---- Device, by the whole block, without barriers ----

// Tap i -> its channel, row, column.
__device__ __forceinline__ void tap_at(const Direct& d, int i, int& c, int& r, int& s) {
  const int R = static_cast<int>(d.R), S = static_cast<int>(d.S), channels = static_cast<int>(d.channels);
  if (d.taps_last) {
    c = i % channels, s = i / channels % S, r = i / (channels * S);
  } else {
    s = i % S, r = i / S % R, c = i / (R * S);
  }
}

__device__ __forceinline__ void make_offsets(int* offsets, const Direct& d) {
  for (int i = threadIdx.x; i < d.taps; i += blockDim.x) {
    int c, r, s;
    tap_at(d, i, c, r, s);
    const int column = s * static_cast<int>(d.dilation_x), stride = static_cast<int>(d.stride_x);
    offsets[i] = c * d.plane + r * static_cast<int>(d.dilation_y) * d.pitch + column % stride * d.phase +
                 column / stride;
  }
}

// x: at image n, first channel of the group. The image, of floats or of what x has, starts at first_y,
// first_x; zero outside of x.
template <class Element, class T>
__device__ __forceinline__ void stage_image(Element* image, const T* x, const Direct& d, int64_t first_y,
                                            int64_t first_x) {
  const int channels = static_cast<int>(d.channels), count = channels * d.image_h * d.image_w;
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    int row, column, c, y;
    if (d.channels_first) {
      d.by_image_w.split(i, row, column);
      d.by_image_h.split(row, c, y);
    } else {
      int pixel;
      d.by_channels.split(i, pixel, c);
      d.by_image_w.split(pixel, y, column);
    }
    const int64_t from_y = first_y + y, from_x = first_x + column;
    Element value = {};
    if (from_y >= 0 && from_y < d.in_h && from_x >= 0 && from_x < d.in_w) {
      const T& from = x[c * d.x_at.c + from_y * d.x_at.y + from_x * d.x_at.x];
      if constexpr (std::is_same_v<Element, T>) {
        value = from;
      } else {
        value = to_float(from);
      }
    }
    int at, phase;
    d.by_stride_x.split(column, at, phase);
    image[c * d.plane + y * d.pitch + phase * d.phase + at] = value;
  }
}

// weights[tap - first][channel of the block], 0 past `live` channels. `weight`: at the block's first channel.
template <class T>
__device__ __forceinline__ void stage_taps(float* weights, const T* weight, const Direct& d,
                                           const Strides4& w_at, const Divisor& by_block, int first,
                                           int count, int live) {
  const int block = static_cast<int>(by_block.d);
  for (int i = threadIdx.x; i < count * block; i += blockDim.x) {
    int tap, k, c, r, s;
    by_block.split(i, tap, k);
    tap_at(d, first + tap, c, r, s);
    weights[i] = k < live ? to_float(weight[k * w_at.n + c * w_at.c + r * w_at.y + s * w_at.x]) : 0.0f;
  }
}

// sum[j][k] += image at corner[j] under each tap of the chunk, times its weight. `weights`: at the thread's
// channels.
template <int kPixels, int kChannels>
__device__ __forceinline__ void accumulate(float (&sum)[kPixels][kChannels], const float* image,
                                           const int* offsets, const float* weights,
                                           const int (&corner)[kPixels], int count, int block) {
#pragma unroll 1  // long enough, and two would not fit into the registers
  for (int tap = 0; tap < count; ++tap) {
    const float* const at = image + offsets[tap];
    float value[kPixels];
#pragma unroll
    for (int j = 0; j < kPixels; ++j) value[j] = at[corner[j]];
#pragma unroll
    for (int k = 0; k < kChannels; k += 4) {
      const Vec<float, 4> w = load<4>(weights + tap * block + k);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < kPixels; ++j) sum[j][k + i] = fmaf(value[j], w[i], sum[j][k + i]);
      }
    }
  }
}

// The channels and threads of a block: `across` times kChannels output channels, pixel_threads times across
// threads.
struct DirectBlocks {
  int across, pixel_threads, chunk;  // chunk: taps whose weights are in shared memory at once
  int64_t out_channels;              // per group
  int64_t channel_blocks;            // per group
  int64_t groups;
  Divisor by_channels;  // by kChannels * across
  Strides4 weight_at;
  int64_t shared_bytes;
};

// False if it does not fit. `pixels`: of the tile; the tile is planned for at most direct_pixels() of them.
inline int direct_across(int64_t out_channels, int per_thread) {
  const int64_t groups = ceil_div(out_channels, int64_t(per_thread));
  return static_cast<int>(ceil_div(groups, ceil_div(groups, int64_t(8))));
}
inline int direct_pixel_threads(int across) {
  return static_cast<int>(at_least_1(kDirectThreads / kWarp / across)) * kWarp;
}

inline bool plan_blocks(DirectBlocks& b, Direct& d, const Tensor& weight, int64_t groups, int per_thread,
                        int pixels) {
  b.groups = groups;
  b.out_channels = weight.size[0] / groups;
  b.across = direct_across(b.out_channels, per_thread);
  b.channel_blocks = ceil_div(b.out_channels, int64_t(per_thread) * b.across);
  b.pixel_threads = static_cast<int>(ceil_div(pixels, kWarp)) * kWarp;
  b.weight_at = strides_of(weight);
  d.taps_last = d.channels > 1 && weight.stride[1] < weight.stride[3];  // as the weights lie in memory
  const int64_t width = int64_t(per_thread) * b.across,
                left = kDirectShared - d.image_bytes() - d.offset_bytes();
  b.by_channels = Divisor(width);
  b.chunk = static_cast<int>(min(d.taps, left / (width * int64_t(sizeof(float)))));
  b.shared_bytes = d.image_bytes() + d.offset_bytes() + b.chunk * width * int64_t(sizeof(float));
  return b.chunk >= 4 || b.chunk == d.taps;
}

}  // namespace fastdl
