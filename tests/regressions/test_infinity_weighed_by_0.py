"""Found by fuzzing: where padding clamps a coordinate to pixel 0, torch weighs pixel 1 by 0; 0 * Inf is NaN.

A kernel that does not read pixel 1 there hides the infinity.
"""

import pytest
import torch
from namesakes import NAMESAKES
from support import KERNEL_BACKENDS

import fastdl.functional as F
from fastdl import backends

THETAS = {
    "affine_grid_sample": torch.tensor([[[0.5, 0.0, -4.0], [0.0, 1.0, 0.0]]]),  # far left of the image
    "tps_grid_sample": torch.tensor([[[-4.0, -1.0], [-3.0, -1.0], [-4.0, 1.0], [-3.0, 1.0]]]),
}


def check(op, sample, device):
    image = torch.zeros(1, 1, 4, 5)
    image[..., 1] = float("inf")
    call = image, THETAS[op], (1, 1, 4, 5)
    out = sample(*(t.to(device) if isinstance(t, torch.Tensor) else t for t in call), padding_mode="border")
    assert NAMESAKES[op](*call, padding_mode="border").isnan().all() and out.isnan().all()


@pytest.mark.parametrize("kernel", KERNEL_BACKENDS)
@pytest.mark.parametrize("op", THETAS)
def test_not_a_number(op, kernel, device):
    with backends.use_backend(kernel):
        check(op, getattr(F, op), device)


@pytest.mark.parametrize("op", THETAS)
def test_seen(op):
    def reads_what_counts(*args, **options):
        return NAMESAKES[op](*args, **options).nan_to_num(0.0)

    with pytest.raises(AssertionError):
        check(op, reads_what_counts, "cpu")
