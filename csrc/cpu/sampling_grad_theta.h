// Sampling an image, the gradient of the map: what of it all maps share.
//
//   d loss / d (ix, iy)  of an output pixel  =  sum over c of grad_out d out / d (ix, iy) slope
#pragma once

#include "sampling_tiles.h"

namespace fastdl::cpu::sampling {

// (gx, gy): of B channels of the chunk's pixel i, grad theirs of grad_out.
template <int B>
FASTDL_INLINE void coordinate_gradient(const Chunk& chunk, const Cells& cells, int i, const float* grad,
                                       typename Lanes<B>::V& gx, typename Lanes<B>::V& gy) {
  using L = Lanes<B>;
  using V = typename L::V;
  const int64_t row = chunk.row * B;
  const float* tap = chunk.image + (cells.y[i] * chunk.row + cells.x[i]) * B;
  const V v00 = L::load(tap), v01 = L::load(tap + B), v10 = L::load(tap + row), v11 = L::load(tap + row + B);
  const float fx = cells.fx[i], fy = cells.fy[i];
  const V g = L::load(grad + i * B);
  gx = g * L::fma(v11 - v10, L::splat(fy), (v01 - v00) * (1.0f - fy)) * cells.slope_x[i];
  gy = g * L::fma(v11 - v01, L::splat(fx), (v10 - v00) * (1.0f - fx)) * cells.slope_y[i];
}

// The same of one channel and kWidth pixels from i on; 0 behind the last.
FASTDL_INLINE void coordinate_gradient_of_one(const Chunk& chunk, const Cells& cells, int i,
                                              const float* grad, Vec& gx, Vec& gy) {
  Vec v[4];
  load_taps(chunk.image, chunk.row, cells, i, v);
  const Vec fx = load(cells.fx + i), fy = load(cells.fy + i), g = load(grad + i);
  gx = g * fma(v[3] - v[2], fy, (v[1] - v[0]) * (1.0f - fy)) * load(cells.slope_x + i);
  gy = g * fma(v[3] - v[1], fx, (v[2] - v[0]) * (1.0f - fx)) * load(cells.slope_y + i);
  const IVec real = iota() < cells.count - i;
  gx = select(real, gx, Vec{});
  gy = select(real, gy, Vec{});
}

template <class V>
float sum_lanes(V v) {
  constexpr int kLanes = sizeof(V) / sizeof(float);
  float lanes[kLanes];
  std::memcpy(lanes, &v, sizeof v);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

// Sums over the pixels of all tiles. Each thread has a sum of its own, make(block, thread), with
//
//   add(chunk, cells, grad)     grad: [chunk's pixels][B] of grad_out
//   finish(tile)                writes what was added since the last one
//
// False: no memory.
template <class Maps, class Make>
bool sum_tiles(const Geometry& g, const Tiles& t, const Tensor& input, const Tensor& grad_out,
               const Maps& maps, const Make& make, Context* context) {
  const int64_t floats = scratch_floats(g, t, maps);
  float* scratch = static_cast<float*>(context->allocate(context, t.threads * floats * 4));
  if (scratch == nullptr) return false;
  with_block(t.block, [&](auto block) {
    constexpr int B = decltype(block)::value;
    on_threads(context, t.threads, t.count(), [&](int64_t thread, int64_t first, int64_t end) {
      Cells cells{};
      alignas(64) float grad[kChunk * B + kWidth] = {};
      float* own = scratch + thread * floats;
      auto sampler = maps.sampler(t.height * t.width, own + tile_floats(g, t));
      auto sum = make(block, thread);
      auto add = [&](const Chunk& at, const Cells& cells) {
        read_area<B>(grad_out, at.n, at.c, at.h, at.w, at.w0, at.w1, cells.count, grad);
        sum.add(at, cells, grad);
      };
      for (int64_t i = first; i < end; ++i) {
        for_each_chunk<B>(g, t, i, input, sampler, cells, own, add);
        sum.finish(i);
      }
    });
  });
  return true;
}

}  // namespace fastdl::cpu::sampling
