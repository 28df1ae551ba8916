// conv2d by direct kernels: what the library covers, and which kernel takes it.
#include "conv2d_common.cuh"

FASTDL_EXPORT bool fastdl_conv2d_forward_covers(const fastdl::Conv2dForward* p) {
  return fastdl::conv2d_depthwise_covers(p->x, p->weight, p->convolution) || fastdl::conv2d_direct_covers(*p);
}

FASTDL_EXPORT bool fastdl_conv2d_backward_covers(const fastdl::Conv2dBackward* p) {
  const fastdl::Tensor& g = p->grad_weight;
  if (g && !fastdl::is_contiguous(g) && !fastdl::is_channels_last(g))
    return false;  // partial sums are added flat
  if (fastdl::conv2d_depthwise_covers(p->x, p->weight, p->convolution)) return true;
  return !p->grad_x && fastdl::conv2d_direct_grad_weight_covers(*p);
}

FASTDL_EXPORT bool fastdl_conv2d_max_pool2d_covers(const fastdl::Conv2dMaxPool2d* p) {
  return fastdl::conv2d_direct_pool_covers(*p);
}

FASTDL_EXPORT const char* fastdl_conv2d_forward(const fastdl::Conv2dForward* p, fastdl::Context* context) {
  const fastdl::DeviceGuard guard(context->device);
  if (guard.error()) return guard.error();
  if (fastdl::conv2d_depthwise_covers(p->x, p->weight, p->convolution)) {
    return fastdl::conv2d_depthwise_forward(*p, context);
  }
  return fastdl::conv2d_direct_forward(*p, context);
}

FASTDL_EXPORT const char* fastdl_conv2d_backward(const fastdl::Conv2dBackward* p, fastdl::Context* context) {
  const fastdl::DeviceGuard guard(context->device);
  if (guard.error()) return guard.error();
  if (fastdl::conv2d_depthwise_covers(p->x, p->weight, p->convolution)) {
    if (p->grad_x) FASTDL_TRY(fastdl::conv2d_depthwise_grad_x(*p, context));
    return p->grad_weight ? fastdl::conv2d_depthwise_grad_weight(*p, context) : nullptr;
  }
  if (p->grad_x) return "no direct kernel for this grad_x";
  return p->grad_weight ? fastdl::conv2d_direct_grad_weight(*p, context) : nullptr;
}

FASTDL_EXPORT const char* fastdl_conv2d_max_pool2d(const fastdl::Conv2dMaxPool2d* p,
                                                   fastdl::Context* context) {
  const fastdl::DeviceGuard guard(context->device);
  if (guard.error()) return guard.error();
  return fastdl::conv2d_direct_pool(*p, context);
}
