"""pytorch#7645, #39846, triton#1566, onnxruntime P#28302: NaN lost by a pool, which compares with `>`."""

import pytest
import torch

import fastdl.functional as F


def check(pool, device):
    x = torch.randn(2, 3, 6, 6).to(device)
    x[0, 1, 2, 3] = float("nan")
    out = pool(x, 2)
    assert out[0, 1, 1, 1].isnan() and out.isnan().sum() == 1


def by_comparison(x, window):
    return torch.nn.functional.max_pool2d(x.nan_to_num(-float("inf")), window)


def test_nan_wins_its_window(on, device):
    check(F.max_pool2d, device)


def test_seen():
    with pytest.raises(AssertionError):
        check(by_comparison, "cpu")
