"""PointNet (Qi et al., 2016, arXiv:1612.00593): classification and segmentation of point clouds.

A point is a pixel of an image of one column, ``[N, 3, P, 1]``: the MLP shared by all points is a 1x1
convolution, the maximum over the points a max pool over ``(P, 1)``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _scaled(width: float, *channels: int) -> list[int]:
    return [round(width * number) for number in channels]


def _shared(inputs: int, *widths: int) -> nn.Sequential:
    """Linear layers on every point, each with batch norm and ReLU."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Conv2d(inputs, width, 1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        inputs = width
    return nn.Sequential(*layers)


def _dense(inputs: int, *widths: int) -> nn.Sequential:
    """Linear layers on the whole cloud, each with batch norm and ReLU."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True)]
        inputs = width
    return nn.Sequential(*layers)


def _max_over_points(x: Tensor) -> Tensor:
    return torch.flatten(F.max_pool2d(x, (x.shape[2], 1)), 1)


class Transform(nn.Module):
    """The T-net: looks at ``[N, size, P, 1]`` and gives the ``[N, size, size]`` to multiply it by.

    Starts at the identity.
    """

    def __init__(self, size: int, width: float) -> None:
        super().__init__()
        a, b, c, d, e = _scaled(width, 64, 128, 1024, 512, 256)
        self.shared = _shared(size, a, b, c)
        self.dense = _dense(c, d, e)
        self.last = nn.Linear(e, size * size)
        self.size = size
        nn.init.zeros_(self.last.weight)
        with torch.no_grad():
            self.last.bias.copy_(torch.eye(size).flatten())

    def forward(self, x: Tensor) -> Tensor:
        x = _max_over_points(self.shared(x))
        return self.last(self.dense(x)).view(-1, self.size, self.size)


class Features(nn.Module):
    """Both transforms and the shared MLPs: per point and for all, and the feature transform."""

    def __init__(self, width: float) -> None:
        super().__init__()
        a, b, c = _scaled(width, 64, 128, 1024)
        self.input_transform = Transform(3, width)
        self.local = _shared(3, a, a)
        self.feature_transform = Transform(a, width)
        self.points = _shared(a, a, b, c)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[N, 3, P, 1]`` to point features ``[N, 64, P, 1]``, those that compete for the maximum
        ``[N, 1024, P, 1]``, and the feature transform ``[N, 64, 64]`` (at full width)."""
        x = torch.matmul(self.input_transform(x), x.squeeze(3)).unsqueeze(3)
        x = self.local(x)
        transform = self.feature_transform(x)
        x = torch.matmul(transform, x.squeeze(3)).unsqueeze(3)
        return x, self.points(x), transform


class PointNetClassifier(nn.Module):
    """Which class a cloud belongs to: 3,480,049 parameters at the defaults.

    Input ``[N, 3, P, 1]``; output logits ``[N, classes]`` and the feature transform, for PointNetLoss.

    Args:
        classes: logits.
        width: all widths are multiplied by it.
        dropout: probability of dropping a unit in front of the last layer.
    """

    def __init__(self, classes: int = 40, width: float = 1.0, dropout: float = 0.3) -> None:
        super().__init__()
        c, d, e = _scaled(width, 1024, 512, 256)
        self.features = Features(width)
        self.dense = _dense(c, d, e)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(e, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        _, competing, transform = self.features(x)
        x = _max_over_points(competing)
        return self.fc(self.dropout(self.dense(x))), transform


class PointNetSegmenter(nn.Module):
    """Which part each point belongs to: 3,558,907 parameters at the defaults.

    Input ``[N, 3, P, 1]``; output logits ``[N, parts, P]`` and the feature transform, for PointNetLoss.

    Args:
        parts: logits per point.
        width: all widths are multiplied by it.
    """

    def __init__(self, parts: int = 50, width: float = 1.0) -> None:
        super().__init__()
        a, b, c, d, e = _scaled(width, 64, 128, 1024, 512, 256)
        self.features = Features(width)
        self.shared = _shared(a + c, d, e, b, b)
        self.last = nn.Conv2d(b, parts, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        local, competing, transform = self.features(x)
        whole = F.max_pool2d(competing, (competing.shape[2], 1)).expand(-1, -1, competing.shape[2], -1)
        x = self.shared(torch.cat([local, whole], 1))
        return self.last(x).squeeze(3), transform


class PointNetLoss(nn.Module):
    """Cross-entropy, and how far the feature transform is from orthogonal."""

    def __init__(self, weight: float = 1e-3) -> None:
        super().__init__()
        self.weight = weight
        self.cross_entropy = nn.CrossEntropyLoss()

    def forward(self, logits: Tensor, transform: Tensor, target: Tensor) -> Tensor:
        square = torch.matmul(transform, transform.transpose(1, 2))
        identity = torch.eye(transform.shape[1], dtype=transform.dtype, device=transform.device)
        excess = torch.mean(torch.sum((square - identity) ** 2, (1, 2)))
        return self.cross_entropy(logits, target) + self.weight * excess
