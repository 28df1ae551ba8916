// The gradient of the logits, for losses of rows as for their sum or mean: one read and one write of the
// logits (and two reads of probabilities).
#include "cross_entropy_plan.cuh"

namespace fastdl {
namespace {

template <class T, Share kShare, int kTeam, int V>
cudaError_t launch_rows(const Launch& how, const Problem& p, const Scale& scale, const float* lse,
                        const Tensor& grad) {
  if (p.classes <= int64_t(kTeam) * kResident)
    return launch(cross_entropy_rows_backward<T, kShare, kTeam, V, true>, how, p, scale, lse, grad);
  if constexpr (kTeam == kWarp) {
    return cudaErrorInvalidValue;  // plan_of gives warps no longer rows
  } else {
    return launch(cross_entropy_rows_backward<T, kShare, kTeam, V, false>, how, p, scale, lse, grad);
  }
}

template <class T, Share kShare>
const char* run(const CrossEntropyBackward& params, Context* context) {
  Problem p(params);
  if (const char* error = take_weight(params.weight, context, &p)) return error;
  const Device& device = device_properties(context->device);
  const Tensor& grad = params.grad_input;
  const Plan plan = kShare == Share::kSoft
                        ? plan_of<T>(p, {&params.input, &params.target, &grad}, device, false)
                        : plan_of<T>(p, {&params.input, &grad}, device, false);
  const Scale scale = {params.grad_loss, static_cast<const float*>(params.total_weight.data),
                       params.reduction != Reduction::kNone, params.reduction == Reduction::kMean};
  const float* lse = static_cast<const float*>(params.lse.data);
  const Launch how = how_to(plan, context);
  if (!plan.by_row) {
    return describe(
        p.classes <= kBlock
            ? launch(cross_entropy_lanes_backward<T, kShare, true>, how, p, scale, lse, grad, plan.split)
            : launch(cross_entropy_lanes_backward<T, kShare, false>, how, p, scale, lse, grad, plan.split));
  }
  if (plan.team == kWarp) {
    return describe(plan.wide ? launch_rows<T, kShare, kWarp, kVec<T>>(how, p, scale, lse, grad)
                              : launch_rows<T, kShare, kWarp, 1>(how, p, scale, lse, grad));
  }
  return describe(plan.wide ? launch_rows<T, kShare, kThreads, kVec<T>>(how, p, scale, lse, grad)
                            : launch_rows<T, kShare, kThreads, 1>(how, p, scale, lse, grad));
}

}  // namespace
}  // namespace fastdl

const char* fastdl_cross_entropy_backward(const fastdl::CrossEntropyBackward* params,
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
