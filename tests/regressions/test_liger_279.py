"""Liger#279, #257, #268, inplace_abn#163, #179: weights, buffers or settings not carried over when a model
that exists is converted: trained parameters gone, an optimizer that updates what nobody uses."""

import pytest
import torch
from torch import nn

import fastdl


def check(convert):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, eps=1e-3, momentum=None), nn.ReLU())
    model(torch.randn(8, 1, 6, 6))
    model[1].weight.requires_grad_(False)
    state = {
        name: (id(t), t.detach().clone()) for name, t in (*model.named_parameters(), *model.named_buffers())
    }
    model.eval()
    x = torch.randn(2, 1, 6, 6)
    expected = model(x)
    converted = convert(model)
    for name, tensor in (*converted.named_parameters(), *converted.named_buffers()):
        assert (id(tensor), True) == (state[name][0], torch.equal(tensor, state[name][1])), name
    assert not converted[1].weight.requires_grad and not converted.training
    torch.testing.assert_close(converted(x), expected)


def anew(model):
    return nn.Sequential(fastdl.nn.Conv2d(1, 4, 3), fastdl.nn.BatchNorm2d(4), nn.ReLU()).eval()


def test_the_same_tensors():
    check(fastdl.convert)


def test_seen():
    with pytest.raises(AssertionError):
        check(anew)
