"""Liger#542, P#1389, #242, #920, inplace_abn#208: a patch on classes and modules of torch that stays behind,
or lands on models it was not meant for."""

import pytest
from torch import nn

import fastdl


def model():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))


def check(convert, revert):
    before = dict(vars(nn.functional)), dict(vars(nn.BatchNorm2d)), dict(vars(nn.Conv2d))
    other, converted = model(), model()
    types = [type(m) for m in converted]
    convert(converted)
    assert [type(m) for m in other] == types
    assert (dict(vars(nn.functional)), dict(vars(nn.BatchNorm2d)), dict(vars(nn.Conv2d))) == before
    revert(converted)
    assert [type(m) for m in converted] == types


def test_nothing_stays_behind():
    check(fastdl.convert, fastdl.revert)


def test_seen(monkeypatch):
    kept = nn.functional.batch_norm
    monkeypatch.setattr(nn.functional, "batch_norm", kept)  # to be put back

    def patch(model):
        nn.functional.batch_norm = lambda *args, **options: kept(*args, **options)

    with pytest.raises(AssertionError):
        check(patch, lambda model: None)
