// Many rows at a time, one in each lane: few classes, or classes that do not lie side by side.
//
// Rows come in groups, their logits through a tile [classes][lanes] of floats in the cache, whatever the
// strides. Forward walks the classes in blocks and rescales its sums when a maximum grows; backward keeps the
// group's whole tile and takes the softmax from it alone: where one class has almost all of it, a rounded lse
// would show.
#pragma once

#include <algorithm>

#include "cross_entropy_problem.h"

namespace fastdl::cpu::cross_entropy {

constexpr int kScattered = 4 * kWidth;  // lanes of a group whose rows lie anywhere
constexpr int kLanes = 512;  // at most: rows side by side are read in long runs, which prefetchers follow
constexpr int kTileClasses = 16;

// How rows are grouped: along d where D is long, so that lanes which lie side by side stay so; else as they
// come.
struct Groups {
  int64_t rows, inner, per_image;  // per_image: groups of one n; 0 as they come
  int lanes;                       // of a tile, its row stride: a multiple of kWidth

  explicit Groups(const Problem& p) : rows(p.rows), inner(p.inner), per_image(0), lanes(kScattered) {
    const bool along_n = p.inner == 1 && p.input->stride[0] == 1;
    if (along_n || p.inner >= kWidth) {  // the whole tile stays in the cache
      const int64_t fit = std::min<int64_t>(kLanes, 65536 / p.classes);
      lanes = static_cast<int>(std::max<int64_t>(fit / kScattered * kScattered, kScattered));
    }
    if (p.inner >= kWidth) per_image = (p.inner + lanes - 1) / lanes;
  }
  int64_t count() const { return per_image != 0 ? rows / inner * per_image : (rows + lanes - 1) / lanes; }
};

// The rows of one group: `count` from `row` = (n, d) on.
struct Group {
  int64_t row, n, d, inner;
  int count, lanes;  // lanes: count rounded up to whole vectors

  Group(const Groups& groups, int64_t g) : inner(groups.inner) {
    if (groups.per_image != 0) {
      n = g / groups.per_image;
      d = (g - n * groups.per_image) * groups.lanes;
      row = n * inner + d;
      count = static_cast<int>(std::min<int64_t>(groups.lanes, inner - d));
    } else {
      row = g * groups.lanes;
      n = row / inner;
      d = row - n * inner;
      count = static_cast<int>(std::min<int64_t>(groups.lanes, groups.rows - row));
    }
    lanes = (count + kWidth - 1) / kWidth * kWidth;
  }

  // f(i, n, d) for the lanes i.
  template <class F>
  FASTDL_INLINE void for_rows(const F& f) const {
    int64_t n_now = n, d_now = d;
    for (int i = 0; i < count; ++i) {
      f(i, n_now, d_now);
      if (++d_now == inner) d_now = 0, ++n_now;
    }
  }
};

// A tensor [N, C, D] as tiles of a group: tile[c * stride + lane].
template <class T>
struct LaneView {
  const Tensor& t;
  const Group& g;
  int stride;
  bool dense;  // the lanes of a class lie side by side

  LaneView(const Tensor& t, const Groups& groups, const Group& g) : t(t), g(g), stride(groups.lanes) {
    dense = g.inner == 1 ? t.stride[0] == 1 : t.stride[2] == 1 && g.d + g.count <= g.inner;
  }
  T* at(int64_t n, int64_t d) const { return static_cast<T*>(t.data) + n * t.stride[0] + d * t.stride[2]; }

  // Classes [start, start + size). Lanes past the group's count are 0.
  void read(int64_t start, int64_t size, float* tile) const {
    const int64_t step = t.stride[1];
    if (dense) {
      const T* p = at(g.n, g.d) + start * step;
      for (int64_t c = 0; c < size; ++c, p += step, tile += stride) {
        int i = 0;
        for (; i + kWidth <= g.count; i += kWidth) store(tile + i, load(p + i));
        if (i < g.count) store(tile + i, load(p + i, g.count - i));
      }
      return;
    }
    g.for_rows([&](int i, int64_t n, int64_t d) {
      const T* p = at(n, d) + start * step;
      for (int64_t c = 0; c < size; ++c) tile[c * stride + i] = to_float(p[c * step]);
    });
    for (int i = g.count; i < g.lanes; ++i)
      for (int64_t c = 0; c < size; ++c) tile[c * stride + i] = 0.0f;
  }

  void write(int64_t size, const float* tile, bool streamed) const {
    const int64_t step = t.stride[1];
    if (!dense) {
      g.for_rows([&](int i, int64_t n, int64_t d) {
        T* p = at(n, d);
        for (int64_t c = 0; c < size; ++c) p[c * step] = from_float<T>(tile[c * stride + i]);
      });
      return;
    }
    T* p = at(g.n, g.d);
    for (int64_t c = 0; c < size; ++c, p += step, tile += stride) {
      int i = 0;
      if constexpr (sizeof(T) == 4) {
        if (streamed && reinterpret_cast<uintptr_t>(p) % sizeof(Vec) == 0)
          for (; i + kWidth <= g.count; i += kWidth) stream(p + i, load(tile + i));
      }
      for (; i + kWidth <= g.count; i += kWidth) store(p + i, load(tile + i));
      if (i < g.count) store(p + i, load(tile + i), g.count - i);
    }
  }
};

// Groups [begin, end).
template <Share kShare, class T>
void lanes_forward(const Problem& p, float* lse, Losses* losses, int64_t begin, int64_t end) {
  alignas(64) float tile[kTileClasses * kLanes], q_tile[is_soft(kShare) ? kTileClasses * kLanes : 1];
  alignas(64) float max[kLanes], sum[kLanes], shift[kLanes], moved[kLanes], total[kLanes], x_t[kLanes];
  alignas(64) double spread[kLanes], spread_weight[kLanes];  // sums of all classes
  Class target[kLanes];
  const Groups groups(p);
  const int stride = groups.lanes;
  for (int64_t index = begin; index < end; ++index) {
    const Group g(groups, index);
    const LaneView<const T> x(*p.input, groups, g), q(is_soft(kShare) ? *p.target : *p.input, groups, g);
    if constexpr (!is_soft(kShare))
      g.for_rows([&](int i, int64_t n, int64_t d) { target[i] = class_of(p, n, d); });

    for (int64_t start = 0; start < p.classes; start += kTileClasses) {
      const int size = static_cast<int>(std::min<int64_t>(kTileClasses, p.classes - start));
      x.read(start, size, tile);
      if constexpr (is_soft(kShare)) q.read(start, size, q_tile);
      for (int i = 0; i < g.lanes; i += kWidth) {
        Vec top = start == 0 ? splat(-kInfinity) : load(max + i);
        const Vec before = finite(top);
        for (int c = 0; c < size; ++c) top = cpu::max(load(tile + c * stride + i), top);
        const Vec now = finite(top);
        Vec s{};
        for (int c = 0; c < size; ++c) s += exp_nonpositive(load(tile + c * stride + i) - now);
        store(max + i, top);
        store(sum + i, start == 0 ? s : fma(load(sum + i), exp_nonpositive(before - now), s));
        if constexpr (kShare != Share::kNone) {
          const Vec first = start == 0 ? now : load(shift + i);
          Vec moved_here{}, total_here{};
          for (int c = 0; c < size; ++c) {
            Vec a = splat(1.0f);
            if constexpr (is_soft(kShare))
              a = fma(load(q_tile + c * stride + i), splat(p.keep), splat(p.share));
            if constexpr (has_weights(kShare)) a *= p.weight[start + c];
            moved_here = fma(a, first - load(tile + c * stride + i), moved_here);
            total_here += a;
          }
          store(shift + i, first);
          store(moved + i, moved_here);
          store(total + i, total_here);
        }
      }
      if constexpr (kShare != Share::kNone) {
        for (int i = 0; i < g.lanes; ++i) {
          spread[i] = (start == 0 ? 0.0 : spread[i]) + moved[i];
          spread_weight[i] = (start == 0 ? 0.0 : spread_weight[i]) + total[i];
        }
      }
      if constexpr (!is_soft(kShare)) {
        for (int i = 0; i < g.count; ++i) {
          const auto c = static_cast<uint64_t>(target[i].t - start);
          if (c < static_cast<uint64_t>(size)) x_t[i] = tile[c * stride + i];
        }
      }
    }

    for (int i = 0; i < g.lanes; i += kWidth) {
      const Vec top = finite(load(max + i)), log_sum = log_normal(load(sum + i));
      if (lse != nullptr) store(lse + g.row + i, top + log_sum, g.count - i);
      if constexpr (kShare != Share::kNone) {
        store(shift + i, top - load(shift + i));
        store(sum + i, log_sum);
      }
      if constexpr (!is_soft(kShare)) store(x_t + i, log_sum - (load(x_t + i) - top));  // nll(t)
    }
    auto spread_loss = [&](int i) { return spread[i] + spread_weight[i] * (double{shift[i]} + sum[i]); };
    g.for_rows([&](int i, int64_t n, int64_t d) {
      if constexpr (is_soft(kShare)) {
        losses->add(n, d, spread_loss(i), 1.0f);
      } else {
        if (!target[i].kept) return losses->add(n, d, target[i].ignored ? 0.0f : kNaN, 0.0f);
        const float weight = p.weight != nullptr ? p.weight[target[i].t] : 1.0f;
        double loss = weight * x_t[i];
        if constexpr (kShare != Share::kNone) loss = p.keep * loss + p.share * spread_loss(i);
        losses->add(n, d, loss, weight);
      }
    });
  }
}

// Groups [begin, end). scratch: tiles of all classes, two of them for probabilities.
template <Share kShare, class T>
void lanes_backward(const Problem& p, const Scale& scale_of, const Tensor& grad, bool streamed,
                    float* scratch, int64_t begin, int64_t end) {
  alignas(64) float scale[kLanes] = {}, weight[kLanes] = {};
  alignas(64) int32_t ignored[kLanes] = {};
  int64_t t[kLanes] = {};
  const Groups groups(p);
  const int stride = groups.lanes;
  float* const tile = scratch;
  float* const q_tile = scratch + stride * p.classes;
  for (int64_t index = begin; index < end; ++index) {
    const Group g(groups, index);
    const LaneView<const T> x(*p.input, groups, g), q(is_soft(kShare) ? *p.target : *p.input, groups, g);
    const LaneView<T> out(grad, groups, g);
    x.read(0, p.classes, tile);
    if constexpr (is_soft(kShare)) q.read(0, p.classes, q_tile);
    g.for_rows([&](int i, int64_t n, int64_t d) {
      scale[i] = scale_of.of(n, d);
      if constexpr (!is_soft(kShare)) {
        const Class target = class_of(p, n, d);
        t[i] = target.t;
        ignored[i] = target.ignored ? -1 : 0;
        if (!target.kept) scale[i] = kNaN;
        weight[i] = p.weight != nullptr ? p.weight[target.t] : 1.0f;
      }
    });
    for (int i = 0; i < g.lanes; i += kWidth) {
      const Vec lane_scale = load(scale + i), smooth = lane_scale * p.share;
      Vec top = splat(-kInfinity), e_sum{}, a_sum{};
      for (int64_t c = 0; c < p.classes; ++c) top = cpu::max(load(tile + c * stride + i), top);
      top = finite(top);
      for (int64_t start = 0; start < p.classes; start += kTileClasses) {
        Vec e_block{}, a_block{};
        for (int64_t c = start; c < std::min(start + kTileClasses, p.classes); ++c) {
          float* at = tile + c * stride + i;
          const Vec e = exp_nonpositive(load(at) - top);
          e_block += e;
          store(at, e);
          if constexpr (is_soft(kShare)) {
            Vec a = fma(load(q_tile + c * stride + i), splat(p.keep), splat(p.share));
            if constexpr (has_weights(kShare)) a *= p.weight[c];
            a_block += a;
            store(q_tile + c * stride + i, a);
          }
        }
        e_sum += e_block;
        a_sum += a_block;
      }
      const Vec hit = lane_scale * (load(weight + i) * p.keep);
      Vec sum_a = is_soft(kShare) ? lane_scale * a_sum : hit, a_t = hit, at_target{};  // a_t: the target's a
      if constexpr (kShare == Share::kOnes || kShare == Share::kWeights) {
        sum_a = fma(smooth, splat(p.weight_sum), hit);
        a_t = fma(smooth, kShare == Share::kOnes ? splat(1.0f) : load(weight + i), hit);
      }
      const Vec factor = sum_a / e_sum;
      const IVec zero = load(ignored + i);
      if constexpr (!is_soft(kShare)) {
        for (int lane = 0; lane < kWidth; ++lane) at_target[lane] = tile[t[i + lane] * stride + i + lane];
        at_target = select(zero, Vec{}, at_target * factor - a_t);
      }
      for (int64_t c = 0; c < p.classes; ++c) {
        float* at = tile + c * stride + i;
        Vec value = load(at) * factor;
        if constexpr (kShare == Share::kOnes) value -= smooth;
        if constexpr (kShare == Share::kWeights) value -= smooth * p.weight[c];
        if constexpr (is_soft(kShare)) value -= lane_scale * load(q_tile + c * stride + i);
        store(at, select(zero, Vec{}, value));
      }
      if constexpr (!is_soft(kShare)) {
        for (int lane = 0; lane < kWidth; ++lane) tile[t[i + lane] * stride + i + lane] = at_target[lane];
      }
    }
    out.write(p.classes, tile, streamed);
  }
  if (streamed) finish_streams();
}

}  // namespace fastdl::cpu::cross_entropy
