// Whole numbers, and ranges in parts.
#pragma once

#include <cstdint>

namespace fastdl::cpu {

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t unit) { return ceil_div(a, unit) * unit; }

// [0, size) in `count` parts of nearly as many units, each unit `unit` long.
struct Parts {
  Parts(int64_t size, int64_t unit, int64_t count)
      : size(size), unit(unit), units(ceil_div(size, unit)), count(least(count, units)) {}
  // Of at most `most` units.
  static Parts of(int64_t size, int64_t unit, int64_t most) {
    return {size, unit, ceil_div(size, unit * most)};
  }
  int64_t begin(int64_t i) const { return least(size, units * i / count * unit); }
  int64_t length(int64_t i) const { return begin(i + 1) - begin(i); }

  int64_t size, unit, units, count;
};

}  // namespace fastdl::cpu
