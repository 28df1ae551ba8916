// batch_norm's forward: the batch's statistics or the running ones, then out = act((x - mean) * scale + bias
// + residual) with scale = weight * invstd, and relu's mask.
#include "activation.h"
#include "batch_norm_mask.h"
#include "batch_norm_statistics.h"
#include "dispatch.h"

namespace fastdl::cpu::batch_norm {
namespace {

struct Call {
  const BatchNormForward& p;
  Context* context;
  Layout l;
  bool streamed;  // out is too large for the caches
  float* constants[kConstants] = {};
};

// ---------------------------------------------------------------------------------- the statistics

// The constants of channel c; in training mean and invstd, and the running statistics move.
void set_channel(const Call& call, int64_t c, float mean, float invstd) {
  const BatchNormForward& p = call.p;
  if (p.mean) static_cast<float*>(p.mean.data)[c] = mean;
  if (p.invstd) static_cast<float*>(p.invstd.data)[c] = invstd;
  call.constants[kMean][c] = mean;
  call.constants[kScale][c] = parameter(p.weight, c, 1.0f) * invstd;
  call.constants[kBias][c] = parameter(p.bias, c, 0.0f);
}

float invstd_of(double var, double eps) { return static_cast<float>(1.0 / std::sqrt(var + eps)); }

void set_from_batch(const Call& call, int64_t c, double pivot, const double* sums) {
  const BatchNormForward& p = call.p;
  int64_t count = call.l.count();
  Moments m = moments_of(pivot, sums[0], sums[1], count);
  double n = static_cast<double>(count), keep = 1.0 - p.momentum;
  set_channel(call, c, static_cast<float>(m.mean), invstd_of(m.m2 / n, p.eps));
  set_parameter(p.running_mean, c, p.momentum * m.mean + keep * parameter(p.running_mean, c, 0.0f));
  set_parameter(p.running_var, c, p.momentum * (m.m2 / (n - 1.0)) + keep * parameter(p.running_var, c, 0.0f));
}

void set_from_running(const Call& call, int64_t c) {
  set_channel(call, c, parameter(call.p.running_mean, c, 0.0f),
              invstd_of(parameter(call.p.running_var, c, 1.0f), call.p.eps));
}

// ---------------------------------------------------------------------------- the elementwise pass

// n values from `begin` on, whose channels' constants are `of`.
template <class T, Activation activation, bool residual, bool mask, class Of>
FASTDL_INLINE void normalise_run(const BatchNormForward& p, bool streamed, int64_t begin, int64_t n,
                                 const Of& of, MaskWriter& writer) {
  const T* x = static_cast<const T*>(p.x.data) + begin;
  const T* other = static_cast<const T*>(p.residual.data) + begin;
  T* out = static_cast<T*>(p.out.data) + begin;
  const float param = p.activation_param;
  MaskWriter local = writer;
  auto step = [&](int64_t j, auto part, int) {
    Vec y = fused(part.load(x + j) - of(kMean, j), of(kScale, j), of(kBias, j));
    if constexpr (residual) y += part.load(other + j);
    y = activate<activation>(y, param);
    part.store(out + j, y);
    if constexpr (mask) local.append(part, bits(!(narrow<T>(y) <= 0.0f)));
  };
  // the costlier activations keep the stores waiting either way
  constexpr bool cheap = activation == Activation::kNone || activation == Activation::kReLU;
  if (cheap && streamed && aligned(out)) {
    sweep<1, std::conditional_t<cheap, Streamed, Whole>>(n, step);
  } else {
    sweep(n, step);
  }
  if constexpr (mask) writer = local;
}

template <class T, Activation activation, bool residual, bool mask>
struct Normalise {
  const Call& call;

  MaskWriter writer(int64_t begin) const {
    return MaskWriter(mask ? static_cast<uint8_t*>(call.p.mask.data) + begin / 8 : nullptr);
  }

  // A group of channels, the runs last read first.
  void group(const Box& box) const {
    const Layout& l = call.l;
    int64_t channels = box.c1 - box.c0;
    for (int64_t n = box.n1 - 1; n >= box.n0; --n) {
      int64_t begin = (n * l.c + box.c0) * l.s;
      auto bits = writer(begin);
      for (int64_t i = 0; i < channels; ++i)
        normalise_run<T, activation, residual, mask>(call.p, call.streamed, begin + i * l.s, l.s,
                                                     OfChannel(call.constants, box.c0 + i, kMean, kBias + 1),
                                                     bits);
      bits.finish();
    }
    fence();
  }

  // Values [begin, end) of planes; begin is a multiple of 8.
  void range(int64_t begin, int64_t end) const {
    auto bits = writer(begin);
    for_runs(call.l, begin, end, [&](int64_t first, int64_t n, int64_t c) {
      normalise_run<T, activation, residual, mask>(call.p, call.streamed, first, n,
                                                   OfChannel(call.constants, c, kMean, kBias + 1), bits);
    });
    bits.finish();
    fence();
  }

  // Rows [begin, end), the last read first; begin is a multiple of 8.
  void rows(int64_t begin, int64_t end) const {
    const Layout& l = call.l;
    OfColumns of(call.constants, 0);
    blocks_backwards(l, begin, end, [&](int64_t first, int64_t last) {
      auto bits = writer(first * l.length);
      for (int64_t row = first; row < last; ++row)
        normalise_run<T, activation, residual, mask>(call.p, call.streamed, row * l.length, l.columns(row),
                                                     of, bits);
      bits.finish();
    });
    fence();
  }
};

// --------------------------------------------------------------------------------------- the paths

template <class T, class N>
const char* train_planes(Call& call, const N& normalise) {
  const Layout& l = call.l;
  const T* x = static_cast<const T*>(call.p.x.data);
  Plan plan = plan_of(l, call.context, sizeof(T), bool(call.p.mask));
  auto sums_of = [&](const Box& box, const float* pivot, double* sums) {
    plane_sums(l, box, sums, [&](int64_t begin, int64_t n, int64_t c, Wide* two) {
      moment_terms(x + begin, n, splat(pivot[c - box.c0]), two);
    });
  };

  if (plan.group) {
    int64_t groups = (l.c + plan.group - 1) / plan.group, grain = 1 + kGrain / (plan.group * l.count());
    parallel(call.context, groups, grain, [&](int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; ++g) {
        Box box{g * plan.group, std::min(l.c, (g + 1) * plan.group), 0, l.n, 0, l.s};
        float pivot[kGroup];
        double sums[kGroup * 2];
        for (int64_t c = box.c0; c < box.c1; ++c) pivot[c - box.c0] = plane_pivot(x, l, c);
        sums_of(box, pivot, sums);
        for (int64_t c = box.c0; c < box.c1; ++c)
          set_from_batch(call, c, pivot[c - box.c0], sums + 2 * (c - box.c0));
        normalise.group(box);
      }
    });
    return nullptr;
  }

  int64_t per_channel = plan.pieces_n * plan.pieces_s, pieces = l.c * per_channel;
  Scratch scratch;
  if (!scratch.reserve(call.context, l.c * 4 + pieces * 16)) return kNoMemory;
  float* pivot = scratch.take<float>(l.c);
  double* sums = scratch.take<double>(pieces * 2);
  for (int64_t c = 0; c < l.c; ++c) pivot[c] = plane_pivot(x, l, c);
  parallel(call.context, pieces, 1 + kGrain * pieces / l.numel, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      Box box = piece_of(l, plan, i);
      sums_of(box, pivot + box.c0, sums + 2 * i);
    }
  });
  for (int64_t c = 0; c < l.c; ++c) {
    double* total = sums + 2 * c * per_channel;
    for (int64_t i = 1; i < per_channel; ++i)
      for (int k = 0; k < 2; ++k) total[k] += total[2 * i + k];
    set_from_batch(call, c, pivot[c], total);
  }
  return nullptr;
}

template <class T>
const char* train_rows(Call& call, int64_t parts) {
  const Layout& l = call.l;
  const T* x = static_cast<const T*>(call.p.x.data);
  Scratch scratch;
  int64_t bytes =
      parts * (RowSums::bytes(l) + static_cast<int64_t>(sizeof(RowSums))) + l.c * 16 + l.length * 4;
  if (!scratch.reserve(call.context, bytes + 4096)) return kNoMemory;
  RowSums* sums = scratch.take<RowSums>(parts);
  float* pivot = scratch.take<float>(l.length + kWidth);
  double* total = scratch.take<double>(2 * l.c);
  for (int64_t i = 0; i < parts; ++i) sums[i].take(scratch, l);
  row_pivots(x, l, pivot);
  expand(l, &pivot, 1);
  parallel(call.context, parts, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i)
      row_sums(l, cut(l.rows(), parts, i, 8), cut(l.rows(), parts, i + 1, 8), sums[i],
               [&](int64_t row, auto rows, int64_t columns, double* const* columns_of) {
                 moment_terms<T, decltype(rows)::value>(x + row * l.length, l.length, columns, pivot,
                                                        columns_of);
               });
  });
  combine_rows(l, sums, parts, total);
  for (int64_t c = 0; c < l.c; ++c) set_from_batch(call, c, pivot[c * l.s], total + 2 * c);
  return nullptr;
}

template <class T, class N>
const char* run(Call& call, const N& normalise) {
  Layout& l = call.l;
  Plan plan = plan_of(l, call.context, sizeof(T), bool(call.p.mask));
  call.streamed = l.streamed(sizeof(T));
  if (call.p.training) {
    const char* error = l.planes ? train_planes<T>(call, normalise) : train_rows<T>(call, plan.parts);
    if (error || (l.planes && plan.group)) return error;
  } else {
    for (int64_t c = 0; c < l.c; ++c) set_from_running(call, c);
  }
  expand(l, call.constants, kBias + 1);
  join(l, call.constants, kBias + 1);
  if (l.planes) {
    constexpr int64_t kUnit = 64;
    parallel(call.context, (l.numel + kUnit - 1) / kUnit, kGrain / kUnit, [&](int64_t begin, int64_t end) {
      normalise.range(begin * kUnit, std::min(end * kUnit, l.numel));
    });
  } else {
    parallel(call.context, plan.parts, 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i)
        normalise.rows(cut(l.rows(), plan.parts, i, 8), cut(l.rows(), plan.parts, i + 1, 8));
    });
  }
  return nullptr;
}

template <class T>
const char* dispatch(Call& call) {
  return with_activation(call.p.activation, [&](auto constant) {
    constexpr Activation activation = decltype(constant)::value;
    if constexpr (activation == Activation::kReLU) {
      if (call.p.mask && call.p.residual) return run<T>(call, Normalise<T, activation, true, true>{call});
      if (call.p.mask) return run<T>(call, Normalise<T, activation, false, true>{call});
    }
    if (call.p.residual) return run<T>(call, Normalise<T, activation, true, false>{call});
    return run<T>(call, Normalise<T, activation, false, false>{call});
  });
}

}  // namespace
}  // namespace fastdl::cpu::batch_norm

FASTDL_EXPORT const char* fastdl_batch_norm_forward(const fastdl::BatchNormForward* p,
                                                    fastdl::Context* context) {
  using namespace fastdl;
  using namespace fastdl::cpu::batch_norm;
  int64_t channels = p->x.size[1];
  if (p->x.numel() == 0) {
    for (int64_t c = 0; c < channels; ++c) {
      // no batch, no statistics
      if (p->mean)
        static_cast<float*>(p->mean.data)[c] = p->training ? 0.0f : parameter(p->running_mean, c, 0.0f);
      if (p->invstd)
        static_cast<float*>(p->invstd.data)[c] =
            p->training ? 0.0f : invstd_of(parameter(p->running_var, c, 1.0f), p->eps);
    }
    return nullptr;
  }
  Call call{*p, context, layout_of(p->x), false, {}};
  Scratch scratch;
  int64_t each = call.l.constants() + cpu::kWidth;
  if (!scratch.reserve(context, 3 * each * 4)) return kNoMemory;
  for (int i = kMean; i <= kBias; ++i) call.constants[i] = scratch.take<float>(each);
  const char* error = nullptr;
  bool known = cpu::with_float(p->x.dtype, [&](auto zero) { error = dispatch<decltype(zero)>(call); });
  return known ? error : "expected float32, float16 or bfloat16";
}
