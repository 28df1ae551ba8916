"""U-Net (Ronneberger et al., 2015, arXiv:1505.04597) for segmentation."""

import torch
from torch import Tensor, nn


def _double(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3x3 convolutions, each with batch norm and ReLU."""
    layers: list[nn.Module] = []
    for width in (inputs, outputs):
        layers += [
            nn.Conv2d(width, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Down to an eighth of the size and up again, with skips: 121,204 parameters at the defaults.

    Input ``[N, channels, H, W]`` with H and W multiples of 8, output logits ``[N, classes, H, W]``.

    Args:
        channels: of the input.
        classes: logits per pixel.
        width: channels at full size, doubled by each of the three pools.
    """

    def __init__(self, channels: int = 3, classes: int = 4, width: int = 8) -> None:
        super().__init__()
        a, b, c, d = (width * factor for factor in (1, 2, 4, 8))
        self.down1, self.down2, self.down3 = _double(channels, a), _double(a, b), _double(b, c)
        self.bottom = _double(c, d)
        self.up3, self.up2, self.up1 = (nn.ConvTranspose2d(2 * n, n, 2, stride=2) for n in (c, b, a))
        self.join3, self.join2, self.join1 = (_double(2 * n, n) for n in (c, b, a))
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Conv2d(a, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(self.pool(a))
        c = self.down3(self.pool(b))
        x = self.bottom(self.pool(c))
        x = self.join3(torch.cat([c, self.up3(x)], 1))
        x = self.join2(torch.cat([b, self.up2(x)], 1))
        x = self.join1(torch.cat([a, self.up1(x)], 1))
        return self.head(x)
