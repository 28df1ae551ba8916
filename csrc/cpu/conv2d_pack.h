// The input of a direct convolution, packed: padding is written out as zeros, columns and rows that a stride
// sets apart lie together. Every tap is then a constant offset:
//
//     out[k, y, x] = sum over taps t of weight[k, t] * packed[offset[t] + y * pitch + x]
//
// and (y, x) is one flat index, whose last pitch - width columns of each row are computed for nothing and
// dropped.
#pragma once

#include "../conv2d.h"
#include "conv2d_layout.h"
#include "vec.h"

namespace fastdl::cpu {

constexpr int64_t kMaxStep = 8;

// Lanes 0, 2, 4, ... of a, then of b.
FASTDL_INLINE Vec every_second(Vec a, Vec b) {
#if defined(__AVX512F__)
  return _mm512_permutex2var_ps(a, reinterpret_cast<__m512i>(iota() * 2), b);
#elif defined(__AVX2__)
  __m256d pairs = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0x88));
  return _mm256_castpd_ps(_mm256_permute4x64_pd(pairs, 0xd8));
#else
  Vec v{};
  for (int i = 0; i < kWidth / 2; ++i) v[i] = a[2 * i], v[i + kWidth / 2] = b[2 * i];
  return v;
#endif
}

// What there is to compute, per group where there are groups.
struct Problem {
  Problem(const Tensor& x, const Tensor& weight, const Convolution& c)
      : images(x.size[0]), groups(c.groups), channels(weight.size[1]), outputs(weight.size[0] / c.groups) {
    for (int i = 0; i < 2; ++i) {
      size[i] = x.size[2 + i];
      kernel[i] = weight.size[2 + i];
      stride[i] = c.stride[i];
      padding[i] = c.padding[i];
      dilation[i] = c.dilation[i];
      out_size[i] = (size[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) / stride[i] + 1;
    }
  }
  int64_t taps() const { return channels * kernel[0] * kernel[1]; }

  int64_t images, groups, channels, outputs;  // channels and outputs of a group
  int64_t size[2], kernel[2], stride[2], padding[2], dilation[2], out_size[2];
};

// One axis: what output o meets at tap t of cell j, in the padded input, is position o * step + at(t, j).
// `cells` outputs belong together (a pooling window's), and their neighbours are `step` further.
struct Axis {
  Axis(const Problem& p, int axis, int64_t cells)
      : step(p.stride[axis] * cells), stride(p.stride[axis]), dilation(p.dilation[axis]) {
    bool used[kMaxStep] = {};
    for (int64_t t = 0; t < p.kernel[axis]; ++t) {
      for (int64_t j = 0; j < cells; ++j) {
        used[at(t, j) % step] = true;
        if (at(t, j) / step > reach) reach = at(t, j) / step;
      }
    }
    for (int64_t i = 0; i < step; ++i) {
      slot[i] = phases;
      if (used[i]) phase[phases++] = i;
    }
  }
  int64_t at(int64_t tap, int64_t cell) const { return tap * dilation + cell * stride; }

  int64_t step, stride, dilation;
  int64_t reach = 0;                        // furthest tap, in steps
  int64_t phases = 0;                       // which remainders modulo step are met at all,
  int64_t phase[kMaxStep], slot[kMaxStep];  // and where each lies
};

// The packed rows of a band: for each channel, row phase and column phase a plane of (rows + reach) x pitch.
struct Packing {
  Packing(const Problem& problem, int64_t cells, int64_t band_rows)
      : p(problem),
        y(problem, 0, cells),
        x(problem, 1, cells),
        width(problem.out_size[1] / cells),
        pitch(width + x.reach),
        rows(band_rows),
        plane((rows + y.reach) * pitch) {}

  int64_t planes() const { return p.channels * y.phases * x.phases; }
  // What a vector of junk columns reads behind the last plane is part of it.
  int64_t floats() const { return planes() * plane + kSlack; }
  static constexpr int64_t kSlack = 16 * kWidth;

  int64_t offset(int64_t channel, int64_t r, int64_t s, int64_t cell_y, int64_t cell_x) const {
    const int64_t row = y.at(r, cell_y), column = x.at(s, cell_x);
    const int64_t index = (channel * y.phases + y.slot[row % y.step]) * x.phases + x.slot[column % x.step];
    return index * plane + row / y.step * pitch + column / x.step;
  }

  // Fill `to` with what outputs [first, first + count) of an image and group need.
  void pack(const Tensor& input, int64_t image, int64_t group, int64_t first, int64_t count,
            float* to) const {
    for (int64_t c = 0; c < p.channels; ++c) {
      const float* from = static_cast<const float*>(input.data) + image * input.stride[0] +
                          (group * p.channels + c) * input.stride[1];
      for (int64_t a = 0; a < y.phases; ++a) {
        for (int64_t b = 0; b < x.phases; ++b, to += plane) {
          const Columns columns(*this, b, input.stride[3]);
          float* row = to;
          for (int64_t i = 0; i < count + y.reach; ++i, row += pitch) {
            const int64_t at = (first + i) * y.step + y.phase[a] - p.padding[0];
            const bool inside = at >= 0 && at < p.size[0];
            inside ? columns.copy(from + at * input.stride[2], input.stride[1], row)
                   : fill_zeros(row, 0, pitch);
          }
        }
      }
    }
    for (int64_t i = 0; i < kSlack; ++i) to[i] = 0;
  }

 private:
  // Whole vectors are written: what goes beyond the row is where the next one comes, or in the slack.
  static FASTDL_INLINE void fill_zeros(float* to, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += kWidth) store(to + i, Vec{});
  }

  // The columns of one phase: i is `shift + i * step` of the image, within it for begin <= i < end.
  struct Columns {
    Columns(const Packing& packing, int64_t b, int64_t stride) : pitch(packing.pitch) {
      const int64_t step = packing.x.step, size = packing.p.size[1];
      const int64_t first = packing.x.phase[b] - packing.p.padding[1];
      begin = first < 0 ? (-first + step - 1) / step : 0;
      end = size > first ? (size - first + step - 1) / step : 0;
      begin = begin < pitch ? begin : pitch;
      end = end < begin ? begin : end < pitch ? end : pitch;
      shift = first * stride;
      distance = step * stride;
    }

    // A row of the image, from its first pixel on, to a packed row. The one `next` further comes soon, too
    // far away for the machine to see it coming.
    FASTDL_INLINE void copy(const float* from, int64_t next, float* to) const {
      const float* source = from + shift;
      fill_zeros(to, 0, begin);
      int64_t i = begin;
      if (distance == 1) {
        for (; i + kWidth <= end; i += kWidth) {
          __builtin_prefetch(source + i + next);
          store(to + i, load(source + i));
        }
        if (i < end && end - begin >= kWidth) {
          store(to + end - kWidth, load(source + end - kWidth));
          i = end;
        }
        for (; i < end; i += kWidth) store(to + i, load(source + i, end - i));
      } else if (distance == 2) {
        for (; i < end; i += kWidth) {
          const int64_t rest = 2 * (end - i) - 1;
          const Vec low = load(source + 2 * i, rest);
          const Vec high = rest > kWidth ? load(source + 2 * i + kWidth, rest - kWidth) : Vec{};
          store(to + i, every_second(low, high));
        }
      } else {
        for (; i < end; ++i) to[i] = source[i * distance];
      }
      fill_zeros(to, i, pitch);
    }

    int64_t pitch, begin, end, shift, distance;
  };

 public:
  const Problem p;
  const Axis y, x;
  const int64_t width, pitch, rows, plane;
};

}  // namespace fastdl::cpu
