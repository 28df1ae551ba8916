// relu's mask: one bit per value in memory order, written and read by vectors at any bit.
#pragma once

#include "batch_norm_layout.h"

namespace fastdl::cpu::batch_norm {

// Appends bits from a byte boundary on.
class MaskWriter {
 public:
  explicit MaskWriter(uint8_t* byte) : byte_(byte) {}

  FASTDL_INLINE void append(Whole, uint32_t bits) {
    if constexpr (kWidth >= 8) {  // as many bits out as in, so that count_ stays
      held_ |= bits << count_;
      std::memcpy(byte_, &held_, kWidth / 8);
      byte_ += kWidth / 8;
      held_ >>= kWidth;
    } else {
      append(bits, kWidth);
    }
  }
  FASTDL_INLINE void append(Overlap part, uint32_t bits) { append(bits >> part.skip, kWidth - part.skip); }
  FASTDL_INLINE void append(Part part, uint32_t bits) { append(bits & ((1u << part.n) - 1), part.n); }
  // The spare bits of the last byte are 0.
  void finish() {
    if (count_) *byte_ = static_cast<uint8_t>(held_);
  }

 private:
  FASTDL_INLINE void append(uint32_t bits, int64_t n) {
    held_ |= bits << count_;
    count_ += static_cast<int>(n);
    for (; count_ >= 8; count_ -= 8, held_ >>= 8) *byte_++ = static_cast<uint8_t>(held_);
  }

  uint8_t* byte_;
  uint32_t held_ = 0;
  int count_ = 0;
};

// Where bit i and those behind it are set. No byte without a bit of the run is read.
FASTDL_INLINE IVec lanes(uint32_t word) {
  IVec bit{};
  for (int i = 0; i < kWidth; ++i) bit[i] = 1 << i;
  return (splat(static_cast<int32_t>(word)) & bit) != 0;
}
FASTDL_INLINE IVec passes(Whole, const uint8_t* mask, int64_t i) {
  uint32_t word = 0;
  constexpr int kBytes = kWidth >= 8 ? kWidth / 8 : 1;
  std::memcpy(&word, mask + (i >> 3), kBytes);
  word |= static_cast<uint32_t>(mask[(i + kWidth - 1) >> 3]) << (8 * kBytes);
  return lanes(word >> (i & 7));
}
FASTDL_INLINE IVec passes(Part part, const uint8_t* mask, int64_t i) {
  uint32_t word = 0;
  int64_t first = i >> 3, last = (i + part.n - 1) >> 3;
  for (int64_t byte = first; byte <= last; ++byte)
    word |= static_cast<uint32_t>(mask[byte]) << (8 * (byte - first));
  return lanes(word >> (i & 7));
}

}  // namespace fastdl::cpu::batch_norm
