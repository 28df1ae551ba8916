// affine_grid_sample, forward: the weighted sum of the four pixels around each point; nearest: the one pixel.
#include "affine_grid_sample_parts.h"
#include "affine_grid_sample_tiles.h"

namespace fastdl::cpu::affine {
namespace {

// to [kChunk][B] from the taps of a chunk.
template <int B>
void sample_chunk(const Chunk& chunk, const Cells& cells, bool nearest, float* to) {
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

}  // namespace

const char* sample(const AffineGridSampleForward& p, Context* context) {
  Geometry g;
  if (!make_geometry(g, p.input, p.out.size[2], p.out.size[3], p.mode, p.padding_mode, p.align_corners,
                     context))
    return "affine_grid_sample: out of memory";
  const Tiles t = make_tiles(g, p.out.size[0], p.out.size[1], context);
  const int64_t floats = scratch_floats(g, t);
  float* scratch = static_cast<float*>(context->allocate(context, t.threads * floats * 4));
  if (scratch == nullptr) return "affine_grid_sample: out of memory";
  const Locate locate = locate_for(g);

  with_block(t.block, [&](auto block) {
    constexpr int B = decltype(block)::value;
    on_threads(context, t.threads, t.count(), [&](int64_t thread, int64_t index) {
      Cells cells{};
      alignas(64) float values[kTile * B];
      auto finish = [&](const Chunk& chunk, const Cells& cells) {
        sample_chunk<B>(chunk, cells, g.nearest, values);
        write<B>(run_of(p.out, chunk.n, chunk.c, B, chunk.h, chunk.w), cells.count, values);
      };
      for_each_chunk<B>(g, t, index, p.input, p.theta, locate, cells, scratch + thread * floats, finish);
    });
  });
  return nullptr;
}

}  // namespace fastdl::cpu::affine
