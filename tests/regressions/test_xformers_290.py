"""xformers#290, #203: a module that could not be copied or pickled, for what its kernels left in it."""

import copy
import pickle

import pytest
import torch

import fastdl


def check(module, device):
    module = module.to(device)
    x = torch.randn(2, 4, 8, 8, device=device)
    module(x).sum().backward()  # a module that has been used
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(x), module(x))
    stock = torch.nn.Sequential(
        *(getattr(torch.nn, type(m).__name__)(*a) for m, a in zip(module, ARGS, strict=True))
    )
    stock.load_state_dict(module.state_dict())
    module.load_state_dict(stock.state_dict())


ARGS = ((4, 4, 3), (4,), (2,))


class MaxPool2d(torch.nn.MaxPool2d):
    def forward(self, x):
        self.launch = lambda x: torch.nn.functional.max_pool2d(x, self.kernel_size)
        return self.launch(x)


def make(pool):
    return torch.nn.Sequential(fastdl.nn.Conv2d(*ARGS[0]), fastdl.nn.BatchNorm2d(*ARGS[1]), pool(*ARGS[2]))


def test_used_and_copied(on, device):
    check(make(fastdl.nn.MaxPool2d), device)


def test_seen():
    with pytest.raises((AttributeError, pickle.PicklingError)):
        check(make(MaxPool2d), "cpu")
