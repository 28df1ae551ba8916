// Sampling an image, the gradient of the input: each output pixel adds to the four pixels around its point.
//
// B channels of an image are accumulated as floats, [rows][columns][B], in a frame that takes what falls
// outside; one thread adds, in order. One channel alone has four floats per cell instead, for the cell's four
// taps: an output pixel is one vector then, and no sum waits for that of its neighbour. Images too few for
// the threads are added up in parts.
#pragma once

#include "sampling_tiles.h"

namespace fastdl::cpu::sampling {

constexpr int64_t kAccumulatorBytes = 1 << 20;
constexpr int64_t kPartPixels = 1 << 13;  // output pixels that are worth a part of their own

constexpr int64_t kBandPixels = 1 << 12;  // output pixels that a sampler enters at a time

struct ScatterPlan {
  int block;
  int64_t images, blocks, samples, parts;  // blocks of channels, samples of an image, parts of its output
  int64_t band;                            // rows of output that a sampler enters at a time
  int threads;
  int64_t units() const { return images * blocks; }
};

inline ScatterPlan make_scatter_plan(const Geometry& g, const Tensor& grad_out, const Tensor& grad_input,
                                     const Context* context) {
  ScatterPlan plan;
  const int64_t channels = grad_input.size[1];
  plan.images = grad_input.size[0];
  plan.samples = grad_out.size[0] / plan.images;
  plan.band = std::min(g.oh, std::max<int64_t>(1, kBandPixels / std::max<int64_t>(g.ow, 1)));
  plan.block = block_of(channels);
  if (plan.block > 4 && framed_area({0, 0, g.iw, g.ih}) * plan.block * 4 > kAccumulatorBytes) plan.block = 4;
  plan.blocks = (channels + plan.block - 1) / plan.block;
  const int64_t pixels = plan.samples * g.oh * g.ow;
  plan.threads = pixels * channels * plan.images < kAloneElements ? 1 : std::max(context->num_threads, 1);
  plan.parts = (plan.threads + plan.units() - 1) / plan.units();
  plan.parts =
      std::max<int64_t>(1, std::min(plan.parts, std::min(pixels / kPartPixels, plan.samples * g.oh)));
  return plan;
}

template <int B>
void scatter_chunk(const Cells& cells, int64_t row, bool nearest, const float* grad, float* sums) {
  using L = Lanes<B>;
  row *= B;
  auto add = [](float* to, typename L::V value) { L::store(to, L::load(to) + value); };
  for (int i = 0; i < cells.count; ++i) {
    float* cell = sums + cells.y[i] * row + int64_t{cells.x[i]} * B;
    const auto g = L::load(grad + i * B);
    if (nearest) {
      add(cell, g);
      continue;
    }
    const float fx = cells.fx[i], fy = cells.fy[i], gx = 1.0f - fx, gy = 1.0f - fy;
    add(cell, g * (gx * gy));
    add(cell + B, g * (fx * gy));
    add(cell + row, g * (gx * fy));
    add(cell + row + B, g * (fx * fy));
  }
}

inline void scatter_chunk_of_one(const Cells& cells, int64_t row, bool nearest, const float* grad,
                                 float* sums) {
  using L = Lanes<4>;
  alignas(64) float taps[4][kChunk], values[kChunk * 4];
  for (int i = 0; i < cells.count; i += kWidth) {
    const Vec g = load(grad + i);
    if (nearest) {
      store(taps[0] + i, g);
      for (int tap = 1; tap < 4; ++tap) store(taps[tap] + i, Vec{});
      continue;
    }
    const Vec fx = load(cells.fx + i), fy = load(cells.fy + i), gx = 1.0f - fx, gy = 1.0f - fy;
    store(taps[0] + i, g * (gx * gy));
    store(taps[1] + i, g * (fx * gy));
    store(taps[2] + i, g * (gx * fy));
    store(taps[3] + i, g * (fx * fy));
  }
  for (int i = 0; i < cells.count; i += 4) transpose<4>(taps[0] + i, kChunk, values + i * 4, 4);
  for (int i = 0; i < cells.count; ++i) {
    float* cell = sums + (cells.y[i] * row + cells.x[i]) * 4;
    L::store(cell, L::load(cell) + L::load(values + i * 4));
  }
}

// sums over box: of rows [first, end) of the output of an image's samples, which follow each other. If there
// is more than one sample their sums are added up in `total`: a pixel's sum may be as long as all outputs
// together.
template <int B, class Sampler>
void scatter(const Geometry& g, const Tensor& grad_out, const ScatterPlan& plan, int64_t unit, int64_t first,
             int64_t end, const Box& box, Sampler& sampler, double* total, float* sums) {
  const int64_t size = framed_area(box) * kPacked<B>;
  std::fill_n(total, plan.samples > 1 ? size : 0, 0.0);
  std::fill_n(sums, size, 0.0f);
  const int64_t image = unit / plan.blocks, c = unit % plan.blocks * B, row = framed_width(box);
  Cells cells{};
  alignas(64) float grad[kChunk * B + kWidth] = {};
  while (first < end) {
    const int64_t n = image * plan.samples + first / g.oh, h0 = first % g.oh;
    const int64_t rows = std::min({g.oh - h0, end - first, plan.band});
    sampler.enter(n, h0, h0 + rows, 0, g.ow);
    sampler.count_in(box);
    for (int64_t at = 0; at < rows * g.ow; at += kChunk) {
      const int64_t h = h0 + at / g.ow, w = at % g.ow;
      const int count = static_cast<int>(std::min<int64_t>(rows * g.ow - at, kChunk));
      sampler.locate(h, w, count, cells);
      read_area<B>(grad_out, n, c, h, w, 0, g.ow, count, grad);
      if constexpr (B == 1) {
        scatter_chunk_of_one(cells, row, g.nearest, grad, sums);
      } else {
        scatter_chunk<B>(cells, row, g.nearest, grad, sums);
      }
    }
    first += rows;
    if (plan.samples == 1 || (first % g.oh != 0 && first < end)) continue;
    for (int64_t i = 0; i < size; ++i) {
      total[i] += sums[i];
      sums[i] = 0.0f;
    }
  }
  for (int64_t i = 0; i < size && plan.samples > 1; ++i) sums[i] = static_cast<float>(total[i]);
}

// Every fourth lane of four vectors in a row.
FASTDL_INLINE Vec every_fourth(const Vec v[4]) {
#if defined(__AVX512F__)
  const __m512i first = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 0, 0, 0, 0, 0, 0, 0);
  const __m512 low = _mm512_permutex2var_ps(v[0], first, v[1]),
               high = _mm512_permutex2var_ps(v[2], first, v[3]);
  return _mm512_shuffle_f32x4(low, high, 0x44);
#elif defined(__AVX2__)
  // within 128-bit lanes: v[0][0] v[1][0] v[2][0] v[3][0], then the same of the fourth elements
  const __m256 low = _mm256_unpacklo_ps(v[0], v[1]), high = _mm256_unpacklo_ps(v[2], v[3]);
  const __m256 mixed = _mm256_shuffle_ps(low, high, 0x44);
  return _mm256_permutevar8x32_ps(mixed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
#else
  return Vec{v[0][0], v[1][0], v[2][0], v[3][0]};
#endif
}

// to [kTile], `count` of them, from the cells around a pixel and its successors: `cell` is the one whose
// first tap the pixel is.
inline void collect_taps(const float* cell, int64_t row, int64_t count, float* to) {
  const float* above = cell - row * 4;
  for (int64_t i = 0; i < count; i += kWidth) {
    Vec sums[4];
    for (int k = 0; k < 4; ++k) {
      const int64_t at = 4 * i + k * kWidth;  // every fourth lane: its cell, the one before, and those above
      sums[k] = (load(cell + at) + load(cell - 3 + at)) + (load(above + 2 + at) + load(above - 1 + at));
    }
    store(to + i, every_fourth(sums));
  }
}

inline void fill_zeros(const Run& run, int64_t count) {
  const int64_t size = run.tensor->dtype == DType::kFloat32 ? 4 : 2;
  for (int64_t c = 0; c < run.channels; ++c) {
    char* to = static_cast<char*>(run.tensor->data) + (run.offset + c * run.channel_stride) * size;
    std::memset(to, 0, static_cast<size_t>(count * size));
  }
}

// Row y of grad_input from the sums over box.
template <int B>
void finish_row(const Tensor& grad_input, int64_t image, int64_t c, int64_t y, const Box& box,
                const float* sums) {
  const int64_t iw = grad_input.size[3], row = framed_width(box);
  if (y < box.y0 || y >= box.y1) return fill_zeros(run_of(grad_input, image, c, B, y, 0), iw);
  fill_zeros(run_of(grad_input, image, c, B, y, 0), box.x0);
  const float* cell = sums + ((y - box.y0 + kFrame) * row + kFrame) * kPacked<B>;
  for (int64_t x = box.x0; x < box.x1; x += kTile, cell += kTile * kPacked<B>) {
    const float* values = cell;
    alignas(64) float collected[kTile];
    const int64_t count = std::min<int64_t>(kTile, box.x1 - x);
    if constexpr (B == 1) {
      collect_taps(cell, row, count, collected);
      values = collected;
    }
    write<B>(run_of(grad_input, image, c, B, y, x), count, values);
  }
  fill_zeros(run_of(grad_input, image, c, B, y, box.x1), iw - box.x1);
}

// What all samples of an image sample of it.
template <class Maps>
Box reach_of(const Geometry& g, const ScatterPlan& plan, int64_t unit, const Maps& maps) {
  const int64_t image = unit / plan.blocks;
  Box box = {g.iw, g.ih, 0, 0};
  for (int64_t n = image * plan.samples; n < (image + 1) * plan.samples; ++n) {
    const Box one = maps.reach(n);
    box = {std::min(box.x0, one.x0), std::min(box.y0, one.y0), std::max(box.x1, one.x1),
           std::max(box.y1, one.y1)};
  }
  return box;
}

// False: no memory.
template <class Maps>
bool scatter_grad_input(const Geometry& g, const Tensor& grad_out, const Tensor& grad_input, const Maps& maps,
                        Context* context) {
  const ScatterPlan plan = make_scatter_plan(g, grad_out, grad_input, context);
  bool enough = true;
  with_block(plan.block, [&](auto block) {
    constexpr int B = decltype(block)::value;
    const int64_t whole = framed_area({0, 0, g.iw, g.ih}) * kPacked<B>;
    const int64_t own = (maps.floats(plan.band * g.ow) + 1) / 2 * 2;  // the sampler's
    const int64_t before = own + (plan.samples > 1 ? 2 * whole : 0);  // the sums
    const int64_t slot = (before + whole + kTile * kPacked<B> + kWidth + 15) / 16 * 16;
    const int64_t slots =
        plan.parts == 1 ? std::min<int64_t>(plan.threads, plan.units()) : plan.units() * plan.parts;
    float* scratch = static_cast<float*>(context->allocate(context, slots * slot * 4));
    enough = scratch != nullptr;
    if (!enough) return;
    auto finish = [&](int64_t unit, int64_t y, const Box& box, const float* sums) {
      finish_row<B>(grad_input, unit / plan.blocks, unit % plan.blocks * B, y, box, sums);
    };
    const int64_t rows = plan.samples * g.oh;
    auto run = [&](int64_t thread, int64_t task) {
      const int64_t unit = task / plan.parts, part = task % plan.parts;
      float* mine = scratch + (plan.parts == 1 ? thread : task) * slot;
      float* sums = mine + before;
      double* total = reinterpret_cast<double*>(mine + own);
      const Box box = reach_of(g, plan, unit, maps);
      auto sampler = maps.sampler(plan.band * g.ow, mine);
      scatter<B>(g, grad_out, plan, unit, rows * part / plan.parts, rows * (part + 1) / plan.parts, box,
                 sampler, total, sums);
      for (int64_t y = 0; y < g.ih && plan.parts == 1; ++y) finish(unit, y, box, sums);
    };
    on_threads(context, plan.threads, plan.units() * plan.parts,
               [&](int64_t thread, int64_t first, int64_t end) {
                 for (int64_t task = first; task < end; ++task) run(thread, task);
               });
    if (plan.parts == 1) return;
    for (int64_t unit = 0; unit < plan.units(); ++unit) {
      float* sums = scratch + unit * plan.parts * slot + before;
      const Box box = reach_of(g, plan, unit, maps);
      parallel(context, framed_area(box) * kPacked<B>, 1 << 14, [&](int64_t begin, int64_t end) {
        for (int64_t part = 1; part < plan.parts; ++part)
          for (int64_t i = begin; i < end; ++i) sums[i] += sums[part * slot + i];
      });
      parallel(context, g.ih, std::max<int64_t>(1, (1 << 14) / g.iw), [&](int64_t begin, int64_t end) {
        for (int64_t y = begin; y < end; ++y) finish(unit, y, box, sums);
      });
    }
  });
  return enough;
}

}  // namespace fastdl::cpu::sampling
