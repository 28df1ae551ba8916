// Sampling an image, forward: the weighted sum of the four pixels around each point; nearest: the one pixel.
#pragma once

#include "sampling_tiles.h"

namespace fastdl::cpu::sampling {

// to [kChunk][B] from the taps of a chunk.
template <int B>
FASTDL_INLINE void sample_chunk(const Chunk& chunk, const Cells& cells, bool nearest, float* to) {
  const int64_t row = chunk.row * B;
  if constexpr (B == 1) {
    for (int i = 0; i < cells.count; i += kWidth) {
      Vec v[4];
      load_taps(chunk.image, row, cells, i, v);
      if (nearest) {
        store(to + i, v[0]);
        continue;
      }
      const Vec fx = load(cells.fx + i), fy = load(cells.fy + i), gx = 1.0f - fx, gy = 1.0f - fy;
      Vec sum = v[0] * (gx * gy);
      sum = fma(v[1], fx * gy, sum);
      sum = fma(v[2], gx * fy, sum);
      store(to + i, fma(v[3], fx * fy, sum));
    }
  } else {
    using L = Lanes<B>;
    for (int i = 0; i < cells.count; ++i) {
      const float* tap = chunk.image + (cells.y[i] * chunk.row + cells.x[i]) * B;
      if (nearest) {
        L::store(to + i * B, L::load(tap));
        continue;
      }
      const float fx = cells.fx[i], fy = cells.fy[i], gx = 1.0f - fx, gy = 1.0f - fy;
      auto sum = L::load(tap) * (gx * gy);
      sum = L::fma(L::load(tap + B), L::splat(fx * gy), sum);
      sum = L::fma(L::load(tap + row), L::splat(gx * fy), sum);
      L::store(to + i * B, L::fma(L::load(tap + row + B), L::splat(fx * fy), sum));
    }
  }
}

// False: no memory.
template <class Maps>
bool sample(const Geometry& g, const Tensor& input, const Tensor& out, const Maps& maps, Context* context) {
  const Tiles t = make_tiles(g, out.size[0], out.size[1], context, maps.tile_pixels());
  const int64_t floats = scratch_floats(g, t, maps);
  float* scratch = static_cast<float*>(context->allocate(context, t.threads * floats * 4));
  if (scratch == nullptr) return false;

  with_block(t.block, [&](auto block) {
    constexpr int B = decltype(block)::value;
    on_threads(context, t.threads, t.count(), [&](int64_t thread, int64_t first, int64_t end) {
      Cells cells{};
      alignas(64) float values[kTile * B];
      float* own = scratch + thread * floats;
      auto sampler = maps.sampler(t.height * t.width, own + tile_floats(g, t));
      auto finish = [&](const Chunk& chunk, const Cells& cells) {
        sample_chunk<B>(chunk, cells, g.nearest, values);
        write<B>(run_of(out, chunk.n, chunk.c, B, chunk.h, chunk.w), cells.count, values);
      };
      for (int64_t i = first; i < end; ++i) for_each_chunk<B>(g, t, i, input, sampler, cells, own, finish);
    });
  });
  return true;
}

}  // namespace fastdl::cpu::sampling
