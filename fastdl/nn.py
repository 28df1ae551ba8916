"""Drop-in modules: subclasses of torch.nn's, same constructors and state_dict keys, run by fastdl.functional.

None holds state beyond its parent's, so an existing torch module becomes one of these (and back) by its class
alone; that is how ``fastdl.convert`` works.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import functional as F

__all__ = [
    "AffineGridSample",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Conv2d",
    "CrossEntropyLoss",
    "MaxPool2d",
    "SpatialTransformer",
    "TPSGridSample",
]


def conv2d_forward(
    module: nn.Conv2d,
    input: Tensor,
    activation: str | None = None,
    activation_param: float | None = None,
) -> Tensor:
    """What ``module`` computes, with an activation behind it.

    Args:
        module: any torch.nn.Conv2d, whatever its padding_mode.
        input: ``[N, C, H, W]`` or ``[C, H, W]``.
        activation, activation_param: see fastdl.functional.
    """
    padding = module.padding
    if module.padding_mode != "zeros":
        input = nn.functional.pad(input, module._reversed_padding_repeated_twice, mode=module.padding_mode)
        padding = 0
    return F.conv2d(
        input,
        module.weight,
        module.bias,
        module.stride,
        padding,
        module.dilation,
        module.groups,
        activation=activation,
        activation_param=activation_param,
    )


def batch_norm_forward(
    module: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d,
    input: Tensor,
    residual: Tensor | None = None,
    activation: str | None = None,
    activation_param: float | None = None,
) -> Tensor:
    """What ``module`` computes, with an addition and an activation behind it.

    Args:
        module: any torch.nn batch norm; counts its batches and updates its running statistics as torch does.
        input: ``[N, C, ...]`` of the dimensions that the module takes.
        residual: like input, or None.
        activation, activation_param: see fastdl.functional.

    Raises:
        ValueError: if input has another number of dimensions, or one value per channel in training.
    """
    module._check_input_dim(input)
    momentum = 0.0 if module.momentum is None else module.momentum
    training = module.training or (module.running_mean is None and module.running_var is None)
    tracks = module.training and module.track_running_stats
    counter = module.num_batches_tracked if tracks else None
    use_running = not module.training or module.track_running_stats
    running = (module.running_mean, module.running_var) if use_running else (None, None)
    averaged: tuple[Tensor, ...] = ()  # what becomes the average of this batch and those before
    if counter is not None and module.momentum is None:
        if torch.compiler.is_compiling():  # no number that depends on data: torch's own breaks the graph
            averaged, running = running, tuple(map(torch.zeros_like, running))
            momentum = 1.0
        else:
            momentum = 1.0 / (float(counter) + 1.0)
    if counter is not None:  # first, as torch: a checkpoint's second run may end inside the call
        counter.add_(1)
    try:
        out = F.batch_norm(
            input,
            *running,
            module.weight,
            module.bias,
            training,
            momentum,
            module.eps,
            residual=residual,
            activation=activation,
            activation_param=activation_param,
        )
    except (IndexError, RuntimeError, TypeError, ValueError):  # a call that raises has counted nothing
        if counter is not None:
            counter.sub_(1)
        raise
    for average, batch in zip(averaged, running, strict=False):
        average.lerp_(batch, (1.0 / counter).to(average.dtype))
    return out


class Conv2d(nn.Conv2d):
    """torch.nn.Conv2d on fastdl.functional.conv2d; input ``[N, C, H, W]`` or ``[C, H, W]``."""

    def forward(self, input: Tensor) -> Tensor:
        return conv2d_forward(self, input)


class BatchNorm1d(nn.BatchNorm1d):
    """torch.nn.BatchNorm1d on fastdl.functional.batch_norm; input ``[N, C]`` or ``[N, C, L]``."""

    def forward(self, input: Tensor) -> Tensor:
        return batch_norm_forward(self, input)


class BatchNorm2d(nn.BatchNorm2d):
    """torch.nn.BatchNorm2d on fastdl.functional.batch_norm; input ``[N, C, H, W]``."""

    def forward(self, input: Tensor) -> Tensor:
        return batch_norm_forward(self, input)


class BatchNorm3d(nn.BatchNorm3d):
    """torch.nn.BatchNorm3d on fastdl.functional.batch_norm; input ``[N, C, D, H, W]``."""

    def forward(self, input: Tensor) -> Tensor:
        return batch_norm_forward(self, input)


class CrossEntropyLoss(nn.CrossEntropyLoss):
    """torch.nn.CrossEntropyLoss on fastdl.functional.cross_entropy; input ``[N, C, ...]`` or ``[C]``."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )


class MaxPool2d(nn.MaxPool2d):
    """torch.nn.MaxPool2d on fastdl.functional.max_pool2d; input ``[N, C, H, W]`` or ``[C, H, W]``."""

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return F.max_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            self.return_indices,
        )


class AffineGridSample(nn.Module):
    """fastdl.functional.affine_grid_sample as a module.

    Args:
        size: ``(OH, OW)`` of the output; None means that of the input.
        mode, padding_mode, align_corners: see fastdl.functional.affine_grid_sample.
    """

    def __init__(
        self,
        size: tuple[int, int] | None = None,
        mode: str = "bilinear",
        padding_mode: str = "zeros",
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        self.size = size
        self.mode = mode
        self.padding_mode = padding_mode
        self.align_corners = align_corners

    def forward(self, input: Tensor, theta: Tensor) -> Tensor:
        """``input [N or 1, C, H, W]``, ``theta [N, 2, 3]`` to ``[N, C, OH, OW]``."""
        spatial = input.shape[2:] if self.size is None else self.size
        size = (theta.shape[0], input.shape[1], *spatial)
        return F.affine_grid_sample(input, theta, size, self.mode, self.padding_mode, self.align_corners)

    def extra_repr(self) -> str:
        return (
            f"size={self.size}, mode={self.mode!r}, padding_mode={self.padding_mode!r}, "
            f"align_corners={self.align_corners}"
        )


class TPSGridSample(nn.Module):
    """fastdl.functional.tps_grid_sample as a module.

    Args:
        size: ``(OH, OW)`` of the output; None means that of the input.
        control_points: ``[K, 2]``; None means a regular square grid. A buffer that state_dict leaves out.
        mode, padding_mode, align_corners: see fastdl.functional.tps_grid_sample.
    """

    def __init__(
        self,
        size: tuple[int, int] | None = None,
        control_points: Tensor | None = None,
        mode: str = "bilinear",
        padding_mode: str = "zeros",
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("control_points", control_points, persistent=False)
        self.mode = mode
        self.padding_mode = padding_mode
        self.align_corners = align_corners

    def forward(self, input: Tensor, points: Tensor) -> Tensor:
        """``input [N or 1, C, H, W]``, ``points [N, K, 2]`` to ``[N, C, OH, OW]``."""
        spatial = input.shape[2:] if self.size is None else self.size
        size = (points.shape[0], input.shape[1], *spatial)
        options = (self.mode, self.padding_mode, self.align_corners)
        return F.tps_grid_sample(input, points, size, self.control_points, *options)

    def extra_repr(self) -> str:
        return (
            f"size={self.size}, mode={self.mode!r}, padding_mode={self.padding_mode!r}, "
            f"align_corners={self.align_corners}"
        )


class SpatialTransformer(nn.Module):
    """A spatial transformer: theta from the input by a localisation net, then sampling the input by it.

    Args:
        localisation: a module from ``[N, C, H, W]`` to the six numbers of theta, ``[N, 6]`` or ``[N, 2, 3]``.
            Start it at the identity (last weight zero, last bias 1, 0, 0, 0, 1, 0).
        size, mode, padding_mode, align_corners: see AffineGridSample.

    Source: Jaderberg et al., 2015 (arXiv:1506.02025).
    """

    def __init__(
        self,
        localisation: nn.Module,
        size: tuple[int, int] | None = None,
        mode: str = "bilinear",
        padding_mode: str = "zeros",
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        self.localisation = localisation
        self.sample = AffineGridSample(size, mode, padding_mode, align_corners)

    def theta(self, input: Tensor) -> Tensor:
        """The transformation ``[N, 2, 3]`` that the localisation net gives for ``input [N, C, H, W]``.

        Raises:
            RuntimeError: if the localisation net gives anything but six numbers per sample.
        """
        theta = self.localisation(input)
        if theta.shape not in ((input.shape[0], 6), (input.shape[0], 2, 3)):
            raise RuntimeError(
                f"fastdl.nn.SpatialTransformer: expected localisation to give [{input.shape[0]}, 6] or "
                f"[{input.shape[0]}, 2, 3], got {list(theta.shape)}"
            )
        return theta.view(-1, 2, 3)

    def forward(self, input: Tensor) -> Tensor:
        """``input [N, C, H, W]`` to its transformed ``[N, C, OH, OW]``."""
        return self.sample(input, self.theta(input))
