"""Training batch norm + ReLU, with and without a residual, on ResNet's layers."""

import pytest
import torch
from measure import directions, image, implementations, measure

SHAPES = {"64@56": (64, 64, 56, 56), "512@7": (64, 512, 7, 7)}
FORMS = {"relu": (False, "relu"), "add relu": (True, "relu")}


@implementations
@directions
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("shape", SHAPES)
def test_batch_norm(benchmark, shape, channels_last, form, direction, implementation):
    residual, activation = FORMS[form]
    x = image(*SHAPES[shape], channels_last=channels_last)
    inputs = {
        "input": x,
        "running_mean": torch.zeros(x.shape[1]),
        "running_var": torch.ones(x.shape[1]),
        "weight": torch.rand(x.shape[1]) + 0.5,
        "bias": torch.randn(x.shape[1]),
    }
    if residual:
        inputs["residual"] = torch.randn_like(x)
    grads = ("input", "weight", "bias", *(["residual"] if residual else []))
    measure(
        benchmark,
        "batch_norm",
        inputs,
        grads,
        implementation,
        direction,
        training=True,
        activation=activation,
    )
