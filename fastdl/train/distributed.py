"""Several processes, started by torchrun: the process group and batch norm over all of them."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as differentiable
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def started() -> bool:
    """Whether torchrun (or something like it) started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def begin(device: torch.device) -> torch.device:
    """Join the group; the device of this process."""
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


def end() -> None:
    """Leave it."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank_and_size() -> tuple[int, int]:
    """Of this process; 0 and 1 alone."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def mean(value: float, device: torch.device) -> float:
    """The mean over all processes."""
    _, size = rank_and_size()
    if size == 1:
        return value
    tensor = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return float(tensor) / size


def wrap(model: nn.Module, device: torch.device) -> nn.Module:
    """``model`` for training on a part of each batch: gradients averaged, batch norm over the whole batch."""
    model = synchronised(model, device)
    return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)


def synchronised(model: nn.Module, device: torch.device) -> nn.Module:
    """Batch norms that see the batches of all processes: torch's own on a GPU, ours where it has none."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                setattr(parent, name, BatchNorm.like(child))
    return model


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over the batches of all processes, with torch's parameters, buffers and rules."""

    @classmethod
    def like(cls, norm: nn.modules.batchnorm._BatchNorm) -> BatchNorm:
        """With the parameters and buffers of ``norm`` themselves."""
        made = cls(
            norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, device="meta"
        )
        made._parameters, made._buffers, made.training = norm._parameters, norm._buffers, norm.training
        return made

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, got {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or rank_and_size()[1] == 1:
            return super().forward(input)
        x = input if input.dtype == torch.float64 else input.float()  # half precision neither sums nor counts
        axes = [d for d in range(x.dim()) if d != 1]
        # the mean first, then what is left around it: a sum of squares would cancel
        total = torch.cat([x.sum(axes), x.new_tensor([float(x.numel() // x.shape[1])])])
        total = differentiable.all_reduce(total)
        count = total[-1].detach()
        shape = [1, -1] + [1] * (x.dim() - 2)
        centred = x - (total[:-1] / count).view(shape)
        variance = differentiable.all_reduce((centred**2).sum(axes)) / count
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                m = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(total[:-1] / count, m)
                self.running_var.lerp_(variance * count / (count - 1), m)
        out = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.weight is not None:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(input.dtype)
