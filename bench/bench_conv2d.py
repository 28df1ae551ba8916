"""conv2d + bias + ReLU on layers of LeNet, VGG, ResNet and MobileNet, channels_last."""

import pytest
import torch
from measure import DTYPE, directions, image, implementations, measure

LAYERS = {
    "lenet 1->6 5x5": ((256, 1, 28, 28), (6, 1, 5, 5), {}),
    "stem 3->64 7x7 s2": ((64, 3, 224, 224), (64, 3, 7, 7), {"stride": 2, "padding": 3}),
    "1x1 64->256": ((64, 64, 56, 56), (256, 64, 1, 1), {}),
    "3x3 128->128": ((64, 128, 28, 28), (128, 128, 3, 3), {"padding": 1}),
    "depthwise 3x3 144": ((64, 144, 56, 56), (144, 1, 3, 3), {"padding": 1, "groups": 144}),
}


@implementations
@directions
@pytest.mark.parametrize("layer", LAYERS)
def test_conv2d(benchmark, layer, direction, implementation):
    x, w, options = LAYERS[layer]
    inputs = {
        "input": image(*x, channels_last=True),
        "weight": torch.randn(w, dtype=DTYPE) * (w[1] * w[2] * w[3]) ** -0.5,
        "bias": torch.randn(w[0], dtype=DTYPE),
    }
    measure(
        benchmark, "conv2d", inputs, tuple(inputs), implementation, direction, activation="relu", **options
    )
