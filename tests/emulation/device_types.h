// Function and variable qualifiers, vector types, and what a thread knows of itself.
#pragma once

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// One copy for the block that runs: the runtime fills the module's .bss with 0xFF for each block, and
// exchanges it when it changes between blocks. Everything else that lives in this module and may change must
// be initialised (build.py compiles with -fno-zero-initialized-in-bss).
#define __shared__ static

#define FASTDL_VECTOR_TYPE(scalar, name)                                                            \
  struct alignas(2 * sizeof(scalar)) name##2 { scalar x, y; };                                      \
  struct name##3 { scalar x, y, z; };                                                               \
  struct alignas(4 * sizeof(scalar) < 16 ? 4 * sizeof(scalar) : 16) name##4 { scalar x, y, z, w; }; \
  inline name##2 make_##name##2(scalar x, scalar y) { return {x, y}; }                              \
  inline name##3 make_##name##3(scalar x, scalar y, scalar z) { return {x, y, z}; }                 \
  inline name##4 make_##name##4(scalar x, scalar y, scalar z, scalar w) { return {x, y, z, w}; }
FASTDL_VECTOR_TYPE(signed char, char)
FASTDL_VECTOR_TYPE(unsigned char, uchar)
FASTDL_VECTOR_TYPE(short, short)
FASTDL_VECTOR_TYPE(unsigned short, ushort)
FASTDL_VECTOR_TYPE(int, int)
FASTDL_VECTOR_TYPE(unsigned, uint)
FASTDL_VECTOR_TYPE(long long, longlong)
FASTDL_VECTOR_TYPE(unsigned long long, ulonglong)
FASTDL_VECTOR_TYPE(float, float)
FASTDL_VECTOR_TYPE(double, double)
#undef FASTDL_VECTOR_TYPE

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};

#define FASTDL_HIDDEN __attribute__((visibility("hidden")))

// Of the thread that runs.
extern uint3 threadIdx FASTDL_HIDDEN, blockIdx FASTDL_HIDDEN;
extern dim3 blockDim FASTDL_HIDDEN, gridDim FASTDL_HIDDEN;
constexpr int warpSize = 32;
