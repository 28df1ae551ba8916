"""pytorch#89836, #94733, P#58618: coordinates in half precision, off by pixels; an image in half precision
with a theta in float32 refused."""

import pytest
import torch
import torch.nn.functional as T

import fastdl.functional as F
from fastdl import parity


def check(sample, device):
    image = torch.rand(1, 1, 3, 500).half().to(device)
    theta = torch.tensor([[[0.97, 0, 0.013], [0, 1.0, 0]]]).to(device)
    grid = T.affine_grid(theta.double(), [1, 1, 3, 400], align_corners=False)
    oracle = T.grid_sample(image.double(), grid, align_corners=False)
    single = T.affine_grid(theta, [1, 1, 3, 400], align_corners=False)
    torchs = T.grid_sample(image.float(), single, align_corners=False).half()
    assert not parity.judge(sample(image, theta), torchs, oracle).failure


def grid_in_half(image, theta):
    return T.grid_sample(image, T.affine_grid(theta.half(), [1, 1, 3, 400], False), align_corners=False)


def test_coordinates_in_float32(on, device):
    check(lambda image, theta: F.affine_grid_sample(image, theta, (1, 1, 3, 400)), device)


def test_seen():
    with pytest.raises(AssertionError):
        check(grid_in_half, "cpu")
