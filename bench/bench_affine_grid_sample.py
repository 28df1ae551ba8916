"""Affine sampling of MNIST digits and of photographs; theta alone, as in a transformer on images, or both."""

import pytest
import torch
from measure import directions, image, implementations, measure

SHAPES = {"mnist": (256, 1, 28, 28), "photo": (64, 3, 224, 224)}
GRADS = {"theta": ("theta",), "input and theta": ("input", "theta")}


@implementations
@directions
@pytest.mark.parametrize("grads", GRADS)
@pytest.mark.parametrize("shape", SHAPES)
def test_affine_grid_sample(benchmark, shape, grads, direction, implementation):
    x = image(*SHAPES[shape])
    theta = torch.tensor([[0.8, -0.45, 0.1], [0.5, 0.85, -0.15]]) + 0.05 * torch.rand(len(x), 2, 3)
    inputs = {"input": x, "theta": theta}
    measure(
        benchmark, "affine_grid_sample", inputs, GRADS[grads], implementation, direction, size=tuple(x.shape)
    )
