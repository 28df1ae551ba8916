"""pytorch#35202, #24823, #42616, #51911, onnxruntime P#29581: a coordinate of 1e7, or none at all, cast to an
integer before it was clamped: read out of bounds."""

import pytest
import torch
import torch.nn.functional as T

import fastdl.functional as F

VALUES = (3e7, -3e9, 1e12, 1e20, -1e30)


def check(sample, device):
    frame = torch.full((3, 1, 5, 6), float("nan"))
    frame[1] = torch.rand(1, 5, 6) + 1
    image = frame.to(device)[1:2]
    for value in VALUES:
        theta = torch.tensor([[[1.0, 0, value], [0, 1, value]]]).to(device)
        assert sample(image, theta, "zeros").eq(0).all()
        edge = sample(image, theta, "border")
        corner = image[0, 0, -1, -1] if value > 0 else image[0, 0, 0, 0]
        assert edge.eq(corner).all()


def sample(image, theta, padding_mode):
    return F.affine_grid_sample(image, theta, (1, 1, 3, 4), padding_mode=padding_mode)


def cast_first(image, theta, padding_mode):
    grid = T.affine_grid(theta, [1, 1, 3, 4], align_corners=False)
    extent = torch.tensor([6, 5])
    cell = (((grid + 1) * extent - 1) / 2).to(torch.int64).to(torch.int32).long()  # 32 bits of it are left
    inside = (cell >= 0).all(-1) & (cell < extent).all(-1)
    cell = cell.clamp(min=torch.zeros(2, dtype=torch.long), max=extent - 1)
    values = image[0, 0, cell[..., 1], cell[..., 0]]
    return values if padding_mode == "border" else values * inside


def test_far_coordinates(on, device):
    check(sample, device)


def test_seen():
    with pytest.raises(AssertionError):
        check(cast_first, "cpu")
