"""VGG16 (Simonyan and Zisserman, 2014, arXiv:1409.1556) and a small one for digits."""

import torch
from torch import Tensor, nn


class VGG(nn.Module):
    """Stages of 3x3 convolutions, each stage pooled, and linear layers.

    Args:
        stages: widths of the convolutions, stage by stage.
        hidden: widths of the hidden linear layers.
        channels: of the input.
        classes: logits.
        size: of the image.
        batch_norm: behind every convolution, which then has no bias.
        dropout: probability of dropping a hidden unit of the linear layers.
    """

    def __init__(
        self,
        stages: tuple[tuple[int, ...], ...],
        hidden: tuple[int, ...],
        channels: int = 3,
        classes: int = 1000,
        size: int = 224,
        batch_norm: bool = False,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for stage in stages:
            for width in stage:
                layers.append(nn.Conv2d(channels, width, 3, padding=1, bias=not batch_norm))
                if batch_norm:
                    layers.append(nn.BatchNorm2d(width))
                layers.append(nn.ReLU(inplace=True))
                channels = width
            layers.append(nn.MaxPool2d(2))
            size //= 2
        self.features = nn.Sequential(*layers)
        layers, inputs = [], channels * size * size
        for width in hidden:
            layers += [nn.Linear(inputs, width), nn.ReLU(inplace=True), nn.Dropout(dropout)]
            inputs = width
        self.classifier = nn.Sequential(*layers, nn.Linear(inputs, classes))

    def forward(self, x: Tensor) -> Tensor:
        """``x [N, channels, size, size]`` to logits ``[N, classes]``."""
        return self.classifier(torch.flatten(self.features(x), 1))


def vgg16(
    classes: int = 1000, size: int = 224, batch_norm: bool = False, dropout: float = 0.5, width: int = 64
) -> VGG:
    """13 convolutions and 3 linear layers: 138,357,544 parameters at the defaults."""
    counts = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))
    stages = tuple((width * factor,) * number for factor, number in counts)
    return VGG(stages, (64 * width, 64 * width), 3, classes, size, batch_norm, dropout)


def vgg_mini(classes: int = 10, batch_norm: bool = True, dropout: float = 0.0) -> VGG:
    """Six convolutions of 16, 32 and 64 channels, for digits: 147,162 parameters."""
    return VGG(((16, 16), (32, 32), (64, 64)), (128,), 1, classes, 28, batch_norm, dropout)
