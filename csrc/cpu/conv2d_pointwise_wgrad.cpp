// The gradient for the weight of a 1x1 convolution, as a matrix product over pixels:
//
//     grad_weight[k, c] = sum over images and pixels of grad[k, pixel] * x[c, pixel]
//
// Some pixels at a time, one of the two is copied with its channels next to each other and the product added
// to partial sums. Of these there are some, each of its own pixels, so that all threads have work; they are
// added at the end, in their order.
#include "conv2d_pointwise.h"
#include "transpose.h"

namespace fastdl::cpu {
namespace {

constexpr int64_t kDepth = 256;             // pixels at a time
constexpr int64_t kMostPartials = 1 << 22;  // floats

struct Side {
  const float* image(int64_t i) const { return data + i * image_step; }
  const float* data;
  int64_t channels, image_step, channel_step;
  Pixels pixels;
  int64_t step;  // from a pixel to the next; 0 if that varies
};

Side side_of(const Tensor& t, const Pixels& pixels, int64_t rows) {
  return {static_cast<const float*>(t.data), t.size[1], t.stride[0], t.stride[1], pixels, pixels.step(rows)};
}

struct PointwiseGradient {
  PointwiseGradient(const Conv2dBackward& params, Context* context)
      : p(params),
        problem(p.x, p.weight, p.convolution),
        plane(problem.out_size[0] * problem.out_size[1]),
        grad(side_of(p.grad_out, {problem.out_size[1], p.grad_out.stride[2], p.grad_out.stride[3]},
                     problem.out_size[0])),
        x(side_of(p.x, pixels_of(p.x, problem), problem.out_size[0])),
        turned(x.step != 0 && grad.channels < x.channels),
        rows(turned ? x : grad),
        columns(turned ? grad : x),
        size(rows.channels * columns.channels),
        depths(Parts::of(plane, 1, kDepth)),
        blocks(Parts::of(columns.channels, kWidth, Product::kVectors)),
        partials(problem.images * depths.count, 1, least(context->num_threads, 1 + kMostPartials / size)),
        slices(rows.channels, Product::kRows, slices_for(context, partials.count)) {
    const int64_t floats = partials.count * size + context->num_threads * kCopyFloats;
    sums = static_cast<float*>(context->allocate(context, 4 * floats));
    if (sums == nullptr) return;
    scratch = sums + partials.count * size;
  }
  static constexpr int64_t kCopyFloats = kDepth * Product::kVectors * kWidth;

  void run(const Context* context) const {
    each_part(context, partials.count, slices.count, problem.images * plane * size,
              [&](int64_t partial, int64_t slice, int64_t thread) {
                compute(partial, slice, scratch + thread * kCopyFloats);
              });
    parallel(context, rows.channels, 1 + (1 << 14) / columns.channels, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) add_up(r);
    });
  }

  // Some rows of a partial sum.
  void compute(int64_t partial, int64_t slice, float* copy) const {
    const int64_t r = slices.begin(slice), n = slices.length(slice);
    float* own = sums + partial * size + r * columns.channels;
    std::memset(own, 0, n * columns.channels * 4);
    for (int64_t i = partials.begin(partial); i < partials.begin(partial + 1); ++i) {
      const int64_t image = i / depths.count, first = depths.begin(i % depths.count);
      const int64_t depth = depths.length(i % depths.count);
      const float* row = rows.image(image) + r * rows.channel_step + first * rows.step;
      for (int64_t block = 0; block < blocks.count; ++block) {
        const int64_t c = blocks.begin(block), width = blocks.length(block);
        const int64_t pitch = round_up(width, kWidth);
        copy_block(columns.image(image) + c * columns.channel_step, first, depth, width, pitch, copy);
        product<Plus::kOut>({row, rows.channel_step, rows.step, copy, pitch, depth, nullptr,
                             -__builtin_inff(), own + c, columns.channels, width},
                            n);
      }
    }
  }

  // To [pixels, channels of the block].
  void copy_block(const float* from, int64_t first, int64_t depth, int64_t width, int64_t pitch,
                  float* to) const {
    const int64_t channel = columns.channel_step;
    if (channel == 1) {
      for (int64_t i = 0; i < depth; ++i) {
        const float* pixel = from + columns.pixels.at(first + i);
        for (int64_t c = 0; c < width; c += kWidth) store(to + i * pitch + c, load(pixel + c, width - c));
      }
      return;
    }
    int64_t whole_depth = 0, whole_width = 0;
    if (columns.step == 1) {
      whole_depth = depth / kWidth * kWidth, whole_width = width / kWidth * kWidth;
      for (int64_t c = 0; c < whole_width; c += kWidth) {
        for (int64_t i = 0; i < whole_depth; i += kWidth) {
          transpose<kWidth>(from + c * channel + first + i, channel, to + i * pitch + c, pitch);
        }
      }
    }
    for (int64_t i = 0; i < depth; ++i) {
      const float* pixel = from + columns.pixels.at(first + i);
      for (int64_t c = i < whole_depth ? whole_width : 0; c < pitch; ++c)
        to[i * pitch + c] = c < width ? pixel[c * channel] : 0.0f;
    }
  }

  void add_up(int64_t r) const {
    const Tensor& out = p.grad_weight;
    const int64_t row = out.stride[turned], column = out.stride[!turned];
    for (int64_t c = 0; c < columns.channels; ++c) {
      float sum = 0.0f;
      for (int64_t i = 0; i < partials.count; ++i) sum += sums[i * size + r * columns.channels + c];
      static_cast<float*>(out.data)[r * row + c * column] = sum;
    }
  }

  const Conv2dBackward& p;
  const Problem problem;
  const int64_t plane;
  const Side grad, x;
  const bool turned;  // rows are x's channels
  const Side &rows, &columns;
  const int64_t size;
  const Parts depths, blocks, partials, slices;
  float *sums, *scratch;
};

}  // namespace

const char* pointwise_wgrad(const Conv2dBackward& p, Context* context) {
  const PointwiseGradient gradient(p, context);
  if (gradient.sums == nullptr) return "out of memory";
  gradient.run(context);
  return nullptr;
}

}  // namespace fastdl::cpu
