"""pytorch#64039, P#74944: synchronised batch norm is another op; conversion must not make it local."""

import pytest
from torch import nn

import fastdl
import fastdl.nn


def check(convert):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.SyncBatchNorm(4), nn.ReLU(), nn.BatchNorm2d(4))
    convert(model)
    assert type(model[1]) is nn.SyncBatchNorm
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # ours are batch norms for torch, too
    assert [type(m) is nn.SyncBatchNorm for m in converted] == [False, True, False, True]


def every_batch_norm(model):
    for module in model:
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.__class__ = fastdl.nn.BatchNorm2d


def test_left_alone():
    check(fastdl.convert)


def test_seen():
    with pytest.raises(AssertionError):
        check(every_batch_norm)
