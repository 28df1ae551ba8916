"""kornia#3459, #2934, #3928, P#3468: a spline's coordinates normalised twice; a base grid of one
align_corners sampled by the other, so that even the identity moved the image."""

import pytest
import torch
import torch.nn.functional as T
from namesakes import tps_grid

import fastdl.functional as F
from fastdl.ops.tps_grid_sample import regular_points


def check(sample, device):
    image = torch.rand(1, 2, 7, 9, device=device) + 1
    identity = regular_points(9).float()[None].to(device)
    for align_corners in (False, True):
        torch.testing.assert_close(sample(image, identity, align_corners), image, atol=1e-4, rtol=0)
        pixel = 2 / (image.shape[3] - align_corners)
        shifted = sample(image, identity + torch.tensor([pixel, 0.0], device=device), align_corners)
        torch.testing.assert_close(shifted[..., :-1], image[..., 1:], atol=1e-4, rtol=0)


def ours(image, points, align_corners):
    return F.tps_grid_sample(image, points, image.shape, align_corners=align_corners)


def normalised_twice(image, points, align_corners):
    grid = tps_grid(points, image.shape, None, align_corners)
    extents = torch.tensor([image.shape[3], image.shape[2]])
    return T.grid_sample(image, 2 * grid / (extents - 1) - 1, align_corners=align_corners)


def always_corners(image, points, align_corners):
    return T.grid_sample(image, tps_grid(points, image.shape, None, True), align_corners=align_corners)


def test_identity_and_translation(on, device):
    check(ours, device)


@pytest.mark.parametrize("broken", [normalised_twice, always_corners])
def test_seen(broken):
    with pytest.raises(AssertionError):
        check(broken, "cpu")
