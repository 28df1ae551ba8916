"""A Siamese network (Bromley et al., 1993): one set of weights looks at both images of a pair."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Siamese(nn.Module):
    """Embeds two digits ``[N, 1, 28, 28]`` by the same layers into ``[N, 16]``: 47,120 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, kernel_size=5)
        self.conv2 = nn.Conv2d(16, 32, kernel_size=5)
        self.fc1 = nn.Linear(32 * 4 * 4, 64)
        self.fc2 = nn.Linear(64, 16)

    def embed(self, x: Tensor) -> Tensor:
        """One side of the pair."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(torch.flatten(x, 1))))

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return self.embed(a), self.embed(b)


class ContrastiveLoss(nn.Module):
    """Squared distance of equal pairs, squared shortfall of the distance from ``margin`` of unequal ones."""

    def __init__(self, margin: float = 1.0) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, a: Tensor, b: Tensor, same: Tensor) -> Tensor:
        """``same [N]``: 1.0 where both show the same class, else 0.0."""
        distance = F.pairwise_distance(a, b)
        apart = torch.clamp(self.margin - distance, min=0)
        return torch.mean(same * distance**2 + (1 - same) * apart**2)
