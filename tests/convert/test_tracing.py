"""What a trace could get wrong without a word: each trap is a small module, and none is fused wrongly.

A module is either refused with a reason, or right in every call whatever changes between the calls.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import operator
import random
from collections import OrderedDict, namedtuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from fastdl.convert import convert, explain, revert
from fastdl.convert.swap import is_converted

SWITCH = True
SEEN: list[object] = []
Pair = namedtuple("Pair", "first second")


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.bn = nn.BatchNorm2d(1)
        self.relu = nn.ReLU()

    def body(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.bn(self.conv(x)))


def plain(x: torch.Tensor) -> torch.Tensor:
    return x + 1


def image() -> torch.Tensor:
    return torch.randn(2, 1, 4, 4)


def same(model: nn.Module, *inputs: torch.Tensor, **kwargs: object) -> None:
    """The converted model computes what its reverted twin does, from the same random state."""
    written = revert(copy.deepcopy(model))
    results = []
    for each in (model, written):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        results.append(each(*[x.clone() for x in inputs], **kwargs))
    torch.testing.assert_close(*results)


# -- refused ------------------------------------------------------------------------------------------------


class ReadsGlobal(Base):
    def forward(self, x):
        return self.body(x) if SWITCH else x


class WritesGlobal(Base):
    def forward(self, x):
        global SWITCH
        SWITCH = True
        return self.body(x)


class AppendsToGlobal(Base):
    def forward(self, x):
        SEEN.append(x)
        return self.body(x)


class Prints(Base):
    def forward(self, x):
        print(x.shape)
        return self.body(x)


class PythonRandom(Base):
    def forward(self, x):
        return self.body(x) if random.random() < 0.5 else x


class NumpyRandom(Base):
    def forward(self, x):
        return self.body(x) * np.random.rand()


class TorchRandomBranch(Base):
    def forward(self, x):
        return self.body(x) if torch.rand(1) < 0.5 else x


class BranchesOnValue(Base):
    def forward(self, x):
        return self.body(x) if x.sum() > 0 else x


class BranchesOnShape(Base):
    def forward(self, x):
        return self.body(x) if x.shape[0] > 1 else x


class BranchesOnDtype(Base):
    def forward(self, x):
        return self.body(x) if x.dtype == torch.float32 else x


class LoopsOverBatch(Base):
    def forward(self, x):
        return torch.stack([self.body(sample[None]) for sample in x])


class GradMode(Base):
    def forward(self, x):
        return self.body(x) if torch.is_grad_enabled() else x


class AutocastMode(Base):
    def forward(self, x):
        return self.body(x) if torch.is_autocast_enabled("cpu") else x


class NoGradBlock(Base):
    def forward(self, x):
        with torch.no_grad():
            x = self.body(x)
        return x * self.conv.weight.sum()


class Decorated(Base):
    @torch.no_grad()
    def forward(self, x):
        return self.body(x)


class DecoratedHelper(Base):
    @torch.no_grad()
    def helper(self, x):
        return self.body(x)

    def forward(self, x):
        return self.helper(x) * self.conv.weight.sum()


class Checkpoints(Base):
    def forward(self, x):
        return checkpoint(self.body, x, use_reentrant=False)


class CatchesErrors(Base):
    def forward(self, x):
        try:
            return self.body(x) if x.sum() > 0 else x
        except Exception:
            return x


class Suppresses(Base):
    def forward(self, x):
        with contextlib.suppress(Exception):
            return self.body(x) if x.sum() > 0 else x
        return x


class AssignsToSelf(Base):
    def forward(self, x):
        self.last = x
        return self.body(x)


class Counts(Base):
    def __init__(self):
        super().__init__()
        self.steps = 0

    def forward(self, x):
        self.steps += 1
        return self.body(x)


class SetsByName(Base):
    def forward(self, x):
        nn.Module.__setattr__(self, "last", x)
        return self.body(x)


class AppendsToOwnList(Base):
    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(1)
        return self.body(x)


class OwnDict(Base):
    def __init__(self):
        super().__init__()
        self.cache = {"a": 1}

    def forward(self, x):
        self.cache["b"] = 2
        return self.body(x)


class LooksUpByShape(Base):
    def __init__(self):
        super().__init__()
        self.scales = {4: 2.0}

    def forward(self, x):
        return self.body(x) * self.scales.get(x.shape[-1], 1.0)


class VarArgs(Base):
    def forward(self, *xs):
        return self.body(xs[0])


class AsksType(Base):
    def forward(self, x):
        y = self.body(x)
        return y if isinstance(y, torch.Tensor) else x


class AsksExactType(Base):
    def forward(self, x):
        return self.body(x) if type(x) is torch.Tensor else x


class HasAttribute(Base):
    def forward(self, x):
        return x if hasattr(x, "special") else self.body(x)


class Nothing(nn.Module):
    def forward(self, x):
        return None


class ChildReturnsNone(Base):
    def __init__(self):
        super().__init__()
        self.nothing = Nothing()

    def forward(self, x):
        y = self.nothing(x)
        return self.body(x) if y is None else x


class CustomFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, grad):
        return grad * 10


class AppliesFunction(Base):
    def forward(self, x):
        return CustomFunction.apply(self.body(x))


class ChildMethod(Base):
    def __init__(self):
        super().__init__()
        self.inner = Base()

    def forward(self, x):
        return self.inner.body(self.body(x))


class ReadsObject(Base):
    def __init__(self):
        super().__init__()
        self.config = Config(flag=True)

    def forward(self, x):
        return self.body(x) if self.config.flag else x


class Config:
    def __init__(self, flag):
        self.flag = flag

    def __eq__(self, other):
        return self.flag == other.flag


class OwnGetattr(Base):
    def __getattr__(self, name):
        return super().__getattr__(name)

    def forward(self, x):
        return self.body(x)


class ReturnsOrderedDict(Base):
    def forward(self, x):
        return OrderedDict(out=self.body(x))


class InspectsModules(Base):
    def forward(self, x):
        return self.body(x) if len(list(self.modules())) > 3 else x


class MutableDefault(Base):
    def forward(self, x, memory=[]):  # noqa: B006
        memory.append(1)
        return self.body(x) * len(memory)


class HandsOnChild(Base):
    def forward(self, x):
        return self.body(x), self.conv


class Imports(Base):
    def forward(self, x):
        import time

        return self.body(x) * time.time()


class Matches(Base):
    def forward(self, x):
        match x.shape:
            case [_, _, _, _]:
                return self.body(x)
        return x


class SetsRequiresGrad(Base):
    def forward(self, x):
        y = self.body(x).detach()
        y.requires_grad = True
        return y


class OwnClass(Base):
    def forward(self, x):
        return self.body(x) if self.__class__.__name__ == "OwnClass" else x


class ReadsOwnClass(Base):
    scale = 2.0

    def forward(self, x):
        return self.body(x) * ReadsOwnClass.scale


REFUSED = [
    ReadsGlobal, WritesGlobal, AppendsToGlobal, Prints, PythonRandom, NumpyRandom, TorchRandomBranch,
    BranchesOnValue, BranchesOnShape, BranchesOnDtype, LoopsOverBatch, GradMode, AutocastMode,
    NoGradBlock, Decorated, DecoratedHelper, Checkpoints, CatchesErrors, Suppresses, AssignsToSelf,
    Counts, SetsByName, AppendsToOwnList, OwnDict, LooksUpByShape, VarArgs, AsksType, AsksExactType,
    HasAttribute, ChildReturnsNone, AppliesFunction, ChildMethod, ReadsObject, OwnGetattr,
    ReturnsOrderedDict, InspectsModules, Imports, HandsOnChild, Matches, SetsRequiresGrad, OwnClass,
    ReadsOwnClass,
]  # fmt: skip


@pytest.mark.parametrize("build", REFUSED)
def test_refused_with_a_reason(build, capsys):
    model = build()
    before = {name: copy.deepcopy(value) for name, value in vars(model).items() if name[0] != "_"}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    seen = len(SEEN)
    convert(model)
    assert not is_converted(model)
    rows = [row for row in explain(model).rows if row.path == "" and row.call == "forward"]
    assert len(rows) == 1
    assert rows[0].note.startswith(build.__name__)
    # nothing of the trial is left: no attribute, no random number drawn, nothing printed or collected
    assert before == {name: value for name, value in vars(model).items() if name[0] != "_"}
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert np.array_equal(states[2], np.random.get_state()[1])
    assert len(SEEN) == seen
    assert capsys.readouterr().out == ""
    if build not in (Imports, HandsOnChild):
        same(model, image())


def test_a_default_argument_that_can_change_is_refused():
    model = convert(MutableDefault()).eval()
    x = image()
    torch.testing.assert_close(model(x) * 2, model(x))


class SizeFromArgument(Base):
    def forward(self, size):
        return self.conv(torch.zeros(size))


class DimensionFromArgument(Base):
    def forward(self, x, dim):
        return self.conv(torch.flatten(x, dim))


@pytest.mark.parametrize("build", [SizeFromArgument, DimensionFromArgument])
def test_an_argument_that_is_no_tensor_for_torch(build):
    """torch's C++ asks isinstance(x, Tensor) of what stands for a size or a number: told that it is one, it
    crashed on its memory."""
    model = convert(build())
    assert not is_converted(model)
    assert "wants a number or a size" in explain(model).rows[0].note


def test_reasons_are_readable():
    def reason(build):
        return explain(convert(build())).rows[0].note

    assert reason(AssignsToSelf) == "AssignsToSelf.forward assigns to last"
    assert reason(BranchesOnValue) == "BranchesOnValue.forward branches on a value that only a call can know"
    assert reason(GradMode) == "GradMode.forward uses torch.is_grad_enabled"
    assert reason(NoGradBlock) == "NoGradBlock.forward uses torch.no_grad"
    assert reason(CatchesErrors) == "CatchesErrors.forward has a try or with statement"
    assert reason(VarArgs) == "VarArgs.forward takes *xs"
    assert reason(ReadsGlobal) == "ReadsGlobal.forward uses SWITCH"


def test_a_refused_module_keeps_its_fast_leaves():
    model = convert(BranchesOnValue())
    ops = [row.op for row in explain(model).rows if row.op]
    assert ops == ["conv2d", "batch_norm"]


# -- fused, and right whatever changes ----------------------------------------------------------------------


class Scaled(Base):
    def __init__(self):
        super().__init__()
        self.scale = 1.0
        self.flags = [1, 2]
        self.act = F.relu

    factor = 2

    def forward(self, x):
        y = self.act(self.bn(self.conv(x))) * self.scale * self.factor
        for flag in self.flags:
            y = y + flag
        return y


def test_attributes_may_change():
    model = convert(Scaled())
    x = image()
    assert is_converted(model)
    changes = [("scale", 2.0), ("scale", True), ("flags", [3]), ("act", torch.tanh), ("factor", 5)]
    for name, value in changes:
        setattr(model, name, value)
        same(model, x)
    model.flags.append(7)
    same(model, x)
    assert is_converted(model)


def test_an_attribute_that_keeps_changing_is_not_traced_for_ever(monkeypatch):
    from fastdl.convert import swap

    model, made = convert(Scaled()), []
    monkeypatch.setattr(swap, "make_plan", lambda *a, make=swap.make_plan: made.append(a) or make(*a))
    for step in range(40):
        model.scale = float(step)
        model(image())
    assert len(made) < 10
    same(model, image())


class OwnTraining(Base):
    def forward(self, x):
        y = self.body(x)
        return F.dropout(y, 0.5, self.training) if self.training else y + 1


class ChildTraining(Base):
    def forward(self, x):
        y = self.body(x)
        return y * 2 if self.bn.training else y


@pytest.mark.parametrize("build", [OwnTraining, ChildTraining])
def test_modes_may_change(build):
    model, x = convert(build()), image()
    assert is_converted(model)
    for training in (True, False, True):
        same(model.train(training), x)
    model.bn.eval()
    same(model, x)


class Optional(Base):
    def forward(self, x, mask=None, scale: float = 1.0):
        y = self.body(x) * scale
        if mask is not None:
            y = y * mask
        return y


def test_optional_arguments():
    model, x = convert(Optional()), image()
    assert is_converted(model)
    same(model, x)
    same(model, x, torch.zeros_like(x))
    same(model, x, scale=3.0)
    same(model, x=x)


class TakesList(Base):
    def forward(self, x):
        if isinstance(x, torch.Tensor):
            x = [x]
        return self.body(torch.cat(x, 1))


class TakesNone(Base):
    def forward(self, x):
        return self.body(torch.ones(1, 1, 4, 4)) if x is None else self.body(x)


def test_arguments_of_another_type():
    model = convert(TakesList())
    assert is_converted(model)
    same(model, image())
    assert torch.equal(model([image() * 0]), model(image() * 0))
    model = convert(TakesNone()).eval()
    assert is_converted(model)
    same(model, image())
    assert torch.equal(model(None), model(torch.ones(1, 1, 4, 4)))


class InPlace(Base):
    def forward(self, x):
        y = self.relu(self.bn(self.conv(x)))
        x += 1
        n = x.shape[-1]
        n += 1
        y *= x
        return y + n + x.shape[-1]


class Buffers(Base):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("nothing", None)
        self.offset = torch.ones(1)  # no buffer: a plain tensor

    def forward(self, x):
        self.count.add_(1)
        y = self.body(x) * self.count + self.offset
        return y if self.nothing is None else y + self.nothing


def test_in_place_operators_are_repeated():
    model, x = convert(InPlace()), image()
    assert is_converted(model)
    expected = x + 1
    model(x)
    torch.testing.assert_close(x, expected)
    same(model, x)


def test_buffers_are_read_and_written_in_every_call():
    model = convert(Buffers())
    assert is_converted(model)
    for _ in range(3):
        same(model, image())
        model(image())
    assert model.count == 6
    model.nothing = torch.ones(1)
    model.offset = torch.zeros(1)
    same(model, image())


class Creates(Base):
    def forward(self, x):
        return self.body(x) + torch.rand(4, 4) + torch.arange(4.0) + torch.zeros(4)


class CreatesAlike(Base):
    def forward(self, x):
        y = self.body(x)
        return y + torch.rand_like(y) + torch.randn_like(y) + torch.randint_like(y, 3) + torch.ones_like(y)


@pytest.mark.parametrize("build", [Creates, CreatesAlike])
def test_created_tensors_are_created_in_every_call(build):
    model = convert(build())
    assert is_converted(model)
    same(model, image())
    assert not torch.equal(model(x := image()), model(x))


class Asserts(Base):
    def forward(self, x):
        torch._assert(x.dim() == 4, "expected a batch")
        return self.body(x)


def test_torchs_assertion_is_made_in_every_call():
    model = convert(Asserts())
    assert is_converted(model)
    same(model, image())
    with pytest.raises(AssertionError, match="expected a batch"):
        model(image()[0])


class Parent(Base):
    def forward(self, x):
        return self.body(x)


class CallsSuper(Parent):
    def forward(self, x):
        return super().forward(x) + self.property + self.static(x) + helper(x)

    @property
    def property(self):
        return 1

    @staticmethod
    def static(x):
        return x * 2


def helper(x):
    return sum(x * factor for factor in range(3))


class CallsSuperByName(CallsSuper):
    def forward(self, x):
        return super(CallsSuperByName, self).forward(x) * 2  # noqa: UP008


class SuperOfSequential(nn.Sequential):
    def forward(self, x):
        return super().forward(x) + 1


class Lists(nn.Module):
    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(1, 1, 1) for _ in range(3)])
        self.norms = nn.ModuleDict({"a": nn.BatchNorm2d(1), "b": nn.BatchNorm2d(1)})

    def forward(self, x):
        for i, conv in enumerate(self.convs):
            x = F.relu(conv(x)) if i < len(self.convs) - 1 else conv(x)
        for name, norm in self.norms.items():
            x = norm(x) if name == "a" else torch.tanh(norm(x))
        return {"out": Pair(x, [x, (x, None)]), "last": self.convs[-1](x)}


@pytest.mark.parametrize("build", [CallsSuper, CallsSuperByName, Lists])
def test_methods_and_containers(build):
    model = convert(build())
    assert is_converted(model)
    same(model, image())


def test_containers_may_change():
    model = convert(Lists())
    model.convs.append(nn.Conv2d(1, 1, 1))
    same(model, image())
    del model.norms["b"]
    same(model, image())
    model = convert(SuperOfSequential(nn.Conv2d(1, 1, 1), nn.ReLU()))
    assert is_converted(model)
    same(model, image())


class Nonlocal(Base):
    def forward(self, x):
        calls = 0

        def helper(y):
            nonlocal calls
            calls += 1
            return self.body(y)

        return helper(x) * calls


def logged(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args) + 1

    return wrapper


class Logged(Base):
    @logged
    def forward(self, x):
        return self.body(x)


def closed(kind):
    state = {"scale": 2.0}
    scale = 2.0

    class Closed(Base):
        def forward(self, x):
            return self.body(x) * (state["scale"] if kind == "dict" else scale)

    return Closed


def test_functions_inside_and_outside():
    for build in (Nonlocal, Logged):
        model = convert(build())
        assert is_converted(model)
        same(model, image())
    for kind in ("dict", "float"):
        model = convert(closed(kind)())
        assert not is_converted(model)
        same(model, image())


# -- modules that are not ours to change --------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_modules_with_another_forward_are_left():
    model = Parent()
    model.forward = functools.partial(operator.mul, 2)
    convert(model)
    assert not is_converted(model)
    assert "replaced on the instance" in explain(model).rows[0].note
    assert model(3) == 6
    conv = nn.Conv2d(1, 1, 1)
    conv.forward = lambda x: x
    assert type(convert(conv)) is nn.Conv2d
    graph = torch.fx.symbolic_trace(Parent())
    convert(graph)
    assert not is_converted(graph)
    same(graph, image())
    scripted = torch.jit.script(nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU()))
    assert convert(scripted) is scripted
    scripted(image())
    assert "TorchScript" in str(explain(scripted))


def test_torchs_own_compound_modules_are_left():
    model = nn.ModuleList([nn.MultiheadAttention(4, 1), nn.TransformerEncoderLayer(4, 1, 8), nn.LSTM(2, 2)])
    classes = [type(module) for module in model.modules()]
    convert(model)
    assert classes == [type(module) for module in model.modules()]


def test_tracing_a_converted_model_sees_the_forward_as_written():
    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, module, name):
            return isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.ReLU))

    nodes = Tracer().trace(convert(nn.Sequential(Parent()))).nodes
    assert [node.target for node in nodes if node.op == "call_module"] == ["0.conv", "0.bn", "0.relu"]


def test_a_subclass_hook_that_raises_leaves_the_model_as_it_is():
    class Strict(Base):
        def __init_subclass__(cls, *, key):
            super().__init_subclass__()

        def forward(self, x):
            return self.body(x)

    model = convert(Strict())
    assert type(model) is Strict
    same(model, image())


def test_a_forward_made_by_exec():
    """It has no module and no source."""
    names = {"Base": Base, "torch": torch}
    exec("class Made(Base):\n    def forward(self, x):\n        return torch.relu(self.bn(x))", names)
    model = convert(names["Made"]())
    assert is_converted(model)
    same(model, image())
