// What the planted faults share. Each file exports `const char* <its name>(bool faulty)`: nullptr if all went
// well, else what did not.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "runtime.cuh"

namespace fastdl {

// Of exactly n elements, filled with 0xFF, as outputs are under test.
template <class T>
struct Buffer {
  T* p;
  int64_t n;
  explicit Buffer(int64_t n) : p(static_cast<T*>(malloc(n * sizeof(T)))), n(n) {
    memset(p, 0xff, n * sizeof(T));
  }
  ~Buffer() { free(p); }
  Buffer(const Buffer&) = delete;
  T& operator[](int64_t i) { return p[i]; }
};

template <class T>
const char* expect(T got, T wanted) {
  static char text[100] = "";
  if (got == wanted) return nullptr;
  snprintf(text, sizeof(text), "wrong: %g instead of %g", double(got), double(wanted));
  return text;
}

}  // namespace fastdl

#define FASTDL_WRONG(check)                        \
  do {                                             \
    if (const char* wrong = (check)) return wrong; \
  } while (false)
