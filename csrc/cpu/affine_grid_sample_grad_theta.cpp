// affine_grid_sample, the gradient of theta:
//
//   grad_theta = sum over output pixels and channels of grad_out (d out / d (ix, iy)) slope scale (xn, yn, 1)
//
// Each tile's six sums over its pixels, in lanes; then over lanes; then over the tiles of a sample in order.
#include "affine_grid_sample_map.h"
#include "affine_grid_sample_parts.h"
#include "sampling_grad_theta.h"

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
class Sum {
 public:
  explicit Sum(float* partial) : partial_(partial) {}

  void add(const Chunk& chunk, const Cells& cells, const float* grad) {
    Sums<V> here;  // a chunk at a time: shorter sums round less
    V gx, gy;
    if constexpr (B == 1) {  // lanes are pixels
      for (int i = 0; i < cells.count; i += kWidth) {
        coordinate_gradient_of_one(chunk, cells, i, grad, gx, gy);
        here.add(gx, gy, load(cells.xn + i), load(cells.yn + i));
      }
    } else {
      for (int i = 0; i < cells.count; ++i) {
        coordinate_gradient<B>(chunk, cells, i, grad, gx, gy);
        here.add(gx, gy, Lanes<B>::splat(cells.xn[i]), Lanes<B>::splat(cells.yn[i]));
      }
    }
    sums_.add(here);
  }

  void finish(int64_t tile) {
    for (int k = 0; k < 6; ++k) partial_[tile * 6 + k] = sum_lanes(sums_.v[k]);
    sums_ = {};
  }

 private:
  using V = std::conditional_t<B == 1, Vec, typename Lanes<B>::V>;
  Sums<V> sums_;
  float* partial_;  // [tiles][6]
};

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
    return kNoMemory;
  const Tiles t = make_tiles(g, grad_out.size[0], grad_out.size[1], context);
  float* partial = static_cast<float*>(context->allocate(context, t.count() * 6 * 4));  // [tiles][6]
  if (partial == nullptr) return kNoMemory;
  const AffineMaps maps = {g, p.theta, locate_for(g, true)};
  auto make = [&](auto block, int64_t) { return Sum<decltype(block)::value>(partial); };
  if (!sum_tiles(g, t, p.input, grad_out, maps, make, context)) return kNoMemory;
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
