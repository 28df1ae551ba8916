"""AlexNet (Krizhevsky et al., 2012) by the course's layer table: one tower, no groups."""

import torch
from torch import Tensor, nn


class AlexNet(nn.Module):
    """Five convolutions and three linear layers, each with ReLU but the last: 62,378,344 parameters.

    Input ``[N, 3, 227, 227]``, logits ``[N, 1000]``; normalisation is behind the pool, as in the table.

    Args:
        channels: of the input.
        classes: logits.
        widths: of the five convolutions.
        hidden: width of the two hidden linear layers.
        size: of the image; smaller ones need no less than 67 pixels.
        dropout: probability of dropping a hidden unit of the linear layers.
    """

    def __init__(
        self,
        channels: int = 3,
        classes: int = 1000,
        widths: tuple[int, ...] = (96, 256, 384, 384, 256),
        hidden: int = 4096,
        size: int = 227,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        a, b, c, d, e = widths
        self.features = nn.Sequential(
            nn.Conv2d(channels, a, 11, stride=4),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
            nn.LocalResponseNorm(5),
            nn.Conv2d(a, b, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
            nn.LocalResponseNorm(5),
            nn.Conv2d(b, c, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(c, d, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(d, e, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
        )
        side = (size - 11) // 4 + 1
        for _ in range(3):
            side = (side - 3) // 2 + 1
        self.classifier = nn.Sequential(
            nn.Linear(e * side * side, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))


def alexnet_mini(classes: int = 10, dropout: float = 0.2) -> AlexNet:
    """An eighth of the width, for digits of 67 pixels: 136,418 parameters."""
    return AlexNet(1, classes, (12, 32, 48, 48, 32), 256, 67, dropout)
