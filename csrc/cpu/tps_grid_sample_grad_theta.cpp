// tps_grid_sample, the gradient of theta:
//
//   grad_theta = sum over output pixels and channels of grad_out (d out / d (ix, iy)) slope scale (x, y, 1,
//   U)
//
// The channels of a pixel are added up first. Then each tile's 2 (3 + K) sums over its pixels, in lanes, a
// chunk at a time; then over lanes; then over the tiles of a sample in order.
#include "sampling_grad_theta.h"
#include "tps_grid_sample_map.h"
#include "tps_grid_sample_parts.h"

namespace fastdl::cpu::tps {
namespace {

// v with its channels added up four by four.
template <int B>
FASTDL_INLINE typename Lanes<4>::V fold(typename Lanes<B>::V v) {
  if constexpr (B == 4) {
    return v;
  } else {
    alignas(64) float lanes[B];
    Lanes<B>::store(lanes, v);
    auto sum = Lanes<4>::load(lanes);
    for (int c = 4; c < B; c += 4) sum += Lanes<4>::load(lanes + c);
    return sum;
  }
}

// Where transpose_quads wants the four floats of pixel i of kWidth.
constexpr int quad_at(int i) { return i / kWidth * kWidth + i % 4 * (kWidth / 4) + i % kWidth / 4; }

// to [kChunk]: sums over the four floats of each pixel.
inline void sum_quads(const float* quads, float* to) {
  for (int i = 0; i < kChunk; i += kWidth) {
    Vec a[4], v[4];
    for (int k = 0; k < 4; ++k) a[k] = load(quads + i * 4 + k * kWidth);
    transpose_quads(a, v);
    store(to + i, (v[0] + v[1]) + (v[2] + v[3]));
  }
}

template <int B>
class Sum {
 public:
  // sums: [functions + 1][2] vectors, then the basis' scratch
  Sum(const Basis& basis, float* sums, float* partial) : basis_(basis), sums_(sums), partial_(partial) {
    clear();
  }

  void add(const Chunk& chunk, const Cells& cells, const float* grad) {
    alignas(64) float gx[kChunk], gy[kChunk];
    add_channels(chunk, cells, grad, gx, gy);
    const int64_t first = chunk.h * basis_.geometry->ow + chunk.w;
    const Rows rows = basis_.rows(first, sums_ + count() * kWidth);
    for (int64_t k = 0; k < basis_.functions; ++k) {
      const float* row = rows.at + k * rows.stride;
      Vec x{}, y{};
      for (int i = 0; i < kChunk; i += kWidth) {
        const Vec u = load(row + i);
        x = fma(load(gx + i), u, x);
        y = fma(load(gy + i), u, y);
      }
      accumulate(k, x, y);
    }
    Vec x{}, y{};
    for (int i = 0; i < kChunk; i += kWidth) x += load(gx + i), y += load(gy + i);
    accumulate(basis_.functions, x, y);
  }

  void finish(int64_t tile) {
    for (int64_t i = 0; i < count(); ++i) partial_[tile * count() + i] = sum_lanes(load(sums_ + i * kWidth));
    clear();
  }

 private:
  int64_t count() const { return 2 * (basis_.functions + 1); }
  void clear() { std::fill_n(sums_, count() * kWidth, 0.0f); }

  void accumulate(int64_t k, Vec x, Vec y) {
    float* to = sums_ + 2 * k * kWidth;
    store(to, load(to) + x);
    store(to + kWidth, load(to + kWidth) + y);
  }

  // gx, gy [kChunk]: the gradients of the pixels' coordinates, 0 behind the last.
  static void add_channels(const Chunk& chunk, const Cells& cells, const float* grad, float* gx, float* gy) {
    if constexpr (B == 1) {
      for (int i = 0; i < kChunk; i += kWidth) {
        Vec x{}, y{};
        if (i < cells.count) coordinate_gradient_of_one(chunk, cells, i, grad, x, y);
        store(gx + i, x);
        store(gy + i, y);
      }
    } else {
      alignas(64) float xs[kChunk * 4], ys[kChunk * 4];
      int i = 0;
      for (; i < cells.count; ++i) {
        typename Lanes<B>::V x, y;
        coordinate_gradient<B>(chunk, cells, i, grad, x, y);
        Lanes<4>::store(xs + quad_at(i) * 4, fold<B>(x));
        Lanes<4>::store(ys + quad_at(i) * 4, fold<B>(y));
      }
      for (; i < kChunk; ++i) {
        Lanes<4>::store(xs + quad_at(i) * 4, Lanes<4>::splat(0.0f));
        Lanes<4>::store(ys + quad_at(i) * 4, Lanes<4>::splat(0.0f));
      }
      sum_quads(xs, gx);
      sum_quads(ys, gy);
    }
  }

  const Basis& basis_;
  float *sums_, *partial_;  // partial: [tiles][functions + 1][2]
};

}  // namespace

bool sum_grad_theta(const TPSGridSampleBackward& p, const Basis& basis, Context* context) {
  const Geometry& g = *basis.geometry;
  const TPSMaps maps = {basis, p.theta, true};
  const Tiles t = make_tiles(g, p.grad_out.size[0], p.grad_out.size[1], context, maps.tile_pixels());
  const int64_t functions = basis.functions, count = 2 * (functions + 1);
  const int64_t own = count * kWidth + basis.floats();  // floats of a thread
  float* sums = static_cast<float*>(context->allocate(context, (t.threads * own + t.count() * count) * 4));
  if (sums == nullptr) return false;
  float* partial = sums + t.threads * own;
  auto make = [&](auto block, int64_t thread) {
    return Sum<decltype(block)::value>(basis, sums + thread * own, partial);
  };
  if (!sum_tiles(g, t, p.input, p.grad_out, maps, make, context)) return false;
  float* to = static_cast<float*>(p.grad_theta.data);
  for (int64_t n = 0; n < t.n; ++n) {
    for (int64_t i = 0; i < count; ++i) {
      float total = 0.0f;
      for (int64_t tile = n * t.per_sample(); tile < (n + 1) * t.per_sample(); ++tile)
        total += partial[tile * count + i];
      const int64_t axis = i % 2, k = i / 2, at = k < 2 ? k : k == functions ? 2 : k + 1;
      to[(n * 2 + axis) * (functions + 1) + at] = total * (axis ? g.scale_y : g.scale_x);
    }
  }
  return true;
}

}  // namespace fastdl::cpu::tps
