"""The variational autoencoder (Kingma and Welling, 2013, arXiv:1312.6114) on digits."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class VAE(nn.Module):
    """784-400-(20+20)-400-784: 652,824 parameters at the defaults.

    Input ``[N, 1, 28, 28]``, pixels 0 to 1. Output: logits of the pixels ``[N, 784]``, mean and logarithm of
    the variance of the latent variables ``[N, latents]``. It samples in
    training and takes the mean otherwise.

    Args:
        latents: numbers that an image is told by.
        conv: encode by two convolutions of stride 2 and decode by their transposes, instead of linear layers.
    """

    def __init__(self, latents: int = 20, conv: bool = False) -> None:
        super().__init__()
        if conv:
            self.encoder = nn.Sequential(
                nn.Conv2d(1, 16, 3, stride=2, padding=1),
                nn.ReLU(),
                nn.Conv2d(16, 32, 3, stride=2, padding=1),
                nn.ReLU(),
                nn.Flatten(),
            )
            self.decoder = nn.Sequential(
                nn.Linear(latents, 32 * 7 * 7),
                nn.ReLU(),
                nn.Unflatten(1, (32, 7, 7)),
                nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1),
                nn.ReLU(),
                nn.ConvTranspose2d(16, 1, 4, stride=2, padding=1),
                nn.Flatten(),
            )
        else:
            self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(784, 400), nn.ReLU())
            self.decoder = nn.Sequential(nn.Linear(latents, 400), nn.ReLU(), nn.Linear(400, 784))
        features = 32 * 7 * 7 if conv else 400
        self.mean = nn.Linear(features, latents)
        self.log_variance = nn.Linear(features, latents)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.encoder(x)
        mean, log_variance = self.mean(features), self.log_variance(features)
        latent = mean
        if self.training:
            latent = mean + torch.exp(log_variance / 2) * torch.randn_like(mean)
        return self.decoder(latent), mean, log_variance


class ELBOLoss(nn.Module):
    """The negative evidence lower bound in nats per image: Bernoulli reconstruction and divergence."""

    def forward(self, logits: Tensor, mean: Tensor, log_variance: Tensor, x: Tensor) -> Tensor:
        pixels = torch.flatten(x, 1)
        reconstruction = F.binary_cross_entropy_with_logits(logits, pixels, reduction="sum")
        divergence = 0.5 * torch.sum(mean**2 + torch.exp(log_variance) - 1 - log_variance)
        return (reconstruction + divergence) / x.shape[0]
