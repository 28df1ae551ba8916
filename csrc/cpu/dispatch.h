// From the dtypes and activations of a call to template parameters.
#pragma once

#include "../library.h"
#include "vec.h"

namespace fastdl::cpu {

// f(T{}) with the storage type of a floating dtype; false for another dtype.
template <class F>
bool with_float(DType dtype, const F& f) {
  switch (dtype) {
    case DType::kFloat32:
      return f(float{}), true;
    case DType::kFloat16:
      return f(f16{}), true;
    case DType::kBFloat16:
      return f(bf16{}), true;
    default:
      return false;
  }
}

// Whether channels are the fastest axis of a 4-D tensor: its memory is [N, H, W, C], densely.
inline bool is_channels_last(const Tensor& t) {
  return t.dim == 4 && t.stride[1] == 1 && t.stride[3] == t.size[1] && t.stride[2] == t.size[3] * t.size[1] &&
         t.stride[0] == t.size[2] * t.stride[2];
}

}  // namespace fastdl::cpu
