"""The multilayer perceptron of the course, with its activations and initialisations as options."""

import math

import torch
from torch import Tensor, nn


class ShiftedReLU(nn.Module):
    """max(x, -1)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.clamp(x, min=-1.0)


class Maxout(nn.Module):
    """The larger of two affine maps, which the linear layer before it computes side by side."""

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        return torch.maximum(a, b)


#: The leaky slope is the course's 0.1; torch's default is 0.01.
ACTIVATIONS = {
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.1),
    "elu": nn.ELU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "maxout": Maxout,
    "shifted_relu": ShiftedReLU,
    "softplus": nn.Softplus,
    "swish": nn.SiLU,
}
#: Of the weights, all with zero biases but "default", which is torch's.
INITIALISATIONS = ("default", "he", "zeros", "normal")


class MLP(nn.Module):
    """``depth`` linear layers with an activation between each two; 784-512-512-10: 669,706 parameters.

    Args:
        inputs: numbers per sample.
        width: of the hidden layers.
        depth: linear layers, the last one included.
        classes: logits.
        activation: a key of ACTIVATIONS.
        dropout: probability of dropping a hidden unit.
        init: one of INITIALISATIONS.
        hidden: widths of the hidden layers one by one, instead of ``width`` and ``depth``.
    """

    def __init__(
        self,
        inputs: int = 784,
        width: int = 512,
        depth: int = 3,
        classes: int = 10,
        activation: str = "relu",
        dropout: float = 0.0,
        init: str = "default",
        hidden: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ValueError(f"fastdl.models: expected activation to be one of {known}, got {activation!r}")
        if init not in INITIALISATIONS:
            raise ValueError(
                f"fastdl.models: expected init to be one of {', '.join(INITIALISATIONS)}, got {init!r}"
            )
        copies = 2 if activation == "maxout" else 1
        layers: list[nn.Module] = [nn.Flatten()]
        for units in (width,) * (depth - 1) if hidden is None else hidden:
            layers += [nn.Linear(inputs, copies * units), ACTIVATIONS[activation]()]
            if dropout:
                layers.append(nn.Dropout(dropout))
            inputs = units
        self.layers = nn.Sequential(*layers, nn.Linear(inputs, classes))
        for module in self.layers if init != "default" else ():
            if isinstance(module, nn.Linear):
                initialise(module, init)

    def forward(self, x: Tensor) -> Tensor:
        """``x [N, ...]`` of ``inputs`` numbers each to logits ``[N, classes]``."""
        return self.layers(x)


def initialise(layer: nn.Linear, how: str) -> None:
    """Weights by "he" (normal, deviation sqrt(2 / inputs)), "zeros" or "normal" (deviation 1); biases 0."""
    deviation = {"he": math.sqrt(2 / layer.in_features), "zeros": 0.0, "normal": 1.0}[how]
    nn.init.normal_(layer.weight, std=deviation)
    nn.init.zeros_(layer.bias)
