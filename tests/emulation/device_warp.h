// Barriers, warp operations, fences, atomics, cached accesses. Where a call stands in the source travels
// along as default arguments: threads that wait at different places do not meet.
#pragma once

#include <cstdint>
#include <type_traits>

#include "device_types.h"

#define FASTDL_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define FASTDL_HERE file, line

namespace emulation {
enum class Vote { kNone, kAnd, kOr, kCount };
FASTDL_HIDDEN int barrier(Vote vote, int predicate, FASTDL_PLACE);
// Waits for the lanes of the mask and gives what all 32 brought, to be read at once. `ordered`: what they did
// to memory before is seen after.
FASTDL_HIDDEN const uint64_t* warp_exchange(unsigned mask, uint64_t mine, bool ordered, const char* what,
                                            FASTDL_PLACE);
FASTDL_HIDDEN int lane();
FASTDL_HIDDEN void fence();
FASTDL_HIDDEN void yield();
[[noreturn]] FASTDL_HIDDEN void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
FASTDL_HIDDEN void* dynamic_shared();
FASTDL_HIDDEN unsigned cluster_rank();
FASTDL_HIDDEN unsigned cluster_size();
FASTDL_HIDDEN void cluster_arrive(FASTDL_PLACE);
FASTDL_HIDDEN void cluster_wait(FASTDL_PLACE);
FASTDL_HIDDEN void* map_shared(const void* p, unsigned rank);

// For twins of instructions in which lanes share registers (mma): every lane sees what all 32 brought.
template <class T>
inline void exchange(const T& mine, T (&all)[32], FASTDL_PLACE) {
  const uint64_t* lanes =
      warp_exchange(~0u, reinterpret_cast<uint64_t>(&mine), false, "a warp-wide instruction", FASTDL_HERE);
  for (int i = 0; i < 32; ++i) all[i] = *reinterpret_cast<const T*>(lanes[i]);
  warp_exchange(~0u, 0, false, "the end of a warp-wide instruction",
                FASTDL_HERE);  // nobody's `mine` dies before
}

template <class T>
using if_shuffled = std::enable_if_t<std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), T>;

template <class T>
inline T shuffle(unsigned mask, T value, int source, const char* what, FASTDL_PLACE) {
  uint64_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof(T));
  const uint64_t* all = warp_exchange(mask, bits, false, what, FASTDL_HERE);
  if (!(mask >> source & 1))
    fail("%s reads lane %d, which mask %08x does not name (%s:%d)", what, source, mask, file, line);
  __builtin_memcpy(&value, &all[source], sizeof(T));
  return value;
}

template <class T, class F>
inline T warp_fold(unsigned mask, T value, F fold, const char* what, FASTDL_PLACE) {
  const uint64_t* all = warp_exchange(mask, uint64_t(value), false, what, FASTDL_HERE);
  T result = value;
  for (int i = 0; i < 32; ++i) {
    if (mask >> i & 1 && i != lane()) result = fold(result, T(all[i]));
  }
  return result;
}
}  // namespace emulation

// ---- Barriers and fences ----

inline void __syncthreads(FASTDL_PLACE) { emulation::barrier(emulation::Vote::kNone, 0, FASTDL_HERE); }
inline int __syncthreads_and(int p, FASTDL_PLACE) {
  return emulation::barrier(emulation::Vote::kAnd, p, FASTDL_HERE);
}
inline int __syncthreads_or(int p, FASTDL_PLACE) {
  return emulation::barrier(emulation::Vote::kOr, p, FASTDL_HERE);
}
inline int __syncthreads_count(int p, FASTDL_PLACE) {
  return emulation::barrier(emulation::Vote::kCount, p, FASTDL_HERE);
}
inline void __syncwarp(unsigned mask = ~0u, FASTDL_PLACE) {
  emulation::warp_exchange(mask, 0, true, "__syncwarp", FASTDL_HERE);
}
inline void __threadfence() { emulation::fence(); }
inline void __threadfence_block() { emulation::fence(); }
inline void __threadfence_system() { emulation::fence(); }
inline void __nanosleep(unsigned) { emulation::yield(); }
[[noreturn]] inline void __trap() { emulation::fail("__trap()"); }
FASTDL_HIDDEN long long clock64();

// ---- Warp operations ----

template <class T>
inline emulation::if_shuffled<T> __shfl_sync(unsigned mask, T value, int source, int width = 32,
                                             FASTDL_PLACE) {
  const int base = emulation::lane() & ~(width - 1);
  return emulation::shuffle(mask, value, base + (source & (width - 1)), "__shfl_sync", FASTDL_HERE);
}
template <class T>
inline emulation::if_shuffled<T> __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                                                FASTDL_PLACE) {
  const int lane = emulation::lane(), base = lane & ~(width - 1), source = lane - int(delta);
  return emulation::shuffle(mask, value, source < base ? lane : source, "__shfl_up_sync", FASTDL_HERE);
}
template <class T>
inline emulation::if_shuffled<T> __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                                                  FASTDL_PLACE) {
  const int lane = emulation::lane(), end = (lane & ~(width - 1)) + width, source = lane + int(delta);
  return emulation::shuffle(mask, value, source >= end ? lane : source, "__shfl_down_sync", FASTDL_HERE);
}
template <class T>
inline emulation::if_shuffled<T> __shfl_xor_sync(unsigned mask, T value, int flip, int width = 32,
                                                 FASTDL_PLACE) {
  const int lane = emulation::lane(), end = (lane & ~(width - 1)) + width, source = lane ^ flip;
  return emulation::shuffle(mask, value, source >= end ? lane : source, "__shfl_xor_sync", FASTDL_HERE);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, FASTDL_PLACE) {
  const uint64_t* all = emulation::warp_exchange(mask, predicate != 0, false, "__ballot_sync", FASTDL_HERE);
  unsigned votes = 0;
  for (int i = 0; i < 32; ++i) {
    if (mask >> i & 1) votes |= unsigned(all[i]) << i;
  }
  return votes;
}
inline int __any_sync(unsigned mask, int predicate, FASTDL_PLACE) {
  return __ballot_sync(mask, predicate, FASTDL_HERE) != 0;
}
inline int __all_sync(unsigned mask, int predicate, FASTDL_PLACE) {
  return __ballot_sync(mask, predicate, FASTDL_HERE) == mask;
}
template <class T>
inline unsigned __match_any_sync(unsigned mask, T value, FASTDL_PLACE) {
  uint64_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof(T));
  const uint64_t* all = emulation::warp_exchange(mask, bits, false, "__match_any_sync", FASTDL_HERE);
  unsigned equal = 0;
  for (int i = 0; i < 32; ++i) {
    if (mask >> i & 1 && all[i] == bits) equal |= 1u << i;
  }
  return equal;
}

#define FASTDL_REDUCE(name, type, expression)                                                      \
  inline type __reduce_##name##_sync(unsigned mask, type value, FASTDL_PLACE) {                    \
    return emulation::warp_fold(                                                                   \
        mask, value, [](type a, type b) -> type { return expression; }, "__reduce_" #name "_sync", \
        FASTDL_HERE);                                                                              \
  }
FASTDL_REDUCE(add, unsigned, a + b)
FASTDL_REDUCE(min, unsigned, a < b ? a : b)
FASTDL_REDUCE(max, unsigned, a > b ? a : b)
FASTDL_REDUCE(and, unsigned, a& b)
FASTDL_REDUCE(or, unsigned, a | b)
FASTDL_REDUCE(xor, unsigned, a ^ b)
FASTDL_REDUCE(add, int, int(unsigned(a) + unsigned(b)))
FASTDL_REDUCE(min, int, a < b ? a : b)
FASTDL_REDUCE(max, int, a > b ? a : b)
#undef FASTDL_REDUCE

// ---- Atomics: relaxed, as on the GPU ----

#define FASTDL_ATOMIC_INTEGER(type)                                                               \
  inline type atomicAdd(type* p, type x) { return __atomic_fetch_add(p, x, __ATOMIC_RELAXED); }   \
  inline type atomicSub(type* p, type x) { return __atomic_fetch_sub(p, x, __ATOMIC_RELAXED); }   \
  inline type atomicAnd(type* p, type x) { return __atomic_fetch_and(p, x, __ATOMIC_RELAXED); }   \
  inline type atomicOr(type* p, type x) { return __atomic_fetch_or(p, x, __ATOMIC_RELAXED); }     \
  inline type atomicXor(type* p, type x) { return __atomic_fetch_xor(p, x, __ATOMIC_RELAXED); }   \
  inline type atomicExch(type* p, type x) { return __atomic_exchange_n(p, x, __ATOMIC_RELAXED); } \
  inline type atomicCAS(type* p, type expected, type x) {                                         \
    __atomic_compare_exchange_n(p, &expected, x, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);      \
    return expected;                                                                              \
  }                                                                                               \
  inline type atomicMin(type* p, type x) {                                                        \
    type old = __atomic_load_n(p, __ATOMIC_RELAXED);                                              \
    while (!__atomic_compare_exchange_n(p, &old, old < x ? old : x, false, __ATOMIC_RELAXED,      \
                                        __ATOMIC_RELAXED)) {                                      \
    }                                                                                             \
    return old;                                                                                   \
  }                                                                                               \
  inline type atomicMax(type* p, type x) {                                                        \
    type old = __atomic_load_n(p, __ATOMIC_RELAXED);                                              \
    while (!__atomic_compare_exchange_n(p, &old, old > x ? old : x, false, __ATOMIC_RELAXED,      \
                                        __ATOMIC_RELAXED)) {                                      \
    }                                                                                             \
    return old;                                                                                   \
  }
FASTDL_ATOMIC_INTEGER(int)
FASTDL_ATOMIC_INTEGER(unsigned)
FASTDL_ATOMIC_INTEGER(unsigned long long)
#undef FASTDL_ATOMIC_INTEGER

inline unsigned atomicInc(unsigned* p, unsigned limit) {
  unsigned old = __atomic_load_n(p, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(p, &old, old >= limit ? 0 : old + 1, false, __ATOMIC_RELAXED,
                                      __ATOMIC_RELAXED)) {
  }
  return old;
}

#define FASTDL_ATOMIC_FLOAT(type, word)                                                                 \
  inline type atomicAdd(type* p, type x) {                                                              \
    word* bits = reinterpret_cast<word*>(p);                                                            \
    word old = __atomic_load_n(bits, __ATOMIC_RELAXED), sum;                                            \
    do {                                                                                                \
      sum = emulation::bit_cast<word>(emulation::bit_cast<type>(old) + x);                              \
    } while (!__atomic_compare_exchange_n(bits, &old, sum, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)); \
    return emulation::bit_cast<type>(old);                                                              \
  }                                                                                                     \
  inline type atomicExch(type* p, type x) {                                                             \
    word* bits = reinterpret_cast<word*>(p);                                                            \
    return emulation::bit_cast<type>(                                                                   \
        __atomic_exchange_n(bits, emulation::bit_cast<word>(x), __ATOMIC_RELAXED));                     \
  }
FASTDL_ATOMIC_FLOAT(float, uint32_t)
FASTDL_ATOMIC_FLOAT(double, uint64_t)
#undef FASTDL_ATOMIC_FLOAT

// ---- Cached accesses ----

#define FASTDL_LOAD(name)     \
  template <class T>          \
  inline T name(const T* p) { \
    return *p;                \
  }
FASTDL_LOAD(__ldg)
FASTDL_LOAD(__ldca)
FASTDL_LOAD(__ldcg)
FASTDL_LOAD(__ldcs)
FASTDL_LOAD(__ldlu)
FASTDL_LOAD(__ldcv)
#undef FASTDL_LOAD

#define FASTDL_STORE(name)                          \
  template <class T>                                \
  inline void name(T* p, std::common_type_t<T> x) { \
    *p = x;                                         \
  }
FASTDL_STORE(__stwb)
FASTDL_STORE(__stcg)
FASTDL_STORE(__stcs)
FASTDL_STORE(__stwt)
#undef FASTDL_STORE
