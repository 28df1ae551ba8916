// affine_grid_sample, the gradient of theta:
//
//   grad_theta = sum over output pixels and channels of grad_out (d out / d (ix, iy)) slope scale (xn, yn, 1)
//
// Each tile's six sums over its pixels, in lanes; then over lanes; then over the tiles of a sample in order.
#include "affine_grid_sample_parts.h"
#include "affine_grid_sample_tiles.h"

namespace fastdl::cpu::affine {
namespace {

// The sums of gx xn, gx yn, gx, gy xn, gy yn, gy.
template <class V>
struct Sums {
  V v[6] = {};
  FASTDL_INLINE void add(V gx, V gy, V xn, V yn) {
    v[0] += gx * xn;
    v[1] += gx * yn;
    v[2] += gx;
    v[3] += gy * xn;
    v[4] += gy * yn;
    v[5] += gy;
  }
  FASTDL_INLINE void add(const Sums& other) {
    for (int k = 0; k < 6; ++k) v[k] += other.v[k];
  }
};

template <int B>
void sum_chunk(const Chunk& chunk, const Cells& cells, const float* grad, Sums<typename Lanes<B>::V>& sums) {
  using L = Lanes<B>;
  using V = typename L::V;
  const int64_t row = chunk.row * B;
  Sums<V> here;  // a chunk at a time: shorter sums round less
  for (int i = 0; i < cells.count; ++i) {
    const float* tap = chunk.image + (cells.y[i] * chunk.row + cells.x[i]) * B;
    const V v00 = L::load(tap), v01 = L::load(tap + B), v10 = L::load(tap + row),
            v11 = L::load(tap + row + B);
    const float fx = cells.fx[i], fy = cells.fy[i];
    const V g = L::load(grad + i * B);
    const V gx = g * L::fma(v11 - v10, L::splat(fy), (v01 - v00) * (1.0f - fy)) * cells.slope_x[i];
    const V gy = g * L::fma(v11 - v01, L::splat(fx), (v10 - v00) * (1.0f - fx)) * cells.slope_y[i];
    here.add(gx, gy, L::splat(cells.xn[i]), L::splat(cells.yn[i]));
  }
  sums.add(here);
}

// The same for one channel: lanes are pixels.
void sum_chunk_of_one(const Chunk& chunk, const Cells& cells, const float* grad, Sums<Vec>& sums) {
  Sums<Vec> here;
  for (int i = 0; i < cells.count; i += kWidth) {
    Vec v[4];
    load_taps(chunk.image, chunk.row, cells, i, v);
    const Vec fx = load(cells.fx + i), fy = load(cells.fy + i), g = load(grad + i);
    Vec gx = g * fma(v[3] - v[2], fy, (v[1] - v[0]) * (1.0f - fy)) * load(cells.slope_x + i);
    Vec gy = g * fma(v[3] - v[1], fx, (v[2] - v[0]) * (1.0f - fx)) * load(cells.slope_y + i);
    const IVec real = iota() < cells.count - i;
    gx = select(real, gx, Vec{});
    gy = select(real, gy, Vec{});
    here.add(gx, gy, load(cells.xn + i), load(cells.yn + i));
  }
  sums.add(here);
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

void store_element(const Tensor& t, int64_t index, float value) {
  with_float(t.dtype, [&](auto type) {
    using T = decltype(type);
    static_cast<T*>(t.data)[index] = from_float<T>(value);
  });
}

}  // namespace

const char* sum_grad_theta(const AffineGridSampleBackward& p, Context* context) {
  const Tensor& grad_out = p.grad_out;
  Geometry g;
  if (!make_geometry(g, p.input, grad_out.size[2], grad_out.size[3], p.mode, p.padding_mode, p.align_corners,
                     context))
    return "affine_grid_sample: out of memory";
  const Tiles t = make_tiles(g, grad_out.size[0], grad_out.size[1], context);
  const int64_t floats = scratch_floats(g, t);
  float* scratch = static_cast<float*>(context->allocate(context, (t.threads * floats + t.count() * 6) * 4));
  if (scratch == nullptr) return "affine_grid_sample: out of memory";
  float* partial = scratch + t.threads * floats;  // [tiles][6]
  const Locate locate = locate_for(g, true);

  with_block(t.block, [&](auto block) {
    constexpr int B = decltype(block)::value;
    using V = std::conditional_t<B == 1, Vec, typename Lanes<B>::V>;
    on_threads(context, t.threads, t.count(), [&](int64_t thread, int64_t index) {
      Cells cells{};
      Sums<V> sums;
      alignas(64) float grad[kChunk * B + kWidth] = {};
      auto add = [&](const Chunk& at, const Cells& cells) {
        read_area<B>(grad_out, at.n, at.c, at.h, at.w, at.w0, at.w1, cells.count, grad);
        if constexpr (B == 1) {
          sum_chunk_of_one(at, cells, grad, sums);
        } else {
          sum_chunk<B>(at, cells, grad, sums);
        }
      };
      for_each_chunk<B>(g, t, index, p.input, p.theta, locate, cells, scratch + thread * floats, add);
      for (int k = 0; k < 6; ++k) partial[index * 6 + k] = sum_lanes(sums.v[k]);
    });
  });
  for (int64_t n = 0; n < t.n; ++n) {
    for (int k = 0; k < 6; ++k) {
      float total = 0.0f;
      for (int64_t i = n * t.per_sample(); i < (n + 1) * t.per_sample(); ++i) total += partial[i * 6 + k];
      store_element(p.grad_theta, n * 6 + k, total * (k < 3 ? g.scale_x : g.scale_y));
    }
  }
  return nullptr;
}

}  // namespace fastdl::cpu::affine
