"""pytorch#12013, #189831, #36530: a batch of nothing made the running statistics NaN, or crashed backward."""

import pytest
import torch

import fastdl


def check(module):
    module.train()
    before = [module.running_mean.clone(), module.running_var.clone()]
    x = torch.empty(0, 3, 4, 4, device=module.weight.device, requires_grad=True)
    module(x).sum().backward()
    assert x.grad.shape == x.shape
    assert torch.equal(module.running_mean, before[0]) and torch.equal(module.running_var, before[1])
    assert module.num_batches_tracked == 1


class Averaging(torch.nn.BatchNorm2d):
    def forward(self, x):
        self.num_batches_tracked += 1
        self.running_mean.lerp_(x.detach().mean((0, 2, 3)), 0.1)
        return x * self.weight.view(-1, 1, 1)


def test_statistics_of_nothing(on, device):
    check(fastdl.nn.BatchNorm2d(3).to(device))


def test_seen():
    with pytest.raises(AssertionError):
        check(Averaging(3))
