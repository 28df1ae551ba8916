// Which kernel of cross_entropy takes a call, and with how many blocks.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "cross_entropy_lanes.cuh"
#include "cross_entropy_rows.cuh"

namespace fastdl {
namespace {

constexpr int64_t kFewClasses = 16;        // and fewer: a thread takes a row
constexpr int64_t kWarpClasses = 1024;     // up to these a warp takes a row
constexpr int64_t kManyClasses = 1 << 30;  // beyond, an int would overflow
constexpr int64_t kMaxBlocks = 1 << 20;

struct Plan {
  bool by_row;  // classes lie side by side and are many
  int team;     // threads per row
  int cluster;  // blocks per row
  bool wide;    // 16-byte accesses
  Split split;  // not by_row
  int64_t blocks;
};

// Whether all rows of t start at multiples of 16 bytes.
template <class T>
bool rows_aligned(const Tensor& t) {
  bool whole = aligned<T, kVec<T>>(t.data);
  for (int axis : {0, 2}) whole = whole && (t.size[axis] <= 1 || t.stride[axis] % kVec<T> == 0);
  return whole;
}

// `dense`: all tensors [N, C, D] of the call.
template <class T>
Plan plan_of(const Problem& p, std::initializer_list<const Tensor*> dense, const Device& device,
             bool clusters) {
  Plan plan = {};
  plan.by_row = p.classes > kFewClasses && p.classes <= kManyClasses;
  plan.wide = true;
  for (const Tensor* t : dense) {
    plan.by_row = plan.by_row && t->stride[1] == 1;
    plan.wide = plan.wide && rows_aligned<T>(*t);
  }
  plan.cluster = 1;
  int64_t blocks;
  if (plan.by_row) {
    plan.team = p.classes <= kWarpClasses ? kWarp : kThreads;
    // a large vocabulary and few rows: several blocks per row, lest multiprocessors idle
    while (clusters && plan.wide && device.capability >= 90 && plan.cluster < 8 &&
           p.classes / plan.cluster >= 16384 && p.rows * plan.cluster < 4 * int64_t(device.multiprocessors))
      plan.cluster *= 2;
    blocks = ceil_div(p.rows * plan.team, int64_t(kThreads)) * plan.cluster;
  } else {
    plan.split = {kThreads, 1};
    while (plan.split.parts < 8 && p.classes > int64_t(kBlock) * plan.split.parts) {
      plan.split.parts *= 2;
      plan.split.lanes /= 2;
    }
    blocks = ceil_div(p.rows, int64_t(plan.split.lanes));
  }
  plan.blocks = std::min(blocks, kMaxBlocks);
  return plan;
}

inline Launch how_to(const Plan& plan, const Context* context) {
  Launch how;
  how.grid = dim3(static_cast<unsigned>(plan.blocks));
  how.block = dim3(kThreads);
  how.stream = stream_of(context);
  how.cluster = dim3(static_cast<unsigned>(plan.cluster));
  return how;
}

}  // namespace
}  // namespace fastdl
