// What a kernel library is. A library is a shared object that includes no torch header and exports one C
// function per op and direction,
//
//     const char* fastdl_<op>_<direction>(const <Op><Direction>* params, Context* context);
//
// which returns nullptr, or what went wrong. csrc/<op>.h declares them. Libraries of csrc/cpu (compiled once
// per CPU capability), csrc/cuda (nvcc) and csrc/cuda (emulated on the CPU, by tests/emulation) all look
// alike, and bindings.cpp opens any of them. Only the files of fastdl._C know torch: bindings.h,
// bindings.cpp, calls.h and calls*.cpp.
#pragma once

#include <cstdint>

#define FASTDL_EXPORT extern "C" __attribute__((visibility("default")))

namespace fastdl {

// Goes up with every change of this file or of a params struct: a library of another version is refused.
constexpr int32_t kVersion = 1;

enum class DType : int32_t { kFloat32, kFloat16, kBFloat16, kUInt8, kInt16, kInt32, kInt64 };

constexpr int kMaxDim = 5;

// A view of a tensor: where, how large, how far apart (in elements). data == nullptr: absent, Python's None.
struct Tensor {
  void* data = nullptr;
  int64_t size[kMaxDim] = {};
  int64_t stride[kMaxDim] = {};
  int32_t dim = 0;
  DType dtype = DType::kFloat32;

  explicit operator bool() const { return data != nullptr; }
  int64_t numel() const {
    int64_t n = 1;
    for (int i = 0; i < dim; ++i) n *= size[i];
    return n;
  }
};

// The activations of fastdl/activations.py, in its order.
enum class Activation : int32_t { kNone, kReLU, kLeakyReLU, kELU, kSigmoid, kTanh, kSoftplus };

// What a call may use of the process it runs in.
struct Context {
  // Scratch memory on the call's device, at least 64-byte aligned, uninitialised, alive until the work of
  // this call is done (for CUDA: in stream order). nullptr if there is none left. bytes == 0 gives a valid
  // pointer.
  void* (*allocate)(Context* context, int64_t bytes);
  // CPU libraries: fn(data, begin, end) on disjoint ranges that cover [0, n), on torch's own threads; ranges
  // of at least `grain` (the last may be shorter), in the calling thread alone if n <= grain.
  void (*parallel_for)(int64_t n, int64_t grain, void (*fn)(void* data, int64_t begin, int64_t end),
                       void* data);
  int32_t num_threads;  // torch.get_num_threads()
  // CUDA libraries: where to launch.
  int32_t device;
  void* stream;  // cudaStream_t
};

}  // namespace fastdl

// Every library also exports these.
FASTDL_EXPORT int32_t fastdl_version();       // fastdl::kVersion as the library was compiled
FASTDL_EXPORT const char* fastdl_describe();  // "cpu avx512", "cuda sm_90 ...", "cuda emulated asan"
