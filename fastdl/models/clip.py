"""A small CLIP (Radford et al., 2021, arXiv:2103.00020): images and captions in one space."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .vit import encoder


class CLIP(nn.Module):
    """Convolutions for images ``[N, 3, 28, 28]``, a transformer for captions: 133,825 parameters.

    Output: the scaled cosines of every image with every caption, ``[N images, M captions]``.

    Args:
        vocabulary: number of words, the marks of padding, start and end included.
        length: of the captions, in words.
        width: of the space.
    """

    def __init__(self, vocabulary: int = 22, length: int = 9, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((3, 16), (16, 32), (32, 64)):
            layers += [
                nn.Conv2d(inputs, outputs, 3, padding=1),
                nn.BatchNorm2d(outputs),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(2),
            ]
        self.image = nn.Sequential(*layers, nn.Flatten(), nn.Linear(576, width))
        self.words = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(0.02 * torch.randn(1, length, width))
        self.encoder = encoder(width, 2, 4)
        self.text = nn.Linear(width, width)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def embed_images(self, images: Tensor) -> Tensor:
        """``[N, 3, 28, 28]`` to unit vectors ``[N, width]``."""
        return F.normalize(self.image(images), dim=1)

    def embed_texts(self, tokens: Tensor) -> Tensor:
        """Word numbers ``[M, length]`` to unit vectors ``[M, width]``, by what the last word became."""
        x = self.encoder(self.words(tokens) + self.position)
        return F.normalize(self.text(x[:, -1]), dim=1)

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        cosines = torch.matmul(self.embed_images(images), self.embed_texts(tokens).t())
        return torch.exp(self.log_scale) * cosines


class CLIPLoss(nn.Module):
    """Cross-entropy in both directions; captions that are equal share the target."""

    def forward(self, logits: Tensor, same: Tensor) -> Tensor:
        """``same [N, N]``: 1.0 where caption and caption are equal, else 0.0."""
        target = same / torch.sum(same, 1, keepdim=True)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2
