// How the CPU kernels of batch_norm see a tensor, and how they walk it.
//
// planes: [N, C, S], contiguous, S at least kShortPlane. The values of a channel lie in N runs of S.
// rows:   a matrix [R, L] whose column j belongs to channel (j / S) % C: channels-last and 2-D tensors (S =
// 1), and
//         contiguous ones of short planes. Rows of a few values are joined into whole vectors, and again for
//         the elementwise pass; the last one may then be shorter. Constants are expanded to one per column.
//
// A run of consecutive values is walked by `sweep`, in whole vectors and then one of these:
//   Overlap  the run's last kWidth values, of which the first `skip` were seen already
//   Part     a run of n < kWidth values
// whose keep(v, other) gives v in the lanes that count and other (0) in the rest.
#pragma once

#include <algorithm>
#include <cstddef>

#include "../batch_norm.h"
#include "parallel.h"
#include "vec.h"

namespace fastdl::cpu::batch_norm {

constexpr int64_t kShortPlane = 16;
constexpr int64_t kGrain = 16384;                      // values worth a thread of their own
constexpr int64_t kPiece = 1024 * kWidth;              // values of a run that are worth cutting off
constexpr int64_t kRow = 512;                          // values that short rows are joined to
constexpr int64_t kStreamedBytes = int64_t{16} << 20;  // of an output that no cache would keep
constexpr int64_t kBlock = 16384;  // values that are walked forwards when rows are walked backwards
constexpr int64_t kTile = 512;     // values staged in the L1 cache
constexpr int64_t kGroup = 64;     // most channels that are walked side by side
constexpr int64_t kHotBytes = int64_t{512}
                              << 10;  // of one operand, what a thread hopes to find again in its L2 cache

struct Whole {
  template <class T>
  FASTDL_INLINE Vec load(const T* p) const {
    return cpu::load(p);
  }
  template <class T>
  FASTDL_INLINE void store(T* p, Vec v) const {
    cpu::store(p, v);
  }
  FASTDL_INLINE Vec keep(Vec v, Vec = Vec{}) const { return v; }
};

// A whole vector at an aligned address, stored past the caches.
struct Streamed : Whole {
  template <class T>
  FASTDL_INLINE void store(T* p, Vec v) const {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) {
      _mm512_stream_ps(reinterpret_cast<float*>(p), v);
    } else {
      T narrow[kWidth];
      cpu::store(narrow, v);
      _mm256_stream_si256(reinterpret_cast<__m256i*>(p),
                          _mm256_loadu_si256(reinterpret_cast<__m256i*>(narrow)));
    }
#elif defined(__AVX2__)
    if constexpr (sizeof(T) == 4) {
      _mm256_stream_ps(reinterpret_cast<float*>(p), v);
    } else {
      T narrow[kWidth];
      cpu::store(narrow, v);
      _mm_stream_si128(reinterpret_cast<__m128i*>(p), _mm_loadu_si128(reinterpret_cast<__m128i*>(narrow)));
    }
#else
    cpu::store(p, v);
#endif
  }
};

// Whether stores of vectors from p on may be Streamed.
template <class T>
FASTDL_INLINE bool aligned(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % (kWidth * sizeof(T)) == 0;
}
// Streamed stores become visible in order.
FASTDL_INLINE void fence() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

struct Overlap : Whole {
  int64_t skip;
  FASTDL_INLINE explicit Overlap(int64_t skip) : skip(skip) {}
  FASTDL_INLINE Vec keep(Vec v, Vec other = Vec{}) const {
    return select(iota() >= static_cast<int32_t>(skip), v, other);
  }
};

struct Part {
  int64_t n;
  template <class T>
  FASTDL_INLINE Vec load(const T* p) const {
    return cpu::load(p, n);
  }
  template <class T>
  FASTDL_INLINE void store(T* p, Vec v) const {
    cpu::store(p, v, n);
  }
  FASTDL_INLINE Vec keep(Vec v, Vec other = Vec{}) const {
    return select(iota() < static_cast<int32_t>(n), v, other);
  }
};

// f(j, part, u): values [j, j + kWidth) of a run of n; u counts through 0 ... unroll - 1, for as many
// accumulators.
template <int unroll = 1, class First = Whole, class F>
FASTDL_INLINE void sweep(int64_t n, const F& f) {
  int64_t j = 0;
  for (; j + unroll * kWidth <= n; j += unroll * kWidth)
    for (int u = 0; u < unroll; ++u) f(j + u * kWidth, First{}, u);
  if constexpr (unroll > 1)
    for (; j + kWidth <= n; j += kWidth) f(j, First{}, 0);
  if (j == n) return;
  if (n >= kWidth) {
    f(n - kWidth, Overlap(j - (n - kWidth)), 0);
  } else {
    f(int64_t{0}, Part{n}, 0);
  }
}

struct Layout {
  bool planes;
  int64_t n, c, s;  // of planes; c and s also of rows
  int64_t numel;
  int64_t length;  // L
  int64_t joined;  // this many rows make one of the elementwise pass

  int64_t count() const { return numel / c; }  // values per channel
  int64_t rows() const { return (numel + length - 1) / length; }
  int64_t columns(int64_t row) const { return std::min(length, numel - row * length); }
  // Whether outputs are stored past the caches: too large for them, and every run starts where a vector may.
  bool streamed(int64_t bytes_per_value) const {
    return numel * bytes_per_value >= kStreamedBytes && (planes ? s : length * joined) % kWidth == 0;
  }
  int64_t constants() const { return planes ? c : length * joined; }  // how many of each
};

inline Layout layout_of(const Tensor& x) {
  Layout l;
  l.numel = x.numel();
  l.n = x.size[0];
  l.c = x.size[1];
  l.s = l.numel / (l.n * l.c);
  bool channels_last = x.dim > 2 && x.stride[1] == 1 && l.s > 1 && l.c > 1;
  if (l.c == 1) {
    l.s = l.numel;
    l.n = 1;
  } else if (channels_last || l.s == 1) {
    l.n *= l.s;
    l.s = 1;
  }
  l.planes = l.c == 1 || l.s >= kShortPlane;
  l.length = l.c * l.s;
  if (!l.planes && l.length < 4 * kWidth) {
    int64_t whole = l.length;
    while (whole % kWidth) whole += l.length;
    l.length = (4 * kWidth + whole - 1) / whole * whole;
  }
  l.joined = (std::max(kRow, l.length) + l.length - 1) / l.length;
  return l;
}

// The channels' constants, each [constants() + kWidth] float32.
enum Constant { kMean, kScale, kBias, kMeanDz, kSlope, kConstants };

// The constants of one channel, or of the columns that a run of a row covers.
struct OfChannel {
  Vec value[kConstants];
  FASTDL_INLINE OfChannel(float* const* constants, int64_t c, int first = 0, int last = kConstants) {
    for (int i = first; i < last; ++i) value[i] = splat(constants[i][c]);
  }
  FASTDL_INLINE Vec operator()(Constant which, int64_t) const { return value[which]; }
};
struct OfColumns {
  const float* value[kConstants];
  FASTDL_INLINE OfColumns(float* const* constants, int64_t column) {
    for (int i = 0; i < kConstants; ++i) value[i] = constants[i] ? constants[i] + column : nullptr;
  }
  FASTDL_INLINE Vec operator()(Constant which, int64_t j) const { return cpu::load(value[which] + j); }
};

// From one constant per channel, at the front of each array, to one per column.
inline void expand(const Layout& l, float* const* constants, int count) {
  if (l.planes || l.length == l.c) return;
  for (int i = 0; i < count; ++i)
    for (int64_t j = l.length - 1; j >= l.c; --j) constants[i][j] = constants[i][(j / l.s) % l.c];
  if (l.s == 1) return;
  for (int i = 0; i < count; ++i)
    for (int64_t j = std::min(l.c, l.length) - 1; j > 0; --j) constants[i][j] = constants[i][j / l.s];
}

// Rows of the elementwise pass: short rows joined, which spares the way from one to the next.
inline void join(Layout& l, float* const* constants, int count) {
  if (l.planes) return;
  for (int i = 0; i < count; ++i)
    for (int64_t j = l.length; j < l.constants(); ++j) constants[i][j] = constants[i][j - l.length];
  l.length *= l.joined;
  l.joined = 1;
}

// Part of the planes: channels [c0, c1), runs [n0, n1), positions [s0, s1).
struct Box {
  int64_t c0, c1, n0, n1, s0, s1;
  int64_t per_channel() const { return (n1 - n0) * (s1 - s0); }
};

// f(first value, how many, channel) for the runs of planes within [begin, end).
template <class F>
FASTDL_INLINE void for_runs(const Layout& l, int64_t begin, int64_t end, const F& f) {
  int64_t plane = begin / l.s, offset = begin % l.s, c = plane % l.c;
  while (begin < end) {
    int64_t n = std::min(l.s - offset, end - begin);
    f(begin, n, c);
    begin += n;
    offset = 0;
    if (++c == l.c) c = 0;
  }
}

// How training and its backward are cut. Planes: groups of `group` channels which a thread takes through both
// passes while they are in its cache; or (group == 0) both passes one after the other, the first over pieces
// of channels. Rows: `parts`, each a range of rows.
struct Plan {
  int64_t group = 0;
  int64_t pieces_n = 1, pieces_s = 1;  // per channel
  int64_t parts = 1;
};

// Whether the mask is written does not change how sums are taken, hence no bit of the results.
inline Plan plan_of(const Layout& l, const Context* context, int64_t bytes_per_value, bool writes_mask) {
  Plan plan;
  int64_t threads = std::max<int64_t>(1, std::min<int64_t>(context->num_threads, l.numel / kGrain));
  auto balanced = [threads](int64_t items) {
    return items * 4 >= (items + threads - 1) / threads * threads * 3;
  };
  if (!l.planes) {
    plan.parts = std::min(threads, (l.rows() + 7) / 8);
  } else if (!balanced(l.c)) {
    int64_t pieces = (4 * threads + l.c - 1) / l.c;
    plan.pieces_n = std::min(pieces, l.n);
    plan.pieces_s = std::min((pieces + plan.pieces_n - 1) / plan.pieces_n, (l.s + kPiece - 1) / kPiece);
  } else {
    // a group's part of the mask is whole bytes
    int64_t unit = writes_mask && l.s % 8 != 0 ? 8 : 1;
    // runs of a page or so at a time, as long as the group stays in the cache and every thread gets its share
    int64_t page = (4096 + l.s * bytes_per_value - 1) / (l.s * bytes_per_value);
    int64_t hot = kHotBytes / (l.n * l.s * bytes_per_value);
    int64_t group = std::max(unit, std::min({page, hot, kGroup, l.c / (threads * 2)}) / unit * unit);
    if (l.c % unit == 0 && balanced((l.c + group - 1) / group)) plan.group = group;
  }
  return plan;
}

inline int64_t cut(int64_t n, int64_t parts, int64_t i, int64_t unit = 1) {
  int64_t units = (n + unit - 1) / unit;
  return std::min(n, (units * i + parts - 1) / parts * unit);
}

// Piece i of c * pieces_n * pieces_s, the channel outermost.
inline Box piece_of(const Layout& l, const Plan& plan, int64_t i) {
  int64_t s = i % plan.pieces_s, n = i / plan.pieces_s % plan.pieces_n,
          c = i / (plan.pieces_s * plan.pieces_n);
  return {c,
          c + 1,
          cut(l.n, plan.pieces_n, n),
          cut(l.n, plan.pieces_n, n + 1),
          cut(l.s, plan.pieces_s, s),
          cut(l.s, plan.pieces_s, s + 1)};
}

// f(first, last) on blocks of rows [begin, end), the last block first, for what a pass before left in the
// cache; large enough for the prefetcher to catch up. begin is a multiple of 8, and so is every `first`.
template <class F>
FASTDL_INLINE void blocks_backwards(const Layout& l, int64_t begin, int64_t end, const F& f) {
  const int64_t block = (kBlock / l.length + 8) / 8 * 8;
  for (int64_t first = begin + (end - 1 - begin) / block * block; first >= begin; first -= block)
    f(first, std::min(first + block, end));
}

// Arrays carved out of one block of scratch memory.
class Scratch {
 public:
  bool reserve(Context* context, int64_t bytes) {
    next_ = static_cast<std::byte*>(context->allocate(context, bytes + 64 * 16));
    return next_ != nullptr;
  }
  template <class T>
  T* take(int64_t n) {
    T* taken = reinterpret_cast<T*>(next_);
    next_ += (n * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return taken;
  }

 private:
  std::byte* next_ = nullptr;
};

constexpr const char* kNoMemory = "out of memory";

// An element of a vector [C] in float32 or the dtype of x.
inline float parameter(const Tensor& t, int64_t c, float absent) {
  if (!t) return absent;
  switch (t.dtype) {
    case DType::kFloat16:
      return to_float(static_cast<const f16*>(t.data)[c]);
    case DType::kBFloat16:
      return to_float(static_cast<const bf16*>(t.data)[c]);
    default:
      return static_cast<const float*>(t.data)[c];
  }
}
inline void set_parameter(const Tensor& t, int64_t c, double value) {
  if (!t) return;
  float x = static_cast<float>(value);
  switch (t.dtype) {
    case DType::kFloat16:
      static_cast<f16*>(t.data)[c] = from_float<f16>(x);
      break;
    case DType::kBFloat16:
      static_cast<bf16*>(t.data)[c] = from_float<bf16>(x);
      break;
    default:
      static_cast<float*>(t.data)[c] = x;
  }
}

}  // namespace fastdl::cpu::batch_norm
