"""pytorch#16998, fla#172, triton#3299, #580, #7260: more rows or channels than a grid's second axis has
blocks."""

import pytest
import torch
import torch.nn.functional as T
from comparing import assert_as_torch

import fastdl.functional as F

pytestmark = pytest.mark.slow  # 70,000 blocks, emulated or interpreted

MANY = 70_000


def check(norm, shape, device):
    assert_as_torch(
        norm, lambda x: T.batch_norm(x, None, None, training=True), [torch.randn(shape).to(device)]
    )


def up_to_65535(x):
    out = T.batch_norm(x, None, None, training=True)
    return torch.cat([out[:65535], torch.zeros_like(out[65535:])])


@pytest.mark.parametrize("shape", [(MANY, 2), (2, MANY)])
def test_batch_norm(shape, on, device):
    check(lambda x: F.batch_norm(x, None, None, training=True), shape, device)


@pytest.mark.parametrize("shape", [(MANY, 1, 2, 2), (1, MANY, 2, 2)])
def test_max_pool2d(shape, on, device):
    assert_as_torch(
        lambda x: F.max_pool2d(x, 2), lambda x: T.max_pool2d(x, 2), [torch.randn(shape).to(device)]
    )


def test_cross_entropy(on, device):
    target = (torch.arange(MANY) % 3).to(device)
    for reduction in ("none", "mean"):
        assert_as_torch(
            lambda x: F.cross_entropy(x, target, reduction=reduction),  # noqa: B023
            lambda x: T.cross_entropy(x, target, reduction=reduction),  # noqa: B023
            [torch.randn(MANY, 3).to(device)],
        )


def test_seen():
    with pytest.raises(AssertionError):
        check(up_to_65535, (MANY, 2), "cpu")
