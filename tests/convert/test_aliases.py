"""What a forward shares with the modules that it calls, and what changes while it runs.

A plan repeats what one run of a forward did. These forwards do otherwise in the next run although nothing
that a plan looks at beforehand has changed; each is refused, or written down so that it is right.
"""

from __future__ import annotations

import copy
from collections import namedtuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastdl.convert import convert, explain, revert
from fastdl.convert.swap import is_converted

Output = namedtuple("Output", "main aux")


class Base(nn.Module):
    def __init__(self, part: nn.Module | None = None):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.bn = nn.BatchNorm2d(2)
        self.relu = nn.ReLU()
        self.part = part

    def body(self, x):
        return self.relu(self.bn(self.conv(x)))


def as_written(model: nn.Module) -> None:
    """Two runs of the converted ``model`` give what two runs of its reverted twin do."""
    x = torch.randn(2, 2, 4, 4)
    results = []
    for each in (model, revert(copy.deepcopy(model))):
        results.append([each(x.clone()), each(x.clone())])
    torch.testing.assert_close(*results)


class Appends(nn.Module):
    def forward(self, xs):
        xs.append(xs[-1] + 1)


class Notes(nn.Module):
    def forward(self, x, notes):
        notes["mean"] = x.mean()
        return x


class HandsOnList(Base):
    def forward(self, x):
        xs = [self.body(x)]
        self.part(xs)
        return torch.cat(xs, 1)


class HandsOnDict(Base):
    def forward(self, x):
        notes = {}
        return self.part(self.body(x), notes=notes), notes


class HandsOnListInTuple(Base):
    def forward(self, x):
        xs = [self.body(x)]
        return self.part((xs, 1)), xs


class ComparesIdentity(Base):
    def forward(self, x):
        y = self.part(x)
        return self.body(x) if y is x else self.body(x) + y


class ComparesDtypeByIdentity(Base):
    def forward(self, x):
        return self.body(x) * 2 if x.dtype is torch.float32 else x


class ComparesModulesByIdentity(Base):
    def forward(self, x):
        return self.body(x) * 2 if self.part is self.bn else self.body(x)


class ComparesModules(Base):
    def forward(self, x):
        return self.body(x) * 2 if self.part == self.bn else self.body(x)


class FieldForNone(Base):
    def forward(self, x):
        out = self.part(self.body(x))
        return out.main if out.aux is None else out.aux


class NoAux(nn.Module):
    def forward(self, x):
        return Output(x, None)


class GradForNone(Base):
    def forward(self, x):
        return self.body(x) if x.grad_fn is None else x


class KeepsLoss(nn.Module):
    loss = None

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.loss = x.detach().mean()
        self.calls += 1
        return x


class ReadsLoss(Base):
    def forward(self, x):
        y = self.part(self.body(x))
        return y, self.part.loss


class ReadsCount(Base):
    def forward(self, x):
        y = self.part(self.body(x))
        return y * self.part.calls


class HookSets(Base):
    def __init__(self):
        super().__init__()
        self.mean = None
        self.bn.register_forward_hook(self.keep)

    def keep(self, module, args, out):
        self.mean = out.detach().mean()

    def forward(self, x):
        y = self.body(x)
        return y, self.mean


class HookAppends(HookSets):
    def __init__(self):
        super().__init__()
        self.means = means = []
        self.conv.register_forward_hook(lambda module, args, out: means.append(out.detach().mean()))

    def forward(self, x):
        y = self.body(x)
        return y, list(self.means)


class Fields(nn.Module):
    def forward(self, x):
        return {0: x * 5, 1: x * 7}


REFUSED = [
    (lambda: HandsOnList(Appends()), "hands a list or dict to self.part, which may change it"),
    (lambda: HandsOnDict(Notes()), "hands a list or dict to self.part, which may change it"),
    (lambda: HandsOnListInTuple(nn.Identity()), "hands a list or dict to self.part, which may change it"),
    (lambda: ComparesIdentity(nn.Identity()), "compares identities"),
    (ComparesDtypeByIdentity, "compares identities"),
    (ComparesModulesByIdentity, "compares identities"),
    (lambda: ComparesModules(nn.Identity()), "compares modules"),
    (lambda: FieldForNone(NoAux()), "tests a computed value for None"),
    (GradForNone, "tests a computed value for None"),
    (lambda: ReadsLoss(KeepsLoss()), "reads self.part.loss after a call that may change it"),
    (lambda: ReadsCount(KeepsLoss()), "reads self.part.calls after a call that may change it"),
    (HookSets, "reads self.mean after a call that may change it"),
    (HookAppends, "reads self.means after a call that may change it"),
]


@pytest.mark.parametrize(("build", "reason"), REFUSED, ids=[reason for _, reason in REFUSED])
def test_refused(build, reason):
    model = convert(build())
    assert not is_converted(model)
    (row,) = [row for row in explain(model).rows if row.path == "" and row.call == "forward"]
    assert row.note.endswith(f".forward {reason}")
    if not isinstance(model, HookSets):  # a copy's hooks are those of the original
        as_written(model)


def test_another_modules_hook_may_be_there():
    class Optional(Base):
        def forward(self, x):
            y = self.body(x)
            return y if self.part is None else self.part(y)

    model, seen = Optional(), []
    model.bn.register_forward_hook(lambda *args: seen.append(1))
    nn.utils.parametrizations.weight_norm(model.conv)
    assert is_converted(convert(model))
    as_written(model)


def test_old_tests_for_none_and_true():
    class Old(Base):
        flag = True

        def forward(self, x):
            y = self.body(x) if self.flag is True else x
            return self.part(y) if self.part != None else y  # noqa: E711

    for part in (None, nn.Identity()):
        model = convert(Old(part))
        assert is_converted(model)
        as_written(model)
        model.flag = False
        as_written(model)


def test_unpacking():
    class Unpacks(Base):
        def forward(self, x):
            n, c, h, w = x.shape
            (a, b), other = self.part(self.body(x)), self.part(x)
            first, second = other.values()
            return a + b, (first * second).view(n, c * h, w)

    model = convert(Unpacks(Fields()))  # a and b are the keys
    assert is_converted(model)
    as_written(model)
    with pytest.raises(ValueError, match="expected 4 values to unpack, got 3"):
        model(torch.ones(2, 4, 4))


def test_a_shape_is_that_of_the_moment():
    class Reshapes(Base):
        def forward(self, x):
            y = self.body(x) * 2
            shape, ndim = y.shape, y.ndim
            y.unsqueeze_(0)
            return y.view(shape) * ndim

    model = convert(Reshapes())
    assert is_converted(model)
    as_written(model)


def test_a_parameter_that_is_taken_away():
    class Scaled(Base):
        def __init__(self):
            super().__init__()
            self.gamma = nn.Parameter(torch.ones(1) * 2)

        def forward(self, x):
            y = self.body(x)
            return y if self.gamma is None else y * self.gamma

    model = convert(Scaled())
    as_written(model)
    model.gamma = None
    as_written(model)
    assert is_converted(model)
    model.gamma = nn.Parameter(torch.ones(1))
    nn.utils.parametrize.register_parametrization(model, "gamma", nn.Softplus())
    as_written(model)


def test_a_child_that_is_replaced_by_one_that_writes_to_its_input():
    """A norm is computed where its sum is, behind what was called in between."""

    class Branches(Base):
        def forward(self, x):
            y = self.bn(x)
            return y + self.conv(x)

    model = convert(Branches()).eval()
    assert [row.call for row in explain(model).rows if " + " in row.call] == ["bn + add"]
    with torch.no_grad():
        as_written(model)
        model.conv = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(2, 2, 1))
        as_written(model)


class Overwritten(Base):
    """leaky_relu saves its input in torch, its output when fused: that must not be written to then."""

    def __init__(self, write):
        super().__init__(nn.ReLU(inplace=True))
        self.act = nn.LeakyReLU(0.1)
        self.write = write

    def forward(self, x):
        y = self.act(self.conv(x))
        if self.write == "iadd":
            y += 1
        elif self.write == "method":
            y.mul_(2)
        elif self.write == "module":
            y = self.part(y)
        elif self.write == "out is None":  # which torch's functions pass on to each other when traced
            y = F.normalize(y, dim=1, out=None)
        return y


@pytest.mark.parametrize("write", ["iadd", "method", "module", "nothing", "out is None"])
def test_a_value_that_is_overwritten_is_not_fused(write, on, device):
    model = Overwritten(write).to(device)
    x = torch.randn(1, 2, 4, 4, device=device)
    expected = torch.autograd.grad(model(x).sum(), model.conv.weight)
    convert(model)
    assert is_converted(model) == (write in ("nothing", "out is None"))
    got = torch.autograd.grad(model(x).sum(), model.conv.weight)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
