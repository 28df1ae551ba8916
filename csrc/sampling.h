// How the ops that sample an image do it: grid_sample's modes.
#pragma once

#include <cstdint>

namespace fastdl {

enum class Interpolation : int32_t { kBilinear, kNearest };
enum class PaddingMode : int32_t { kZeros, kBorder, kReflection };

}  // namespace fastdl
