// The gradient for the weight, directly, in planes of pixels:
//
//     grad_weight[k, t] = sum over images and pixels of grad[k, pixel] * packed[offset[t] + pixel]
//
// A block of output channels times a block of taps is summed in registers over some rows of a band
// (conv2d_pack.h), lane by lane, and added to the thread's partial sums. Lanes, then threads are added at the
// end, in their order.
#include "conv2d_direct.h"
#include "conv2d_pack.h"
#include "parallel.h"
#include "parts.h"

namespace fastdl::cpu {
namespace {

constexpr int64_t kBandFloats = 16 << 10;  // packed input of a band
constexpr int64_t kGrain = 1 << 18;        // products worth a thread
constexpr int64_t kVectors = 64;           // products that a lane sums up on its own: more would cost digits

#if defined(__AVX512F__)
constexpr int kTileOutputs = 4, kTileTaps = 6, kTileTapsOfOne = 13;
#else
constexpr int kTileOutputs = 3, kTileTaps = 4, kTileTapsOfOne = 9;
#endif

// One tile's part of a band: KB channels, `grad_plane` apart, with rows of `width` pixels next to each other.
struct Band {
  const float* grad;
  int64_t grad_plane, grad_row;
  const float* packed;
  int64_t packed_row, rows, width;
};

// sums[(k * taps + t) * kWidth]: lanes.
template <int KB, int TB>
void wgrad_tile(const Band& band, const int64_t* offset, int64_t taps, float* sums) {
  Vec acc[KB][TB] = {};
  const int64_t whole = band.width / kWidth * kWidth;
  const IVec live = iota() < static_cast<int32_t>(band.width - whole);
  for (int64_t row = 0; row < band.rows; ++row) {
    const float* grad = band.grad + row * band.grad_row;
    const float* x = band.packed + row * band.packed_row;
    int64_t i = 0;
    for (; i < whole; i += kWidth) {
      Vec g[KB];
      FASTDL_UNROLL
      for (int k = 0; k < KB; ++k) g[k] = load(grad + k * band.grad_plane + i);
      FASTDL_UNROLL
      for (int t = 0; t < TB; ++t) {
        const Vec in = load(x + offset[t] + i);
        FASTDL_UNROLL
        for (int k = 0; k < KB; ++k) acc[k][t] = fma(g[k], in, acc[k][t]);
      }
    }
    if (i == band.width) continue;
    Vec g[KB];
    FASTDL_UNROLL
    for (int k = 0; k < KB; ++k) g[k] = load(grad + k * band.grad_plane + i, band.width - i);
    FASTDL_UNROLL
    for (int t = 0; t < TB; ++t) {
      // not 0 * what lies there: it may be infinite
      const Vec in = as_float(as_int(load(x + offset[t] + i)) & live);
      FASTDL_UNROLL
      for (int k = 0; k < KB; ++k) acc[k][t] = fma(g[k], in, acc[k][t]);
    }
  }
  FASTDL_UNROLL
  for (int k = 0; k < KB; ++k) {
    FASTDL_UNROLL
    for (int t = 0; t < TB; ++t) {
      float* sum = sums + (k * taps + t) * kWidth;
      store(sum, load(sum) + acc[k][t]);
    }
  }
}

using Tile = void (*)(const Band&, const int64_t*, int64_t, float*);

// The tile of `outputs` channels and `taps` taps, both within their limits.
template <int KB, int TB>
Tile tile_of_taps(int64_t taps) {
  if constexpr (TB > 1) {
    if (taps < TB) return tile_of_taps<KB, TB - 1>(taps);
  }
  return wgrad_tile<KB, TB>;
}
template <int KB>
Tile tile_of(int64_t outputs, int64_t taps) {
  if constexpr (KB > 1) {
    if (outputs < KB) return tile_of<KB - 1>(outputs, taps);
    return tile_of_taps<KB, kTileTaps>(taps);
  } else {
    return tile_of_taps<1, kTileTapsOfOne>(taps);
  }
}

struct WeightGradient {
  WeightGradient(const Conv2dBackward& params, Context* context)
      : p(params),
        problem(p.x, p.weight, p.convolution),
        outputs(problem.outputs),
        taps(problem.taps()),
        packing(problem, 1, band_rows()),
        bands(ceil_div(problem.out_size[0], packing.rows)),
        items(problem.images * problem.groups * bands) {
    const int64_t products = items * packing.rows * packing.width * outputs * taps;
    threads = least(least(context->num_threads, items), 1 + products / kGrain);
    sums_size = problem.groups * outputs * taps * kWidth;
    per_thread = packing.floats() + sums_size;
    offset = static_cast<int64_t*>(context->allocate(context, 8 * taps + 4 * threads * per_thread));
    if (offset == nullptr) return;
    scratch = reinterpret_cast<float*>(offset + taps);
    int64_t* to = offset;
    for (int64_t c = 0; c < problem.channels; ++c) {
      for (int64_t r = 0; r < problem.kernel[0]; ++r) {
        for (int64_t s = 0; s < problem.kernel[1]; ++s) *to++ = packing.offset(c, r, s, 0, 0);
      }
    }
  }

  int64_t band_rows() const {
    const Packing one(problem, 1, 1);
    const int64_t fit = kBandFloats / (one.planes() * one.pitch) - one.y.reach;
    const int64_t rows = problem.out_size[0], n = least(rows, most(4, fit));
    return ceil_div(rows, ceil_div(rows, n));
  }

  void run(Context* context) const {
    share_out(context, items, threads, [&](int64_t begin, int64_t end, int64_t thread) {
      float *packed = scratch + thread * per_thread, *sums = packed + packing.floats();
      for (int64_t i = 0; i < sums_size; i += kWidth) store(sums + i, Vec{});
      for (int64_t item = begin; item < end; ++item) {
        const int64_t band = item % bands, group = item / bands % problem.groups;
        const int64_t rows = problem.out_size[0], first = rows * band / bands;
        add(item / (bands * problem.groups), group, first, rows * (band + 1) / bands - first, packed,
            sums + group * outputs * taps * kWidth);
      }
    });
    finish();
  }

  void add(int64_t image, int64_t group, int64_t first, int64_t rows, float* packed, float* sums) const {
    packing.pack(p.x, image, group, first, rows, packed);
    const int64_t* stride = p.grad_out.stride;
    const int64_t some = most(1, kVectors * kWidth / packing.width);
    for (int64_t y = 0; y < rows; y += some) {
      const float* grad = static_cast<const float*>(p.grad_out.data) + image * stride[0] +
                          group * outputs * stride[1] + (first + y) * stride[2];
      Band band{grad,          stride[1],
                stride[2],     packed + y * packing.pitch,
                packing.pitch, least(some, rows - y),
                packing.width};
      for (int64_t k = 0; k < outputs; k += kTileOutputs, band.grad += kTileOutputs * stride[1]) {
        const int64_t channels = least(outputs - k, kTileOutputs),
                      tile = channels == 1 ? kTileTapsOfOne : kTileTaps;
        for (int64_t t = 0; t < taps; t += tile) {
          const int64_t count = least(taps - t, tile);
          tile_of<kTileOutputs>(channels, count)(band, offset + t, taps, sums + (k * taps + t) * kWidth);
        }
      }
    }
  }

  void finish() const {
    const Tensor& to = p.grad_weight;
    for (int64_t i = 0; i < problem.groups * outputs * taps; ++i) {
      double total = 0;
      for (int64_t thread = 0; thread < threads; ++thread) {
        total += sum(load(scratch + thread * per_thread + packing.floats() + i * kWidth));
      }
      const int64_t s = i % problem.kernel[1], r = i / problem.kernel[1] % problem.kernel[0];
      const int64_t c = i % taps / (problem.kernel[1] * problem.kernel[0]), k = i / taps;
      static_cast<float*>(
          to.data)[k * to.stride[0] + c * to.stride[1] + r * to.stride[2] + s * to.stride[3]] =
          static_cast<float>(total);
    }
  }

  const Conv2dBackward& p;
  const Problem problem;
  const int64_t outputs, taps;
  const Packing packing;
  const int64_t bands, items;
  int64_t threads, sums_size, per_thread;
  int64_t* offset;
  float* scratch;
};

}  // namespace

const char* planar_wgrad(const Conv2dBackward& p, Context* context) {
  const WeightGradient gradient(p, context);
  if (gradient.offset == nullptr) return "out of memory";
  gradient.run(context);
  return nullptr;
}

}  // namespace fastdl::cpu
