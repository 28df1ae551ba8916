// Direct convolution in planes of pixels: few input channels per group, contiguous output; with or without a
// 2 x 2 max pool between the convolution and the activation. Bands of rows are packed (conv2d_pack.h) and
// multiplied by blocks of output channels (conv2d_planar.h), into the output itself where its rows are long,
// else into a buffer that holds the columns between the rows too.
#include "conv2d_planar.h"

#include "conv2d_depthwise_planar.h"
#include "conv2d_direct.h"
#include "conv2d_pack.h"
#include "conv2d_planar_few.h"
#include "parallel.h"
#include "parts.h"

namespace fastdl::cpu {
namespace {

constexpr int64_t kBandFloats = 32 << 10;   // packed input of a band: in the second-level cache
constexpr int64_t kBufferFloats = 4 << 10;  // results of a block of channels: in the first
constexpr int64_t kBufferCost = 4;          // of a number that goes through the buffer, in products
constexpr int64_t kGrain = 1 << 18;         // products worth a thread

struct Planar {
  // out and, with a pool, offsets (or nullptr): [N, K, rows, width], contiguous.
  Planar(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& out, const Tensor& offsets,
         const Convolution& convolution, bool pool, Context* context)
      : x(x),
        out(static_cast<float*>(out.data)),
        offsets(static_cast<uint8_t*>(offsets.data)),
        convolution(convolution),
        floor(floor_of(convolution.activation)),
        pool(pool),
        problem(x, weight, convolution),
        cells(pool ? 2 : 1),
        rows(problem.out_size[0] / cells),
        blocks(Parts::of(problem.outputs, 1, pool ? kPoolChannels : kTileChannels)),
        packing(problem, cells, band_rows(context)),
        width(packing.width),
        bands(ceil_div(rows, packing.rows)),
        items(problem.images * problem.groups * bands),
        taps(problem.taps()),
        depthwise(pool ? nullptr : depthwise_of(problem)),
        few(pool || depthwise != nullptr ? nullptr : few_of(problem)) {
    // what a row costs alone, in whole vectors, and in one run with the rows around it, through the buffer
    const int64_t alone = ceil_div(width, kWidth) * kWidth * taps;
    const bool by_rows = depthwise != nullptr || few != nullptr;
    direct = !pool && (by_rows || alone <= packing.pitch * taps + kBufferCost * width);
    const int64_t block = ceil_div(problem.outputs, blocks.count);
    if (by_rows) {
      chunk_rows = packing.rows;
    } else {
      chunk_rows = direct ? 1 : most(1, least(packing.rows, kBufferFloats / (block * packing.pitch)));
    }
    buffer_pitch = direct ? 0 : chunk_rows * packing.pitch + kWidth;
    per_thread = packing.floats() + block * buffer_pitch * (pool ? 2 : 1);

    const int64_t outputs = problem.groups * problem.outputs;
    const int64_t products = items * packing.rows * width * cells * cells * problem.outputs * taps;
    threads = least(least(context->num_threads, items), 1 + products / kGrain);
    const int64_t floats = threads * per_thread + outputs * (taps + 1);
    offset = static_cast<int64_t*>(context->allocate(context, 8 * taps * cells * cells + 4 * floats));
    if (offset == nullptr) return;
    weights = reinterpret_cast<float*>(offset + taps * cells * cells);
    biases = weights + outputs * taps;
    scratch = biases + outputs;
    fill_offsets();
    fill_weights(weight, bias);
  }

  // As many rows as fill a part of the cache when packed, fewer where there would be no work for every
  // thread.
  int64_t band_rows(const Context* context) const {
    const Packing one(problem, cells, 1);
    const int64_t fit = kBandFloats / (one.planes() * one.pitch) - one.y.reach;
    const int64_t enough = ceil_div(rows * problem.images * problem.groups, 2 * context->num_threads);
    const int64_t n = least(rows, most(8, least(fit, enough)));
    return ceil_div(rows, ceil_div(rows, n));
  }

  void fill_offsets() {
    int64_t* to = offset;
    for (int64_t c = 0; c < problem.channels; ++c) {
      for (int64_t r = 0; r < problem.kernel[0]; ++r) {
        for (int64_t s = 0; s < problem.kernel[1]; ++s) {
          for (int64_t i = 0; i < cells; ++i) {
            for (int64_t j = 0; j < cells; ++j) *to++ = packing.offset(c, r, s, i, j);
          }
        }
      }
    }
  }

  // Blocks of [taps, channels of the block].
  void fill_weights(const Tensor& weight, const Tensor& bias) {
    const auto* from = static_cast<const float*>(weight.data);
    float* to = weights;
    for (int64_t g = 0; g < problem.groups; ++g) {
      for (int64_t b = 0; b < blocks.count; ++b) {
        for (int64_t t = 0; t < taps; ++t) {
          const int64_t s = t % problem.kernel[1], r = t / problem.kernel[1] % problem.kernel[0];
          const int64_t c = t / (problem.kernel[1] * problem.kernel[0]);
          const int64_t tap = c * weight.stride[1] + r * weight.stride[2] + s * weight.stride[3];
          for (int64_t k = blocks.begin(b); k < blocks.begin(b + 1); ++k) {
            *to++ = from[(g * problem.outputs + k) * weight.stride[0] + tap];
          }
        }
      }
    }
    for (int64_t k = 0; k < problem.groups * problem.outputs; ++k) {
      biases[k] = bias ? static_cast<const float*>(bias.data)[k] : -0.0f;
    }
  }

  void run(Context* context) const {
    share_out(context, items, threads, [&](int64_t first, int64_t last, int64_t thread) {
      for (int64_t item = first; item < last; ++item) {
        const int64_t band = item % bands, group = item / bands % problem.groups;
        const int64_t image = item / (bands * problem.groups);
        compute(image, group, rows * band / bands, rows * (band + 1) / bands, scratch + thread * per_thread);
      }
    });
  }

  // Rows [begin, end) of an image and group.
  void compute(int64_t image, int64_t group, int64_t begin, int64_t end, float* packed) const {
    packing.pack(x, image, group, begin, end - begin, packed);
    float* buffer = packed + packing.floats();
    int32_t* winner =
        pool ? reinterpret_cast<int32_t*>(buffer + (per_thread - packing.floats()) / 2) : nullptr;
    for (int64_t b = 0; b < blocks.count; ++b) {
      const int64_t channel = group * problem.outputs + blocks.begin(b), size = blocks.length(b);
      const float *weight = weights + channel * taps, *bias = biases + channel;
      for (int64_t y = begin; y < end; y += chunk_rows) {
        const int64_t count = least(end - y, chunk_rows), n = (count - 1) * packing.pitch + width;
        const float* from = packed + (y - begin) * packing.pitch;
        const int64_t at = ((image * problem.groups * problem.outputs + channel) * rows + y) * width;
        if (depthwise != nullptr) {
          depthwise(from, packing.plane, packing.pitch, weight, *bias, floor, out + at, width, count, width);
        } else if (few != nullptr) {
          few(from, packing.plane, packing.pitch, problem.channels, problem.kernel[1], problem.dilation[1],
              weight, bias, floor, out + at, rows * width, count, width);
        } else if (direct) {
          planar_rows(size, from, offset, taps, weight, bias, floor, out + at, rows * width, n);
        } else if (pool) {
          pooled_rows(size, from, offset, taps, weight, bias, floor, buffer, winner, buffer_pitch, n);
        } else {
          planar_rows(size, from, offset, taps, weight, bias, floor, buffer, buffer_pitch, n);
        }
        for (int64_t k = 0; k < size; ++k) {
          const int64_t plane = at + k * rows * width;
          if (!direct) copy_rows(buffer + k * buffer_pitch, count, out + plane);
          if (pool && offsets != nullptr) copy_rows(winner + k * buffer_pitch, count, offsets + plane);
          activate_behind_floor(convolution.activation, convolution.activation_param, out + plane,
                                count * width);
        }
      }
    }
  }

  // Without the columns between the rows.
  void copy_rows(const float* from, int64_t count, float* to) const {
    for (int64_t r = 0; r < count; ++r, from += packing.pitch, to += width) {
      for (int64_t i = 0; i < width; i += kWidth) store(to + i, load(from + i, width - i), width - i);
    }
  }
  void copy_rows(const int32_t* from, int64_t count, uint8_t* to) const {
    for (int64_t r = 0; r < count; ++r, from += packing.pitch, to += width) {
      for (int64_t i = 0; i < width; ++i) to[i] = static_cast<uint8_t>(from[i]);
    }
  }

  const Tensor& x;
  float* const out;
  uint8_t* const offsets;
  const Convolution& convolution;
  const float floor;
  const bool pool;
  const Problem problem;
  const int64_t cells, rows;
  const Parts blocks;  // output channels of a group
  const Packing packing;
  const int64_t width, bands, items, taps;
  const DepthwiseRows depthwise;
  const FewRows few;
  bool direct;  // the sums go to out, not to the buffer
  int64_t chunk_rows, buffer_pitch, per_thread, threads;
  int64_t* offset;
  float *weights, *biases, *scratch;
};

}  // namespace

const char* planar_forward(const Conv2dForward& p, Context* context) {
  const Planar planar(p.x, p.weight, p.bias, p.out, Tensor{}, p.convolution, false, context);
  if (planar.offset == nullptr) return "out of memory";
  planar.run(context);
  return nullptr;
}

const char* planar_max_pool2d(const Conv2dMaxPool2d& p, Context* context) {
  const Planar planar(p.x, p.weight, p.bias, p.out, p.offsets, p.convolution, true, context);
  if (planar.offset == nullptr) return "out of memory";
  planar.run(context);
  return nullptr;
}

}  // namespace fastdl::cpu
