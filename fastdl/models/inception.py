"""Inception v3 (Szegedy et al., 2015, arXiv:1512.00567) by the course's table."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvNorm(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: int | tuple[int, int] = 1,
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
        eps: float = 1e-3,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel_size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class ModuleA(nn.Module):
    """At 35x35: a 5x5 and a factorised double 3x3 branch; 288 channels in and out."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.one = ConvNorm(inputs, 64)
        self.five = nn.Sequential(ConvNorm(inputs, 48), ConvNorm(48, 64, 5, padding=2))
        self.twice = nn.Sequential(
            ConvNorm(inputs, 64), ConvNorm(64, 96, 3, padding=1), ConvNorm(96, 96, 3, padding=1)
        )
        self.pool = ConvNorm(inputs, 64)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pool(F.avg_pool2d(x, 3, stride=1, padding=1))
        return torch.cat([self.one(x), self.five(x), self.twice(x), pooled], 1)


class ReductionA(nn.Module):
    """35x35x288 to 17x17x768."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.three = ConvNorm(inputs, 384, 3, stride=2)
        self.twice = nn.Sequential(
            ConvNorm(inputs, 64), ConvNorm(64, 96, 3, padding=1), ConvNorm(96, 96, 3, stride=2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.three(x), self.twice(x), F.max_pool2d(x, 3, stride=2)], 1)


class ModuleB(nn.Module):
    """At 17x17: 7x7 convolutions factorised into 1x7 and 7x1; 768 channels in and out."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        row, column = {"padding": (0, 3)}, {"padding": (3, 0)}
        self.one = ConvNorm(inputs, 192)
        self.seven = nn.Sequential(
            ConvNorm(inputs, width),
            ConvNorm(width, width, (1, 7), **row),
            ConvNorm(width, 192, (7, 1), **column),
        )
        self.twice = nn.Sequential(
            ConvNorm(inputs, width),
            ConvNorm(width, width, (7, 1), **column),
            ConvNorm(width, width, (1, 7), **row),
            ConvNorm(width, width, (7, 1), **column),
            ConvNorm(width, 192, (1, 7), **row),
        )
        self.pool = ConvNorm(inputs, 192)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pool(F.avg_pool2d(x, 3, stride=1, padding=1))
        return torch.cat([self.one(x), self.seven(x), self.twice(x), pooled], 1)


class ReductionB(nn.Module):
    """17x17x768 to 8x8x1280."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.three = nn.Sequential(ConvNorm(inputs, 192), ConvNorm(192, 320, 3, stride=2))
        self.seven = nn.Sequential(
            ConvNorm(inputs, 192),
            ConvNorm(192, 192, (1, 7), padding=(0, 3)),
            ConvNorm(192, 192, (7, 1), padding=(3, 0)),
            ConvNorm(192, 192, 3, stride=2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.three(x), self.seven(x), F.max_pool2d(x, 3, stride=2)], 1)


class Fork(nn.Module):
    """1x3 and 3x1 side by side."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.row = ConvNorm(inputs, outputs, (1, 3), padding=(0, 1))
        self.column = ConvNorm(inputs, outputs, (3, 1), padding=(1, 0))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.row(x), self.column(x)], 1)


class ModuleC(nn.Module):
    """At 8x8: branches that fork; 2048 channels out."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.one = ConvNorm(inputs, 320)
        self.three = nn.Sequential(ConvNorm(inputs, 384), Fork(384, 384))
        self.twice = nn.Sequential(ConvNorm(inputs, 448), ConvNorm(448, 384, 3, padding=1), Fork(384, 384))
        self.pool = ConvNorm(inputs, 192)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pool(F.avg_pool2d(x, 3, stride=1, padding=1))
        return torch.cat([self.one(x), self.three(x), self.twice(x), pooled], 1)


class InceptionV3(nn.Module):
    """The table's stem of six convolutions and a pool, ten modules, a linear layer: 24,125,544 parameters.

    "Three, five, two modules" count the reductions in, the one reading that meets every size of the table.
    Input ``[N, 3, 299, 299]`` (75 pixels at least), output logits ``[N, classes]``.

    Args:
        classes: logits.
        dropout: probability of dropping a feature in front of the linear layer.
    """

    def __init__(self, classes: int = 1000, dropout: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            ConvNorm(3, 32, 3, stride=2),
            ConvNorm(32, 32, 3),
            ConvNorm(32, 64, 3, padding=1),
            nn.MaxPool2d(3, stride=2),
            ConvNorm(64, 80, 3),
            ConvNorm(80, 192, 3, stride=2),
            ConvNorm(192, 288, 3, padding=1),
        )
        self.a = nn.Sequential(ModuleA(288), ModuleA(288), ReductionA(288))
        self.b = nn.Sequential(*(ModuleB(768, width) for width in (128, 160, 160, 192)), ReductionB(768))
        self.c = nn.Sequential(ModuleC(1280), ModuleC(2048))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(2048, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c(self.b(self.a(self.stem(x))))
        return self.fc(self.dropout(torch.flatten(self.pool(x), 1)))
