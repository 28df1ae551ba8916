"""A spatial transformer network for distorted digits (Jaderberg et al., 2015, arXiv:1506.02025)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class STN(nn.Module):
    """A localisation net that looks at the image, a sampler that straightens it, a classifier behind.

    Input ``[N, 1, 42, 42]``, output logits ``[N, 10]``; 90,160 parameters. The last layer of the
    localisation net starts at the identity.

    Args:
        transform: False leaves the transformer out: the plain classifier (74,410 parameters).
    """

    def __init__(self, transform: bool = True) -> None:
        super().__init__()
        if transform:
            self.localisation = nn.Sequential(
                nn.MaxPool2d(2),
                nn.Conv2d(1, 10, kernel_size=5),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Conv2d(10, 20, kernel_size=5),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(20 * 4 * 4, 32),
                nn.ReLU(),
                nn.Linear(32, 6),
            )
            nn.init.zeros_(self.localisation[-1].weight)
            with torch.no_grad():
                self.localisation[-1].bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 0.0]))
        else:
            self.localisation = None
        self.conv1 = nn.Conv2d(1, 16, kernel_size=5, padding=2)
        self.conv2 = nn.Conv2d(16, 32, kernel_size=5, padding=2)
        self.conv3 = nn.Conv2d(32, 32, kernel_size=3, padding=1)
        self.fc1 = nn.Linear(32 * 5 * 5, 64)
        self.fc2 = nn.Linear(64, 10)

    def transform(self, x: Tensor) -> Tensor:
        """``x [N, 1, 42, 42]`` as the classifier gets to see it."""
        if self.localisation is None:
            return x
        theta = self.localisation(x).view(-1, 2, 3)
        grid = F.affine_grid(theta, x.size(), align_corners=False)
        return F.grid_sample(x, grid, align_corners=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.transform(x)
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.max_pool2d(F.relu(self.conv3(x)), 2)
        x = torch.flatten(x, 1)
        x = F.relu(self.fc1(x))
        return self.fc2(x)
