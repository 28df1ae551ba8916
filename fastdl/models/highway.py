"""Highway networks (Srivastava et al., 2015, arXiv:1505.00387), plain and residual ones of the same depth."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _layer(width: int, conv: bool) -> nn.Module:
    return nn.Conv2d(width, width, 3, padding=1) if conv else nn.Linear(width, width)


class Plain(nn.Module):
    """relu(W x)."""

    layers = 1

    def __init__(self, width: int, conv: bool) -> None:
        super().__init__()
        self.transform = _layer(width, conv)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.transform(x))


class Gated(nn.Module):
    """T relu(W x) + (1 - T) x with a gate T that starts nearly closed, at a bias of -2."""

    layers = 1

    def __init__(self, width: int, conv: bool) -> None:
        super().__init__()
        self.transform = _layer(width, conv)
        self.gate = _layer(width, conv)
        nn.init.constant_(self.gate.bias, -2.0)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate(x))
        return gate * F.relu(self.transform(x)) + (1 - gate) * x


class Shortcut(nn.Module):
    """x + relu(W x)."""

    layers = 1

    def __init__(self, width: int, conv: bool) -> None:
        super().__init__()
        self.transform = _layer(width, conv)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.transform(x))


class Residual(nn.Module):
    """x + V relu(W x), the identity at the start: V is zero."""

    layers = 2

    def __init__(self, width: int, conv: bool) -> None:
        super().__init__()
        self.transform = _layer(width, conv)
        self.back = _layer(width, conv)
        nn.init.zeros_(self.back.weight)
        nn.init.zeros_(self.back.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.back(F.relu(self.transform(x)))


KINDS = {"highway": Gated, "plain": Plain, "shortcut": Shortcut, "residual": Residual}


class Highway(nn.Module):
    """A narrow and deep digit classifier.

    Input ``[N, 1, 28, 28]``, output logits ``[N, classes]``.

    Args:
        kind: of the layers, a key of KINDS.
        depth: layers between the first and the last.
        width: units, or channels with ``conv``.
        classes: logits.
        conv: 3x3 convolutions on maps of half the size instead of linear layers.
    """

    def __init__(
        self, kind: str = "highway", depth: int = 10, width: int = 64, classes: int = 10, conv: bool = False
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"fastdl.models: expected kind to be one of {', '.join(KINDS)}, got {kind!r}")
        block = KINDS[kind]
        if conv:
            self.stem = nn.Sequential(nn.Conv2d(1, width, 3, stride=2, padding=1), nn.ReLU())
        else:
            self.stem = nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.ReLU())
        self.blocks = nn.Sequential(*(block(width, conv) for _ in range(depth // block.layers)))
        self.pool = nn.AdaptiveAvgPool2d(1) if conv else nn.Identity()
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.blocks(self.stem(x)))
        return self.fc(torch.flatten(x, 1))
