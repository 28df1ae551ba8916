"""The symbols that stand for tensors (and what is computed from them) while a forward is traced."""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

from torch import Tensor
from torch.fx.proxy import Attribute, Proxy, TracerBase
from torch.overrides import TorchFunctionMode, is_tensor_method_or_property

from . import fused
from .rules import Refused, real, tests_none


class Record(TorchFunctionMode):
    """Record every torch function that the forward calls, with or without a symbol among its arguments."""

    def __init__(self, tracer: TracerBase) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Proxy:
        if is_tensor_method_or_property(func):
            return self.tracer.create_proxy("call_method", func.__name__, args, kwargs or {})
        return self.tracer.create_proxy("call_function", func, args, kwargs or {})


def _refuse(reason: str) -> Any:
    def method(self: Any, *_: Any) -> NoReturn:
        raise Refused(reason)

    return method


class Symbol(Proxy):
    """A value of the graph. Asking for what is not known yet refuses."""

    @property
    def __class__(self) -> type:
        caller = sys._getframe(1)
        if caller.f_globals.get("__name__", "").startswith(("torch.fx", "torch.overrides", __name__)):
            return type(self)
        return self._seen_as(caller)

    def _seen_as(self, caller: FrameType) -> type:
        raise Refused("asks for the type of a computed value")

    def __getattr__(self, name: str) -> Proxy:
        at = list(_running(sys._getframe(1)))
        if any(tests_none(*pair) for pair in zip(at[1:3], at[:2], strict=False)):
            raise Refused("tests a computed value for None")
        if callable(getattr(Tensor, name, print)):  # a method, or of something else than a tensor
            return AttributeSymbol(self, name)
        return self.tracer.create_proxy("call_function", getattr, (self, name), {})  # now: it may change

    def __iter__(self) -> Iterator[Proxy]:
        instruction = next(_running(sys._getframe(1)))
        if instruction.opname != "UNPACK_SEQUENCE":
            return self.tracer.iter(self)
        number = instruction.argval
        values = self.tracer.create_proxy("call_function", fused.unpack, (self, number), {})
        return iter([values[i] for i in range(number)])

    __len__ = _refuse("takes the length of a tensor")
    __str__ = __format__ = _refuse("formats a value as text")
    __hash__ = _refuse("uses a value as a key")
    __setitem__ = _refuse("assigns to elements of a tensor")


class AttributeSymbol(Symbol, Attribute):
    """``x.shape`` or the method in ``x.view(...)``."""


class InputSymbol(Symbol):
    """An argument of forward: a plan is used for tensors only."""

    def _seen_as(self, caller: FrameType) -> type:
        if not _calls_isinstance(caller):  # torch's C++, say, which would take us for the Tensor that we name
            raise Refused("hands an argument to a call that wants a number or a size")
        return Tensor


def _running(frame: FrameType) -> Iterator[dis.Instruction]:
    """The instruction that ``frame`` is at, and those behind it."""
    return (i for i in dis.get_instructions(frame.f_code) if i.offset >= frame.f_lasti and real(i))


def _calls_isinstance(frame: FrameType) -> bool:
    """Whether ``frame`` is at a call of isinstance with names, attributes and tuples of them."""
    before = [i for i in dis.get_instructions(frame.f_code) if i.offset < frame.f_lasti and real(i)]
    for instruction in reversed(before):
        if instruction.opname == "LOAD_GLOBAL" and instruction.argval == "isinstance":
            return True
        if not instruction.opname.startswith(("LOAD_", "PUSH_NULL", "BUILD_TUPLE", "KW_NAMES")):
            return False
    return False


def _in_place(name: str) -> Any:
    def method(self: Symbol, other: Any) -> Proxy:
        return self.tracer.create_proxy("call_function", fused.in_place, (name, self, other), {})

    return method


for _name in fused.IN_PLACE:
    setattr(Symbol, f"__{_name}__", _in_place(_name))
