// The losses of rows, lse, and their sum or mean in the same launch: the last block to finish adds up. The
// formulas are those of docs/ops/cross_entropy.md.
#include "cross_entropy_plan.cuh"

namespace fastdl {
namespace {

template <class T, Share kShare, int kTeam, int V>
cudaError_t launch_rows(const Plan& plan, const Launch& how, const Problem& p, const Losses& losses) {
  if constexpr (kTeam == kThreads && V > 1) {
    if (plan.cluster > 1)
      return launch(cross_entropy_rows_forward<T, kShare, kTeam, V, true>, how, p, losses);
  }
  return launch(cross_entropy_rows_forward<T, kShare, kTeam, V, false>, how, p, losses);
}

template <class T, Share kShare>
const char* run(const CrossEntropyForward& params, Context* context) {
  Problem p(params);
  if (const char* error = take_weight(params.weight, context, &p)) return error;
  const Device& device = device_properties(context->device);
  const Plan plan = kShare == Share::kSoft ? plan_of<T>(p, {&params.input, &params.target}, device, true)
                                           : plan_of<T>(p, {&params.input}, device, true);
  Losses losses = {};
  losses.loss = params.loss;
  losses.lse = static_cast<float*>(params.lse.data);
  losses.total_weight = static_cast<float*>(params.total_weight.data);
  losses.reduced = params.reduction != Reduction::kNone;
  losses.mean = params.reduction == Reduction::kMean;
  const int64_t summing = plan.blocks / plan.cluster;
  if (losses.reduced && summing > 1) {
    auto* scratch = static_cast<char*>(context->allocate(context, 16 + summing * int64_t(sizeof(Sums))));
    if (scratch == nullptr) return "out of memory";
    losses.counter = reinterpret_cast<unsigned*>(scratch);
    losses.partials = reinterpret_cast<Sums*>(scratch + 16);
    FASTDL_CUDA(cudaMemsetAsync(losses.counter, 0, sizeof(unsigned), stream_of(context)));
  }
  const Launch how = how_to(plan, context);
  if (!plan.by_row)
    return describe(launch(cross_entropy_lanes_forward<T, kShare>, how, p, losses, plan.split));
  if (plan.team == kWarp) {
    return describe(plan.wide ? launch_rows<T, kShare, kWarp, kVec<T>>(plan, how, p, losses)
                              : launch_rows<T, kShare, kWarp, 1>(plan, how, p, losses));
  }
  return describe(plan.wide ? launch_rows<T, kShare, kThreads, kVec<T>>(plan, how, p, losses)
                            : launch_rows<T, kShare, kThreads, 1>(plan, how, p, losses));
}

}  // namespace
}  // namespace fastdl

const char* fastdl_cross_entropy_forward(const fastdl::CrossEntropyForward* params,
                                         fastdl::Context* context) {
  using namespace fastdl;
  const DeviceGuard guard(context->device);
  if (guard.error()) return guard.error();
  return dispatch_float(params->input.dtype, [&](auto type) {
    return dispatch_share(Problem(*params).kind(params->label_smoothing), [&](auto share) {
      return run<typename decltype(type)::type, decltype(share)::value>(*params, context);
    });
  });
}
