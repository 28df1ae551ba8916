"""Residual networks (He et al., 2015, arXiv:1512.03385): ResNet-18, ResNet-50 and a small one for digits."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def _conv(inputs: int, outputs: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size, stride, padding=kernel_size // 2, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the shortcut; one ReLU module serves both places."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, width * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class Bottleneck(nn.Module):
    """1x1 to narrow, 3x3, 1x1 to widen fourfold, and the shortcut; one ReLU module serves three places."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv(width, width * self.expansion, 1)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, width * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    """A projection where the shape changes, else nothing."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """A residual network.

    Args:
        block: BasicBlock or Bottleneck.
        layers: blocks per stage.
        widths: channels per stage.
        channels: of the input.
        classes: logits.
        small: a 3x3 stem without pooling, for images of 28 or 32 pixels, instead of 7x7 stride 2 and a pool.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: tuple[int, ...],
        widths: tuple[int, ...] = (64, 128, 256, 512),
        channels: int = 3,
        classes: int = 1000,
        small: bool = False,
    ) -> None:
        super().__init__()
        self.conv1 = _conv(channels, widths[0], 3) if small else _conv(channels, widths[0], 7, 2)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, stride=2, padding=1)
        stages, inputs = [], widths[0]
        for stage, (blocks, width) in enumerate(zip(layers, widths, strict=True)):
            strides = [2 if stage else 1] + [1] * (blocks - 1)
            for stride in strides:
                stages.append(block(inputs, width, stride))
                inputs = width * block.expansion
        self.blocks = nn.Sequential(*stages)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """``x [N, channels, H, W]`` to logits ``[N, classes]``."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.avgpool(self.blocks(x))
        return self.fc(torch.flatten(x, 1))


def resnet18(channels: int = 3, classes: int = 1000) -> ResNet:
    """ResNet-18: 11,689,512 parameters at the defaults."""
    return ResNet(BasicBlock, (2, 2, 2, 2), channels=channels, classes=classes)


def resnet50(channels: int = 3, classes: int = 1000) -> ResNet:
    """ResNet-50: 25,557,032 parameters at the defaults."""
    return ResNet(Bottleneck, (3, 4, 6, 3), channels=channels, classes=classes)


def resnet8(channels: int = 1, classes: int = 10) -> ResNet:
    """One block per stage of 16, 32 and 64 channels, for digits: 77,754 parameters at the defaults."""
    return ResNet(BasicBlock, (1, 1, 1), (16, 32, 64), channels, classes, small=True)
