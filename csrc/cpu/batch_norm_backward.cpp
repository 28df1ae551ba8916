// batch_norm's backward. dz = grad_out * act' is the residual's gradient, its sums per channel give
//   grad_bias = sum dz, grad_weight = sum dz * xhat, xhat = (x - mean) * invstd,
// and grad_x = (dz - mean(dz) - xhat * mean(dz * xhat)) * scale in training, dz * scale with fixed
// statistics.
#include "activation.h"
#include "batch_norm_mask.h"
#include "batch_norm_statistics.h"
#include "dispatch.h"

namespace fastdl::cpu::batch_norm {
namespace {

// Where act' comes from. kStaged: any activation other than relu, and relu from out: dz is computed
// beforehand, a tile at a time, by a function of its own (Stage).
enum class Source { kNone, kMask, kReLU, kStaged };
enum class GradX { kNone, kFixed, kBatch };

// dz of n values from `begin` on, float32; `column`: of the row, or the channel.
using Stage = void (*)(const BatchNormBackward& p, float* const* constants, int64_t begin, int64_t n,
                       int64_t column, float* dz);

struct Call {
  const BatchNormBackward& p;
  Context* context;
  Layout l;
  Stage stage;
  bool streamed;  // the gradients are too large for the caches
  float* constants[kConstants] = {};
};

FASTDL_INLINE OfChannel of_place(float* const* constants, int64_t c, std::true_type) {
  return {constants, c};
}
FASTDL_INLINE OfColumns of_place(float* const* constants, int64_t j, std::false_type) {
  return {constants, j};
}

// ------------------------------------------------------------------------------------- dz of a run

template <class T, Activation activation, bool from_out, class Planes>
void stage_run(const BatchNormBackward& p, float* const* constants, int64_t begin, int64_t n, int64_t place,
               float* dz) {
  const T* x = static_cast<const T*>(p.x.data) + begin;
  const T* out = static_cast<const T*>(p.out.data) + begin;
  const T* grad = static_cast<const T*>(p.grad_out.data) + begin;
  const float param = p.activation_param;
  auto of = of_place(constants, place, Planes{});
  sweep(n, [&](int64_t j, auto part, int) {
    Vec dy = part.load(grad + j);
    if constexpr (from_out) {
      part.store(dz + j, activation_grad<activation>(dy, part.load(out + j), param));
    } else {
      Vec z = fused(part.load(x + j) - of(kMean, j), of(kScale, j), of(kBias, j));
      // which side of the kink: that of z in x's dtype, as mask, out and torch have it
      constexpr bool kink = activation == Activation::kLeakyReLU || activation == Activation::kELU;
      if constexpr (kink) z = narrow<T>(z);
      part.store(dz + j, activation_grad_at<activation>(dy, z, param));
    }
  });
}

// dz of the vector at j of a run that begins at `begin`.
template <class T, Source source, class P, class Of>
FASTDL_INLINE Vec incoming(P part, const T* grad, Vec centred, const uint8_t* mask, const float* staged,
                           int64_t begin, int64_t j, const Of& of) {
  if constexpr (source == Source::kStaged) return part.load(staged + j);
  Vec dy = part.load(grad + j);
  if constexpr (source == Source::kMask) return select(passes(part, mask, begin + j), dy, Vec{});
  if constexpr (source == Source::kReLU) {
    Vec z = narrow<T>(fused(centred, of(kScale, j), of(kBias, j)));
    return select(z <= 0.0f, Vec{}, dy);
  }
  return dy;
}

// --------------------------------------------------------------------------------- the inner loops

template <class T, Source source>
FASTDL_INLINE void gradient_terms(const Call& call, const OfChannel& of, int64_t begin, int64_t n,
                                  const float* staged, Wide* two) {
  constexpr int kUnroll = 4;
  const T* x = static_cast<const T*>(call.p.x.data) + begin;
  const T* grad = static_cast<const T*>(call.p.grad_out.data) + begin;
  const auto* mask = static_cast<const uint8_t*>(call.p.mask.data);
  Wide total[kUnroll] = {two[0]}, product[kUnroll] = {two[1]};
  sweep<kUnroll>(n, [&](int64_t j, auto part, int u) {
    const Vec value = part.load(x + j), mean = of(kMean, j);
    const Wide dz =
        widen(part.keep(incoming<T, source>(part, grad, value - mean, mask, staged, begin, j, of)));
    total[u] += dz;
    product[u] = fma(dz, widen(part.keep(value)), product[u]);
  });
  for (int u = 1; u < kUnroll; ++u) total[0] += total[u], product[0] += product[u];
  two[0] = total[0];
  two[1] = product[0];
}

constexpr int64_t kPrefetch = 2048;  // values ahead: 8 KB of float32

// The same of the columns of some rows; the rows of `staged` are kTile apart.
template <class T, Source source, int64_t rows>
FASTDL_INLINE void gradient_terms(const Call& call, int64_t begin, int64_t column, int64_t n,
                                  const float* staged, double* const* sums) {
  const int64_t stride = call.l.length;
  const T* x = static_cast<const T*>(call.p.x.data) + begin;
  const T* grad = static_cast<const T*>(call.p.grad_out.data) + begin;
  const auto* mask = static_cast<const uint8_t*>(call.p.mask.data);
  OfColumns of(call.constants, column);
  sweep(n, [&](int64_t j, auto part, int) {
    const Vec mean = of(kMean, j);
    Wide total = cpu::load(sums[0] + column + j), product = cpu::load(sums[1] + column + j);
    for (int64_t r = 0; r < rows; ++r) {
      // the order of the lines, a column of rows at a time, is none that the processor foresees
      __builtin_prefetch(x + r * stride + j + kPrefetch);
      __builtin_prefetch(grad + r * stride + j + kPrefetch);
      const Vec value = part.load(x + r * stride + j);
      const Wide dz = widen(part.keep(incoming<T, source>(part, grad + r * stride, value - mean, mask,
                                                          staged + r * kTile, begin + r * stride, j, of)));
      total += dz;
      product = fma(dz, widen(part.keep(value)), product);
    }
    cpu::store(sums[0] + column + j, total);
    cpu::store(sums[1] + column + j, product);
  });
}

template <class T, Source source, GradX grad_x, bool residual, class Of>
FASTDL_INLINE void gradient_run(const Call& call, const Of& of, int64_t begin, int64_t n,
                                const float* staged) {
  constexpr bool reads_x = grad_x == GradX::kBatch || source == Source::kReLU;
  const T* x = static_cast<const T*>(call.p.x.data) + begin;
  const T* grad = static_cast<const T*>(call.p.grad_out.data) + begin;
  const auto* mask = static_cast<const uint8_t*>(call.p.mask.data);
  T* to_x = static_cast<T*>(call.p.grad_x.data) + begin;
  T* to_residual = static_cast<T*>(call.p.grad_residual.data) + begin;
  auto step = [&](int64_t j, auto part, int) {
    Vec centred{};
    if constexpr (reads_x) centred = part.load(x + j) - of(kMean, j);
    Vec dz = incoming<T, source>(part, grad, centred, mask, staged, begin, j, of);
    if constexpr (residual) part.store(to_residual + j, dz);
    if constexpr (grad_x == GradX::kBatch)
      part.store(to_x + j, (dz - of(kMeanDz, j) - centred * of(kSlope, j)) * of(kScale, j));
    if constexpr (grad_x == GradX::kFixed) part.store(to_x + j, dz * of(kScale, j));
  };
  if (source != Source::kStaged && call.streamed && (grad_x == GradX::kNone || aligned(to_x)) &&
      (!residual || aligned(to_residual))) {
    sweep<1, std::conditional_t<source == Source::kStaged, Whole, Streamed>>(n, step);
  } else {
    sweep(n, step);
  }
}

// --------------------------------------------------------------------------------------- the walks

// f(begin, place, n, staged) for n values of one channel (place) or row (from column place on), by tiles
// where staged.
template <Source source, class F>
FASTDL_INLINE void by_tiles(const Call& call, int64_t begin, int64_t place, int64_t n, const F& f) {
  if constexpr (source == Source::kStaged) {
    alignas(64) float staged[kTile];
    for (int64_t j = 0; j < n; j += kTile) {
      int64_t size = std::min(kTile, n - j), at = call.l.planes ? place : place + j;
      call.stage(call.p, call.constants, begin + j, size, at, staged);
      f(begin + j, at, size, staged);
    }
  } else {
    f(begin, place, n, nullptr);
  }
}

template <class T, Source source>
void sums_of_box(const Call& call, const Box& box, double* sums) {
  plane_sums(call.l, box, sums, [&](int64_t begin, int64_t n, int64_t c, Wide* two) {
    OfChannel of(call.constants, c, kMean, kBias + 1);
    by_tiles<source>(call, begin, c, n, [&](int64_t first, int64_t, int64_t size, const float* staged) {
      gradient_terms<T, source>(call, of, first, size, staged, two);
    });
  });
}

template <class T, Source source>
void sums_of_rows(const Call& call, int64_t begin, int64_t end, const RowSums& sums) {
  const Layout& l = call.l;
  row_sums(l, begin, end, sums, [&](int64_t row, auto rows, int64_t columns, double* const* columns_of) {
    constexpr int64_t kCount = decltype(rows)::value;
    if constexpr (source == Source::kStaged) {
      alignas(64) float staged[kCount * kTile];
      for (int64_t j = 0; j < columns; j += kTile) {
        int64_t size = std::min(kTile, columns - j);
        for (int64_t r = 0; r < kCount; ++r)
          call.stage(call.p, call.constants, (row + r) * l.length + j, size, j, staged + r * kTile);
        gradient_terms<T, source, kCount>(call, row * l.length + j, j, size, staged, columns_of);
      }
    } else {
      gradient_terms<T, source, kCount>(call, row * l.length, 0, columns, nullptr, columns_of);
    }
  });
}

// The elementwise pass: of a box of planes, of a range of values of planes, of rows. What was read last comes
// first.
template <class T, Source source, GradX grad_x, bool residual>
struct Gradients {
  static void run(const Call& call, int64_t begin, int64_t place, int64_t n, std::true_type) {
    OfChannel of(call.constants, place);
    by_tiles<source>(call, begin, place, n, [&](int64_t first, int64_t, int64_t size, const float* staged) {
      gradient_run<T, source, grad_x, residual>(call, of, first, size, staged);
    });
  }
  static void run(const Call& call, int64_t begin, int64_t place, int64_t n, std::false_type) {
    by_tiles<source>(
        call, begin, place, n, [&](int64_t first, int64_t at, int64_t size, const float* staged) {
          gradient_run<T, source, grad_x, residual>(call, OfColumns(call.constants, at), first, size, staged);
        });
  }

  static void box(const Call& call, const Box& box) {
    const Layout& l = call.l;
    for (int64_t n = box.n1 - 1; n >= box.n0; --n)
      for (int64_t c = box.c0; c < box.c1; ++c) run(call, (n * l.c + c) * l.s, c, l.s, std::true_type{});
    fence();
  }
  static void range(const Call& call, int64_t begin, int64_t end) {
    if (call.l.planes) {
      for_runs(call.l, begin, end,
               [&](int64_t first, int64_t n, int64_t c) { run(call, first, c, n, std::true_type{}); });
    } else {
      blocks_backwards(call.l, begin, end, [&](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; ++row)
          run(call, row * call.l.length, 0, call.l.columns(row), std::false_type{});
      });
    }
    fence();
  }
};

// What a call is made of, chosen once.
struct Kernels {
  void (*sums_of_box)(const Call&, const Box&, double*);
  void (*sums_of_rows)(const Call&, int64_t, int64_t, const RowSums&);
  void (*box)(const Call&, const Box&) = nullptr;
  void (*range)(const Call&, int64_t, int64_t) = nullptr;
};

template <class T, Source source, GradX grad_x, bool residual>
void set_elementwise(Kernels& kernels) {
  kernels.box = Gradients<T, source, grad_x, residual>::box;
  kernels.range = Gradients<T, source, grad_x, residual>::range;
}

template <class T, Source source>
Kernels kernels_of(const BatchNormBackward& p) {
  Kernels k{sums_of_box<T, source>, sums_of_rows<T, source>};
  bool residual = bool(p.grad_residual);
  if (p.grad_x && p.training) {
    residual ? set_elementwise<T, source, GradX::kBatch, true>(k)
             : set_elementwise<T, source, GradX::kBatch, false>(k);
  } else if (p.grad_x) {
    residual ? set_elementwise<T, source, GradX::kFixed, true>(k)
             : set_elementwise<T, source, GradX::kFixed, false>(k);
  } else if (residual) {
    set_elementwise<T, source, GradX::kNone, true>(k);
  }
  return k;
}

template <class T>
Kernels choose(Call& call) {
  const BatchNormBackward& p = call.p;
  if (p.activation == Activation::kNone) return kernels_of<T, Source::kNone>(p);
  if (p.mask) return kernels_of<T, Source::kMask>(p);
  if (p.activation == Activation::kReLU && !p.out) return kernels_of<T, Source::kReLU>(p);
  with_activation(p.activation, [&](auto constant) {
    constexpr Activation activation = decltype(constant)::value;
    if constexpr (activation != Activation::kNone) {
      if (p.out) {
        call.stage = call.l.planes ? stage_run<T, activation, true, std::true_type>
                                   : stage_run<T, activation, true, std::false_type>;
      } else {
        call.stage = call.l.planes ? stage_run<T, activation, false, std::true_type>
                                   : stage_run<T, activation, false, std::false_type>;
      }
    }
  });
  return kernels_of<T, Source::kStaged>(p);
}

// --------------------------------------------------------------------------------------- the paths

// The gradients of a channel's parameters from sum dz and sum dz * x, and the means that grad_x takes away.
// float64 has digits enough to take the mean off x in the sum.
void set_channel(const Call& call, int64_t c, const double* sums) {
  const BatchNormBackward& p = call.p;
  double mean = static_cast<const float*>(p.mean.data)[c],
         invstd = static_cast<const float*>(p.invstd.data)[c];
  double count = static_cast<double>(call.l.count()), product = (sums[1] - mean * sums[0]) * invstd;
  set_parameter(p.grad_bias, c, sums[0]);
  set_parameter(p.grad_weight, c, product);
  call.constants[kMeanDz][c] = static_cast<float>(sums[0] / count);
  call.constants[kSlope][c] = static_cast<float>(product / count * invstd);
}

const char* reduce_planes(Call& call, const Kernels& kernels, const Plan& plan) {
  const Layout& l = call.l;
  if (plan.group) {
    int64_t groups = (l.c + plan.group - 1) / plan.group, grain = 1 + kGrain / (plan.group * l.count());
    parallel(call.context, groups, grain, [&](int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; ++g) {
        Box box{g * plan.group, std::min(l.c, (g + 1) * plan.group), 0, l.n, 0, l.s};
        double sums[kGroup * 2];
        kernels.sums_of_box(call, box, sums);
        for (int64_t c = box.c0; c < box.c1; ++c) set_channel(call, c, sums + 2 * (c - box.c0));
        if (kernels.box) kernels.box(call, box);
      }
    });
    return nullptr;
  }
  int64_t per_channel = plan.pieces_n * plan.pieces_s, pieces = l.c * per_channel;
  Scratch scratch;
  if (!scratch.reserve(call.context, pieces * 16)) return kNoMemory;
  double* sums = scratch.take<double>(pieces * 2);
  parallel(call.context, pieces, 1 + kGrain * pieces / l.numel, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) kernels.sums_of_box(call, piece_of(l, plan, i), sums + 2 * i);
  });
  for (int64_t c = 0; c < l.c; ++c) {
    double* total = sums + 2 * c * per_channel;
    for (int64_t i = 1; i < per_channel; ++i)
      for (int k = 0; k < 2; ++k) total[k] += total[2 * i + k];
    set_channel(call, c, total);
  }
  return nullptr;
}

const char* reduce_rows(Call& call, const Kernels& kernels, int64_t parts) {
  const Layout& l = call.l;
  Scratch scratch;
  int64_t bytes = parts * (RowSums::bytes(l) + static_cast<int64_t>(sizeof(RowSums))) + l.c * 16;
  if (!scratch.reserve(call.context, bytes)) return kNoMemory;
  RowSums* sums = scratch.take<RowSums>(parts);
  double* total = scratch.take<double>(2 * l.c);
  for (int64_t i = 0; i < parts; ++i) sums[i].take(scratch, l);
  parallel(call.context, parts, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i)
      kernels.sums_of_rows(call, cut(l.rows(), parts, i, 8), cut(l.rows(), parts, i + 1, 8), sums[i]);
  });
  combine_rows(l, sums, parts, total);
  for (int64_t c = 0; c < l.c; ++c) set_channel(call, c, total + 2 * c);
  float* const found[2] = {call.constants[kMeanDz], call.constants[kSlope]};
  expand(l, found, 2);
  return nullptr;
}

const char* run(Call& call, const Kernels& kernels) {
  const BatchNormBackward& p = call.p;
  Layout& l = call.l;
  int64_t bytes = p.x.dtype == DType::kFloat32 ? 4 : 2;
  Plan plan = plan_of(l, call.context, 2 * bytes, false);
  call.streamed = l.streamed(bytes);
  for (int64_t c = 0; c < l.c; ++c) {
    call.constants[kMean][c] = static_cast<const float*>(p.mean.data)[c];
    call.constants[kScale][c] = parameter(p.weight, c, 1.0f) * static_cast<const float*>(p.invstd.data)[c];
    call.constants[kBias][c] = parameter(p.bias, c, 0.0f);
  }
  expand(l, call.constants, kBias + 1);
  if (p.grad_weight || p.grad_bias || (p.grad_x && p.training)) {
    const char* error =
        l.planes ? reduce_planes(call, kernels, plan) : reduce_rows(call, kernels, plan.parts);
    if (error || (l.planes && plan.group)) return error;
  }
  if (!kernels.range) return nullptr;
  join(l, call.constants, kConstants);
  if (l.planes) {
    parallel(call.context, l.numel, kGrain,
             [&](int64_t begin, int64_t end) { kernels.range(call, begin, end); });
  } else {
    parallel(call.context, plan.parts, 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i)
        kernels.range(call, cut(l.rows(), plan.parts, i, 8), cut(l.rows(), plan.parts, i + 1, 8));
    });
  }
  return nullptr;
}

}  // namespace
}  // namespace fastdl::cpu::batch_norm

FASTDL_EXPORT const char* fastdl_batch_norm_backward(const fastdl::BatchNormBackward* p,
                                                     fastdl::Context* context) {
  using namespace fastdl;
  using namespace fastdl::cpu::batch_norm;
  if (p->x.numel() == 0) {
    for (int64_t c = 0; c < p->x.size[1]; ++c) {
      set_parameter(p->grad_weight, c, 0.0);
      set_parameter(p->grad_bias, c, 0.0);
    }
    return nullptr;
  }
  Call call{*p, context, layout_of(p->x), nullptr, false, {}};
  Scratch scratch;
  int64_t each = call.l.constants() + cpu::kWidth;
  if (!scratch.reserve(context, kConstants * each * 4)) return kNoMemory;
  for (float*& constants : call.constants) constants = scratch.take<float>(each);
  const char* error = nullptr;
  bool known =
      cpu::with_float(p->x.dtype, [&](auto zero) { error = run(call, choose<decltype(zero)>(call)); });
  return known ? error : "expected float32, float16 or bfloat16";
}
