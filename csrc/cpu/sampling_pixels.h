// Sampling an image: pixels between tensors of any layout and dtype and [pixels][B] floats, B channels side
// by side.
//
// B is 1, 4, 8 or 16; channels that the tensor lacks are zeros. All arithmetic happens on such blocks.
#pragma once

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <type_traits>

#include "dispatch.h"
#include "transpose.h"
#include "vec.h"

namespace fastdl::cpu::sampling {

template <int B>
struct VectorOf;
template <>
struct VectorOf<1> {
  typedef float type;
};
template <>
struct VectorOf<4> {
  typedef float type __attribute__((vector_size(16)));
};
template <>
struct VectorOf<8> {
  typedef float type __attribute__((vector_size(32)));
};
template <>
struct VectorOf<16> {
  typedef float type __attribute__((vector_size(64)));
};

// B floats as one value. B <= kWidth.
template <int B>
struct Lanes {
  using V = typename VectorOf<B>::type;

  static FASTDL_INLINE V load(const float* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  static FASTDL_INLINE void store(float* p, V v) { std::memcpy(p, &v, sizeof v); }
  static FASTDL_INLINE V splat(float x) { return V{} + x; }
  static FASTDL_INLINE V fma(V x, V y, V z) {
    if constexpr (B == kWidth) {
      return cpu::fma(x, y, z);
#if defined(__AVX512F__)
    } else if constexpr (B == 8) {
      return reinterpret_cast<V>(_mm256_fmadd_ps(x, y, z));
#endif
#if defined(__AVX2__)
    } else if constexpr (B == 4) {
      return reinterpret_cast<V>(_mm_fmadd_ps(x, y, z));
#endif
    } else {
      return x * y + z;
    }
  }
};

// The block size for images of so many channels.
inline int block_of(int64_t channels) {
  if (channels == 1) return 1;
  if (channels <= 4 || kWidth == 4) return 4;
  return channels <= 8 || kWidth == 8 ? 8 : 16;
}

// f(std::integral_constant<int, B>) for a block size.
template <class F>
void with_block(int block, const F& f) {
  if (block == 1) return f(std::integral_constant<int, 1>{});
  if (block == 4) return f(std::integral_constant<int, 4>{});
  if constexpr (kWidth >= 8) {
    if (block == 8) return f(std::integral_constant<int, 8>{});
  }
  if constexpr (kWidth >= 16) return f(std::integral_constant<int, 16>{});
}

constexpr int kTile = 64;  // pixels that one call below moves through a tile on the stack
// Pixels of channels_last fetched beforehand: a block's lines lie a pixel apart, which the machine does not
// follow far enough.
constexpr int kAhead = 64;

// Pixels of one row of a tensor [N, C, H, W]: where its first channel and pixel is, and the steps to the
// next.
struct Run {
  const Tensor* tensor;
  int64_t offset, channel_stride, pixel_stride;
  int channels;  // of the block
};

template <class T>
FASTDL_INLINE void read_row(const T* from, int64_t stride, int64_t count, float* to) {
  if (stride == 1) {
    int64_t i = 0;
    for (; i + kWidth <= count; i += kWidth) store(to + i, load(from + i));
    if (i < count) store(to + i, load(from + i, count - i), count - i);
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = to_float(from[i * stride]);
  }
}

template <class T>
FASTDL_INLINE void write_row(const float* from, int64_t count, T* to) {
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) store(to + i, load(from + i));
  if (i < count) store(to + i, load(from + i, count - i), count - i);
}

template <int B, class T>
void read_pixels(const T* from, const Run& run, int64_t count, float* to) {
  if constexpr (B == 1) return read_row(from, run.pixel_stride, count, to);
  const int64_t cs = run.channel_stride, ps = run.pixel_stride;
  if (ps == 0 || cs == 1) {  // an expanded gradient; channels last
    for (int64_t i = 0; i < count; ++i) {
      if (i > 0 && ps == 0) {
        std::memcpy(to + i * B, to, B * sizeof(float));
      } else if (cs == 1 && B == kWidth && run.channels == B) {
        __builtin_prefetch(from + (i + kAhead) * ps);
        store(to + i * B, load(from + i * ps));
      } else {
        for (int c = 0; c < B; ++c) to[i * B + c] = c < run.channels ? to_float(from[i * ps + c * cs]) : 0.0f;
      }
    }
    return;
  }
  alignas(64) float tile[B * kTile];
  for (int c = run.channels; c < B; ++c) std::fill_n(tile + c * kTile, kTile, 0.0f);
  for (int64_t first = 0; first < count; first += kTile) {
    const int64_t here = std::min<int64_t>(kTile, count - first), whole = here / B * B;
    const T* source = from + first * ps;
    if constexpr (sizeof(T) == 4) {
      if (ps == 1 && run.channels == B) {
        for (int64_t i = 0; i < whole; i += B) transpose<B>(source + i, cs, to + (first + i) * B, B);
        for (int64_t i = whole; i < here; ++i)
          for (int c = 0; c < B; ++c) to[(first + i) * B + c] = source[i + c * cs];
        continue;
      }
    }
    for (int c = 0; c < run.channels; ++c) read_row(source + c * cs, ps, here, tile + c * kTile);
    for (int64_t i = 0; i < whole; i += B) transpose<B>(tile + i, kTile, to + (first + i) * B, B);
    for (int64_t i = whole; i < here; ++i)
      for (int c = 0; c < B; ++c) to[(first + i) * B + c] = tile[c * kTile + i];
  }
}

// count <= kTile pixels to a tensor whose pixels are neighbours in memory.
template <int B, class T>
void write_pixels(const float* from, const Run& run, int64_t count, T* to) {
  if constexpr (B == 1) return write_row(from, count, to);
  if constexpr (sizeof(T) == 4) {
    if (run.channels == B && count % B == 0) {
      for (int64_t i = 0; i < count; i += B) transpose<B>(from + i * B, B, to + i, run.channel_stride);
      return;
    }
  }
  alignas(64) float tile[B * kTile];
  for (int64_t i = 0; i < count; i += B)
    transpose<B>(from + i * B, B, tile + i, kTile);  // from: kTile pixels
  for (int c = 0; c < run.channels; ++c) write_row(tile + c * kTile, count, to + c * run.channel_stride);
}

// Channels from c on, pixels from (h, w) on, of image n.
inline Run run_of(const Tensor& t, int64_t n, int64_t c, int block, int64_t h, int64_t w) {
  const int64_t* s = t.stride;
  const int64_t offset = n * s[0] + c * s[1] + h * s[2] + w * s[3];
  return {&t, offset, s[1], s[3], static_cast<int>(std::min<int64_t>(block, t.size[1] - c))};
}

// to [count][B] from the pixels of a run.
template <int B>
void read(const Run& run, int64_t count, float* to) {
  with_float(run.tensor->dtype, [&](auto t) {
    using T = decltype(t);
    read_pixels<B, T>(static_cast<const T*>(run.tensor->data) + run.offset, run, count, to);
  });
}

// The pixels of a run from from [kTile][B], of which `count` count.
template <int B>
void write(const Run& run, int64_t count, const float* from) {
  with_float(run.tensor->dtype, [&](auto t) {
    using T = decltype(t);
    write_pixels<B, T>(from, run, count, static_cast<T*>(run.tensor->data) + run.offset);
  });
}

// to [count][B] from `count` pixels of image n from (h, w) on, to the right and then down, between columns w0
// and w1.
template <int B>
void read_area(const Tensor& t, int64_t n, int64_t c, int64_t h, int64_t w, int64_t w0, int64_t w1,
               int64_t count, float* to) {
  const bool joined = w1 - w0 == t.size[3] && t.stride[2] == t.stride[3] * t.size[3];
  for (int64_t at = 0; at < count; ++h, w = w0) {
    const int64_t here = joined ? count : std::min(w1 - w, count - at);
    read<B>(run_of(t, n, c, B, h, w), here, to + at * B);
    at += here;
  }
}

}  // namespace fastdl::cpu::sampling
