"""Bugs that were found once, each with the smallest call that showed it."""

import pytest
import torch
import torch.nn.functional as T
from support import KERNEL_BACKENDS

import fastdl.functional as F
from fastdl import backends


@pytest.mark.parametrize("kernel", KERNEL_BACKENDS)
@pytest.mark.parametrize(
    ("size", "window"),
    [
        ((5, 5), {"kernel_size": 5}),
        ((3, 3), {"kernel_size": 3, "stride": (1, 3), "padding": (0, 1)}),
        ((2, 2), {"kernel_size": 2, "padding": 1, "dilation": 2}),
        ((8, 3), {"kernel_size": (7, 3), "stride": 1}),
    ],
)
def test_max_pool2d_gradient_with_fewer_windows_than_cover_a_pixel(size, window, kernel, device):
    """Backward looked at as many windows as there are, counted back from the pixel's own position, which may
    lie behind the last window: a winner there got no gradient."""
    x = torch.randn(2, 3, *size, device=device)
    grads = []
    for pool, backend in ((T.max_pool2d, "reference"), (F.max_pool2d, kernel)):
        leaf = x.clone().requires_grad_()
        with backends.use_backend(backend):
            pool(leaf, **window).sum().backward()
        grads.append(leaf.grad)
    assert torch.equal(*grads)
