"""A small vision transformer (Dosovitskiy et al., 2020, arXiv:2010.11929) for digits."""

import torch
from torch import Tensor, nn


def encoder(width: int, layers: int, heads: int, dropout: float = 0.0) -> nn.TransformerEncoder:
    """Pre-norm transformer layers with hidden layers of twice the width."""
    layer = nn.TransformerEncoderLayer(
        width, heads, 2 * width, dropout, activation="gelu", batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


class ViT(nn.Module):
    """Patches of 7x7, a class token, four layers: 139,018 parameters at the defaults.

    Input ``[N, channels, size, size]``, output logits ``[N, classes]``.
    """

    def __init__(
        self,
        size: int = 28,
        patch: int = 7,
        channels: int = 1,
        width: int = 64,
        layers: int = 4,
        heads: int = 4,
        classes: int = 10,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(0.02 * torch.randn(1, 1 + (size // patch) ** 2, width))
        self.encoder = encoder(width, layers, heads, dropout)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        token = self.token.expand(x.shape[0], -1, -1)
        x = self.encoder(torch.cat([token, patches], 1) + self.position)
        return self.head(self.norm(x[:, 0]))
