"""Networks of other people, converted: what they compute, their gradients, what revert leaves of them."""

import copy

import pytest
import torch
from extras import MODELS, made, synchronised
from whole import assert_judged_once, assert_same, step

from fastdl import backends
from fastdl.convert import convert, explain, revert

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", MODELS)
def test_computes_the_same(name):
    """By the reference to the bit, in both modes; by kernels within the rule; and as before after revert."""
    model, x = made(name)
    ours = convert(copy.deepcopy(model))
    rows = explain(ours).rows
    assert sum(" + " in row.call and row.op != "" for row in rows) >= MODELS[name][2]
    for training in (True, False):
        twin = copy.deepcopy(model).train(training)
        assert_same(step(copy.deepcopy(ours).train(training), x), step(twin, x))
    with backends.use_backend("auto"):
        assert_judged_once(ours, model, x)
    back = revert(ours)
    assert [type(module) for module in back.modules()] == [type(module) for module in model.modules()]
    assert all(vars(a).keys() == vars(b).keys() for a, b in zip(back.modules(), model.modules(), strict=True))
    assert_same(step(back, x), step(model, x))


def test_synchronised_norms_stay():
    """Without other processes they compute what any batch norm does, and stay what they are."""
    torch.manual_seed(0)
    model, x = synchronised(), torch.randn(2, 3, 64, 64)
    ours = convert(copy.deepcopy(model))
    assert sum(type(module) is torch.nn.SyncBatchNorm for module in ours.modules()) == 20
    for training in (True, False):
        assert_same(step(ours.train(training), x), step(model.train(training), x))
