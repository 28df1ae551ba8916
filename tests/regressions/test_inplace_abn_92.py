"""inplace_abn#92: batch norm by |weight|: another function where a trained weight is negative."""

import pytest
import torch

import fastdl


def check(make, device):
    stock = torch.nn.BatchNorm2d(4).to(device)
    with torch.no_grad():
        stock.weight.copy_(torch.tensor([1.0, -1.0, 0.0, -0.5]))
    ours = make(4).to(device)
    ours.load_state_dict(stock.state_dict())
    x = torch.randn(3, 4, 5, 5).to(device)
    torch.testing.assert_close(ours(x), stock(x))


class Absolute(torch.nn.BatchNorm2d):
    def forward(self, x):
        weight = self.weight.abs() + self.eps
        return torch.nn.functional.batch_norm(x, None, None, weight, self.bias, True)


def test_negative_weights(on, device):
    check(fastdl.nn.BatchNorm2d, device)


def test_seen():
    with pytest.raises(AssertionError):
        check(Absolute, "cpu")
