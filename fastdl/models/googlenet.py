"""GoogLeNet (Szegedy et al., 2014, arXiv:1409.4842) with batch norm, without side heads, and a small one."""

import torch
from torch import Tensor, nn

from .inception import ConvNorm


class Inception(nn.Module):
    """1x1, 1x1 + 3x3, 1x1 + wide, and pool + 1x1 side by side.

    Args:
        inputs: channels.
        one, three_in, three, wide_in, wide, pool: channels of the branches.
        wide_size: kernel of the wide branch: 5 in the paper; 3 in the published weights.
    """

    def __init__(
        self,
        inputs: int,
        one: int,
        three_in: int,
        three: int,
        wide_in: int,
        wide: int,
        pool: int,
        wide_size: int = 3,
    ) -> None:
        super().__init__()
        self.one = ConvNorm(inputs, one)
        self.three = nn.Sequential(ConvNorm(inputs, three_in), ConvNorm(three_in, three, 3, padding=1))
        self.wide = nn.Sequential(
            ConvNorm(inputs, wide_in), ConvNorm(wide_in, wide, wide_size, padding=wide_size // 2)
        )
        self.pool = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), ConvNorm(inputs, pool))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.wide(x), self.pool(x)], 1)


class GoogLeNet(nn.Module):
    """Nine inception modules between a stem and the average: 6,624,904 parameters.

    Input ``[N, 3, H, W]``, output logits ``[N, classes]``.
    """

    def __init__(self, classes: int = 1000, dropout: float = 0.2) -> None:
        super().__init__()
        self.features = nn.Sequential(
            ConvNorm(3, 64, 7, stride=2, padding=3),
            nn.MaxPool2d(3, stride=2, padding=1),
            ConvNorm(64, 64),
            ConvNorm(64, 192, 3, padding=1),
            nn.MaxPool2d(3, stride=2, padding=1),
            Inception(192, 64, 96, 128, 16, 32, 32),
            Inception(256, 128, 128, 192, 32, 96, 64),
            nn.MaxPool2d(3, stride=2, padding=1),
            Inception(480, 192, 96, 208, 16, 48, 64),
            Inception(512, 160, 112, 224, 24, 64, 64),
            Inception(512, 128, 128, 256, 24, 64, 64),
            Inception(512, 112, 144, 288, 32, 64, 64),
            Inception(528, 256, 160, 320, 32, 128, 128),
            nn.MaxPool2d(2, stride=2),
            Inception(832, 256, 160, 320, 32, 128, 128),
            Inception(832, 384, 192, 384, 48, 128, 128),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(1024, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.dropout(torch.flatten(self.pool(self.features(x)), 1)))


class InceptionMini(nn.Module):
    """A convolution and three inception modules, for digits: 56,954 parameters.

    Input ``[N, 1, 28, 28]``, output logits ``[N, classes]``.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            ConvNorm(1, 16, 3, padding=1),
            nn.MaxPool2d(2),
            Inception(16, 16, 16, 24, 8, 16, 8, wide_size=5),
            Inception(64, 24, 24, 32, 8, 16, 16, wide_size=5),
            nn.MaxPool2d(2),
            Inception(88, 32, 32, 48, 16, 24, 24, wide_size=5),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(128, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.pool(self.features(x)), 1))
