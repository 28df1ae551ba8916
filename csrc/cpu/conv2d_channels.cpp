// Direct convolution in channels_last: few input channels, vectors of output channels. Rows are packed with
// their padding as zeros, pixels of channels as they came, so that every tap is a constant offset:
//
//     out[y, x, k] = sum over taps t of weight[t, k] * packed[offset[t] + y * y_step + x * x_step]
//
// Some vectors of outputs times some pixels of a row are summed in registers.
#include <type_traits>

#include "conv2d_direct.h"
#include "conv2d_pack.h"
#include "parallel.h"
#include "parts.h"

namespace fastdl::cpu {
namespace {

constexpr int64_t kBandFloats = 16 << 10;  // packed input of a band
constexpr int64_t kGrain = 1 << 18;        // products worth a thread
constexpr int64_t kSomeTaps = 32;          // whose sum is one term of the total

#if defined(__AVX512F__)
constexpr int kMostVectors = 4, kAccumulators = 24;
#else
constexpr int kMostVectors = 2, kAccumulators = 12;
#endif

// PIXELS outputs of a row, `step` apart in x and `pitch` in out: the first n of VECTORS vectors of channels.
template <int VECTORS, int PIXELS>
void channels_tile(const float* x, int64_t step, const int64_t* offset, int64_t taps, const float* weight,
                   const float* bias, float floor, float* out, int64_t pitch, int64_t n) {
  Vec acc[PIXELS][VECTORS];
  FASTDL_UNROLL
  for (int p = 0; p < PIXELS; ++p) {
    FASTDL_UNROLL
    for (int v = 0; v < VECTORS; ++v) acc[p][v] = load(bias + v * kWidth);
  }
  float total[PIXELS * VECTORS * kWidth];  // of what went before, where there are that many taps
  for (int64_t t = 0; t < taps; ++t, weight += VECTORS * kWidth) {
    if (t > 0 && t % kSomeTaps == 0) {
      FASTDL_UNROLL
      for (int i = 0; i < PIXELS * VECTORS; ++i) {
        Vec& sum = acc[i / VECTORS][i % VECTORS];
        store(total + i * kWidth, t == kSomeTaps ? sum : load(total + i * kWidth) + sum);
        sum = Vec{};
      }
    }
    const float* from = x + offset[t];
    Vec taps_of[VECTORS];
    FASTDL_UNROLL
    for (int v = 0; v < VECTORS; ++v) taps_of[v] = load(weight + v * kWidth);
    FASTDL_UNROLL
    for (int p = 0; p < PIXELS; ++p) {
      const Vec in = broadcast(from[p * step]);
      FASTDL_UNROLL
      for (int v = 0; v < VECTORS; ++v) acc[p][v] = fma(in, taps_of[v], acc[p][v]);
    }
  }
  FASTDL_UNROLL
  for (int p = 0; p < PIXELS; ++p) {
    FASTDL_UNROLL
    for (int v = 0; v < VECTORS; ++v) {
      if (taps > kSomeTaps) acc[p][v] += load(total + (p * VECTORS + v) * kWidth);
      store(out + p * pitch + v * kWidth, max(broadcast(floor), acc[p][v]), n - v * kWidth);
    }
  }
}

// `width` outputs of a row. The last ones are computed anew where that fills a tile.
template <int VECTORS>
void channels_row(const float* x, int64_t step, const int64_t* offset, int64_t taps, const float* weight,
                  const float* bias, float floor, float* out, int64_t pitch, int64_t n, int64_t width) {
  constexpr int PIXELS = kAccumulators / VECTORS, HALF = PIXELS / 2;
  auto tile = [&](auto pixels, int64_t i) {
    channels_tile<VECTORS, decltype(pixels)::value>(x + i * step, step, offset, taps, weight, bias, floor,
                                                    out + i * pitch, pitch, n);
  };
  int64_t i = 0;
  for (; i + PIXELS <= width; i += PIXELS) tile(std::integral_constant<int, PIXELS>{}, i);
  if (i > 0 && width - i > HALF) {
    tile(std::integral_constant<int, PIXELS>{}, width - PIXELS);
  } else if (width < HALF) {
    for (; i < width; ++i) tile(std::integral_constant<int, 1>{}, i);
  } else {
    for (; i < width; i += HALF) tile(std::integral_constant<int, HALF>{}, least(i, width - HALF));
  }
}

struct Channels {
  Channels(const Conv2dForward& params, Context* context)
      : p(params),
        problem(p.x, p.weight, p.convolution),
        channels(problem.channels),
        outputs(problem.outputs),
        width(problem.out_size[1]),
        columns((width - 1) * problem.stride[1] + problem.dilation[1] * (problem.kernel[1] - 1) + 1),
        pitch(columns * channels),
        reach(problem.dilation[0] * (problem.kernel[0] - 1) + 1),
        taps(problem.taps()),
        vectors(ceil_div(outputs, kWidth)),
        band_rows(rows_of_band(context)),
        bands(ceil_div(problem.out_size[0], band_rows)) {
    const int64_t items = problem.images * bands;
    const int64_t products = problem.images * problem.out_size[0] * width * outputs * taps;
    threads = least(least(context->num_threads, items), 1 + products / kGrain);
    packed_size = ((band_rows - 1) * problem.stride[0] + reach) * pitch;
    const int64_t floats = vectors * kWidth * (taps + 1) + threads * packed_size;
    offset = static_cast<int64_t*>(context->allocate(context, 8 * taps + 4 * floats));
    if (offset == nullptr) return;
    weights = reinterpret_cast<float*>(offset + taps);
    biases = weights + vectors * kWidth * taps;
    scratch = biases + vectors * kWidth;
    fill();
  }

  int64_t rows_of_band(const Context* context) const {
    const int64_t rows = problem.out_size[0];
    const int64_t fit = (kBandFloats / pitch - reach) / problem.stride[0] + 1;
    const int64_t enough = ceil_div(rows * problem.images, 2 * context->num_threads);
    return least(rows, most(1, least(fit, enough)));
  }

  // Blocks of [taps, vectors of the block], taps in the order in which pixels of channels lie.
  void fill() {
    const auto* from = static_cast<const float*>(p.weight.data);
    const int64_t* stride = p.weight.stride;
    const int64_t width_of_row = problem.kernel[1] * channels;
    for (int64_t t = 0; t < taps; ++t) {
      const int64_t r = t / width_of_row, s = t % width_of_row / channels, c = t % channels;
      offset[t] = r * problem.dilation[0] * pitch + s * problem.dilation[1] * channels + c;
      for (int64_t k = 0; k < vectors * kWidth; ++k) {
        const int64_t block = k / kWidth / kMostVectors * kMostVectors;  // its first vector
        const int64_t size = least(kMostVectors, vectors - block) * kWidth;
        weights[(block * taps) * kWidth + t * size + k - block * kWidth] =
            k < outputs ? from[k * stride[0] + c * stride[1] + r * stride[2] + s * stride[3]] : 0.0f;
      }
    }
    for (int64_t k = 0; k < vectors * kWidth; ++k) {
      biases[k] = k < outputs && p.bias ? static_cast<const float*>(p.bias.data)[k] : -0.0f;
    }
  }

  void run(Context* context) const {
    const int64_t items = problem.images * bands, rows = problem.out_size[0];
    share_out(context, items, threads, [&](int64_t begin, int64_t end, int64_t thread) {
      for (int64_t item = begin; item < end; ++item) {
        compute(item / bands, rows * (item % bands) / bands, rows * (item % bands + 1) / bands,
                scratch + thread * packed_size);
      }
    });
  }

  // Rows [begin, end) of an image.
  void compute(int64_t image, int64_t begin, int64_t end, float* packed) const {
    using Row = void (*)(const float*, int64_t, const int64_t*, int64_t, const float*, const float*, float,
                         float*, int64_t, int64_t, int64_t);
    static constexpr Row kRows[kMostVectors] = {
        channels_row<1>,
        channels_row<2>,
#if defined(__AVX512F__)
        channels_row<3>,
        channels_row<4>,
#endif
    };
    const int64_t first = begin * problem.stride[0] - problem.padding[0];
    for (int64_t i = 0; i < (end - begin - 1) * problem.stride[0] + reach; ++i) {
      pack_row(image, first + i, packed + i * pitch);
    }
    float* out = static_cast<float*>(p.out.data) + (image * problem.out_size[0] + begin) * width * outputs;
    for (int64_t v = 0; v < vectors; v += kMostVectors) {
      for (int64_t y = 0; y < end - begin; ++y) {
        kRows[least(kMostVectors, vectors - v) - 1](
            packed + y * problem.stride[0] * pitch, problem.stride[1] * channels, offset, taps,
            weights + v * kWidth * taps, biases + v * kWidth, floor_of(p.convolution.activation),
            out + y * width * outputs + v * kWidth, outputs, outputs - v * kWidth, width);
      }
    }
    activate_behind_floor(p.convolution.activation, p.convolution.activation_param, out,
                          (end - begin) * width * outputs);
  }

  // Row y of an image, its padding included; any strides.
  void pack_row(int64_t image, int64_t y, float* to) const {
    const int64_t left = problem.padding[1];
    const int64_t begin = least(left, columns), end = most(begin, least(columns, left + problem.size[1]));
    const bool inside = y >= 0 && y < problem.size[0];
    const auto zeros = [&](int64_t from, int64_t n) {
      std::memset(to + from * channels, 0, n * channels * 4);
    };
    if (!inside) return zeros(0, columns);
    const float* from = static_cast<const float*>(p.x.data) + image * p.x.stride[0] + y * p.x.stride[2];
    zeros(0, begin);
    if (p.x.stride[1] == 1 && p.x.stride[3] == channels) {
      std::memcpy(to + begin * channels, from + (begin - left) * channels, (end - begin) * channels * 4);
    } else {
      for (int64_t i = begin; i < end; ++i) {
        for (int64_t c = 0; c < channels; ++c) {
          to[i * channels + c] = from[(i - left) * p.x.stride[3] + c * p.x.stride[1]];
        }
      }
    }
    zeros(end, columns - end);
  }

  const Conv2dForward& p;
  const Problem problem;
  const int64_t channels, outputs, width, columns, pitch, reach, taps, vectors, band_rows, bands;
  int64_t threads, packed_size;
  int64_t* offset;
  float *weights, *biases, *scratch;
};

}  // namespace

const char* channels_forward(const Conv2dForward& p, Context* context) {
  const Channels channels(p, context);
  if (channels.offset == nullptr) return "out of memory";
  channels.run(context);
  return nullptr;
}

}  // namespace fastdl::cpu
