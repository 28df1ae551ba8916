"""The linear classifier: one score per class, f = Wx + b."""

import math

from torch import Tensor, nn


class Linear(nn.Module):
    """The pixels of an image, weighted: 7,850 parameters for digits, 30,730 for 32x32 colour images.

    Args:
        shape: of one input, [channels, height, width].
        classes: logits.
    """

    def __init__(self, shape: tuple[int, ...] = (1, 28, 28), classes: int = 10) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(math.prod(shape), classes)

    def forward(self, x: Tensor) -> Tensor:
        """``x [N, *shape]`` to logits ``[N, classes]``."""
        return self.fc(self.flatten(x))
