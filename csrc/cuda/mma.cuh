// The warp's matrix product: compute capability 8.0 on. Kernels that use it compile for older ones too, where
// they must not be launched (device_properties(d).capability >= 80).
#pragma once

#include "runtime.cuh"

namespace fastdl {

// sum[16 x 8] += a[16 x 16] * b[16 x 8], T = f16 or bf16, sums in float32. With g = lane / 4 and t = lane % 4
// a lane has
//     a[i], two neighbours along k:  row g + 8 * (i % 2), k = 2t + 8 * (i / 2) and the next
//     b[i], two neighbours along k:  k = 2t + 8 * i and the next, column g
//     sum[i]:                        row g + 8 * (i / 2), column 2t + i % 2
template <class T>
__device__ __forceinline__ void mma_16x8x16(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(FASTDL_EMULATED)
  struct Lane {
    uint32_t a[4], b[2];
  };
  Lane mine, all[32];
  for (int i = 0; i < 4; ++i) mine.a[i] = a[i];
  for (int i = 0; i < 2; ++i) mine.b[i] = b[i];
  emulation::exchange(mine, all);
  const auto half = [](uint32_t two, int k) {
    return to_float(T{static_cast<uint16_t>(k % 2 ? two >> 16 : two)});
  };
  const int g = lane_id() / 4, t = lane_id() % 4;
  for (int i = 0; i < 4; ++i) {
    const int column = 2 * t + i % 2;
    for (int k = 0; k < 16; ++k) {
      const float x = half(all[g * 4 + k % 8 / 2].a[i / 2 + 2 * (k / 8)], k);
      const float y = half(all[column * 4 + k % 8 / 2].b[k / 8], k);
      sum[i] += x * y;
    }
  }
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  if constexpr (std::is_same_v<T, f16>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#endif
}

}  // namespace fastdl
