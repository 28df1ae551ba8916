"""DenseNet-BC (Huang et al., 2016, arXiv:1608.06993): every layer sees all layers before it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DenseLayer(nn.Module):
    """BN-ReLU-3x3; its ``growth`` channels are put behind the input's."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


class BottleneckLayer(nn.Module):
    """BN-ReLU-1x1, BN-ReLU-3x3; its ``growth`` channels are put behind the input's."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(F.relu(self.norm1(x)))
        out = self.conv2(F.relu(self.norm2(out)))
        return torch.cat([x, out], 1)


class Transition(nn.Module):
    """BN-ReLU-1x1 to half the channels, then average pooling to half the size."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, inputs // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(F.relu(self.norm(x))), 2)


class DenseNet(nn.Module):
    """Dense blocks with transitions between them; DenseNet-121 at the defaults: 7,978,856 parameters.

    Args:
        growth: channels that a layer adds.
        layers: per block.
        channels: of the input.
        classes: logits.
        small: a 3x3 stem of 16 channels without pooling, for images of 28 or 32 pixels, instead of 7x7
            stride 2 and a pool, and layers without bottleneck.
    """

    def __init__(
        self,
        growth: int = 32,
        layers: tuple[int, ...] = (6, 12, 24, 16),
        channels: int = 3,
        classes: int = 1000,
        small: bool = False,
    ) -> None:
        super().__init__()
        width = 16 if small else 2 * growth
        layer = DenseLayer if small else BottleneckLayer
        if small:
            self.stem = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        else:
            self.stem = nn.Sequential(
                nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(3, stride=2, padding=1),
            )
        blocks: list[nn.Module] = []
        for block, number in enumerate(layers):
            if block:
                blocks.append(Transition(width))
                width //= 2
            blocks += [layer(width + i * growth, growth) for i in range(number)]
            width += number * growth
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(width)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """``x [N, channels, H, W]`` to logits ``[N, classes]``."""
        x = F.relu(self.norm(self.blocks(self.stem(x))))
        return self.fc(torch.flatten(self.pool(x), 1))


def densenet_mini(channels: int = 1, classes: int = 10) -> DenseNet:
    """Growth 12, three blocks of four layers, for digits: 69,226 parameters."""
    return DenseNet(12, (4, 4, 4), channels, classes, small=True)
