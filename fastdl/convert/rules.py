"""What the code of a forward may do to be traced: everything else is refused before it runs.

Tracing runs a forward once and keeps what it did with its tensors. That is right for good only if the code
decides nothing by, and changes nothing of, what the trace cannot see: global state, randomness, files, the
grad mode. The rules read the bytecode of the forward and of the functions that it calls.
"""

from __future__ import annotations

import builtins
import dis
import functools
import inspect
import math
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch
from torch import nn


class Refused(Exception):
    """A forward that is left as it is; the message says why, to be read behind the name of its class."""


_BUILTIN_NAMES = """
    abs all any bool dict divmod enumerate filter float frozenset getattr int isinstance len list map max min
    pow range reversed round set slice sorted str sum super tuple zip
"""
_FACTORY_NAMES = """
    arange as_tensor empty eye full is_tensor linspace logspace ones rand rand_like randint randint_like randn
    randn_like randperm tensor zeros
"""
_BUILTINS = {getattr(builtins, name) for name in _BUILTIN_NAMES.split()}
_FACTORIES = {getattr(torch, name) for name in _FACTORY_NAMES.split()}
_CLASSES = {torch.Tensor, torch.Size, torch.dtype, torch.device}
_CONSTANTS = (torch.dtype, torch.layout, torch.memory_format, float)
_INTROSPECTION = {"__class__", "__dict__", "__code__", "__globals__"}
#: Instructions that a trace would not repeat, by the beginning of their names (which vary with the version).
_INSTRUCTIONS = {
    "STORE_GLOBAL": "assigns to a global variable",
    "DELETE_GLOBAL": "assigns to a global variable",
    "STORE_ATTR": "assigns to {}",
    "DELETE_ATTR": "assigns to {}",
    "IMPORT_": "imports {}",
    "PUSH_EXC_INFO": "has a try or with statement",
    "SETUP_FINALLY": "has a try statement",
    "SETUP_WITH": "has a with statement",
    "MATCH_": "has a match statement",
}


def check_forward(function: Any, owner: type[nn.Module]) -> None:
    """Refuse the method ``function`` of ``owner`` if its code, or code that it calls, breaks the rules."""
    _check(function, owner, set())


def check_value(value: Any, name: str, owner: type[nn.Module]) -> None:
    """Refuse the callable ``value`` that a forward of ``owner`` found under ``name``."""
    _admit(value, name, owner, set())


def _check(function: Any, owner: type[nn.Module], seen: set[CodeType]) -> None:
    if not isinstance(function, FunctionType):
        raise Refused(f"calls a {type(function).__name__}, whose code cannot be read")
    if (function.__module__ or "").split(".")[0] == "torch":
        if function is nn.Sequential.forward:
            return
        raise Refused(f"{function.__qualname__} is torch's own")
    defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    if any(not _immutable(value) for value in defaults):
        raise Refused(f"{function.__name__} has a default argument that can change")
    cells = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        if name != "__class__":  # of super()
            cells[name] = cell.cell_contents
    _check_code(function.__code__, function.__globals__, cells, owner, seen)


def _check_code(
    code: CodeType, names: dict[str, Any], cells: dict[str, Any], owner: type[nn.Module], seen: set[CodeType]
) -> None:
    if code in seen:
        return
    seen.add(code)
    instructions = [i for i in dis.get_instructions(code) if real(i)]
    for at, instruction in enumerate(instructions):
        opname, argument = instruction.opname, instruction.argval
        if opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            if argument not in names and not hasattr(builtins, argument):
                raise Refused(f"reads {argument}, which is not defined")
            value = names.get(argument, getattr(builtins, argument, None))
            if any(value is parent for parent in owner.__mro__) and instructions[at - 1].argval == "super":
                continue  # super(ThisClass, self)
            _admit(*_follow(value, argument, instructions[at + 1 :]), owner, seen)
        elif "DEREF" in opname and argument in cells:
            if not opname.startswith("LOAD"):
                raise Refused(f"assigns to {argument} of an outer function")
            _admit(*_follow(cells[argument], argument, instructions[at + 1 :]), owner, seen)
        elif argument in _INTROSPECTION and opname.startswith(("LOAD_ATTR", "LOAD_METHOD")):
            raise Refused(f"reads {argument}")
        elif tests_none(instruction, instructions[at - 1] if at else None):
            _check_none_test(code, instructions, at)
        elif opname == "IS_OP":  # two symbols may stand for one object, and a symbol is none of its values
            raise Refused("compares identities")
        for prefix, reason in _INSTRUCTIONS.items():
            if opname.startswith(prefix):
                raise Refused(reason.format(argument))
    if "super" in code.co_names:  # methods of the parents are reached without an attribute of self
        for parent in owner.__mro__:
            for name in code.co_names:
                method = vars(parent).get(name)
                inherited = isinstance(method, FunctionType) and parent is not nn.Module
                if inherited and method.__code__ not in seen:
                    _check(method, owner, seen)
    for constant in code.co_consts:  # comprehensions, lambdas
        if isinstance(constant, CodeType):
            _check_code(constant, names, cells, owner, seen)


def _follow(value: Any, name: str, instructions: list[dis.Instruction]) -> tuple[Any, str]:
    """What the attribute accesses behind the loading of a module lead to: ``torch.nn.functional.relu``."""
    for instruction in instructions:
        if not isinstance(value, ModuleType) or instruction.opname not in ("LOAD_ATTR", "LOAD_METHOD"):
            break
        if value is not math and value.__name__.split(".")[0] != "torch":
            break
        name = f"{name}.{instruction.argval}"
        value = getattr(value, instruction.argval, None)
    return value, name


def _admit(value: Any, name: str, owner: type[nn.Module], seen: set[CodeType]) -> None:
    """Refuse the use of ``value``, which is no attribute of the module, unless it is harmless."""
    package = (getattr(value, "__module__", None) or "").split(".")[0]
    if isinstance(value, type):
        admitted = value in _BUILTINS or value in _CLASSES or issubclass(value, BaseException)
        admitted = admitted or (issubclass(value, tuple) and hasattr(value, "_fields"))  # a namedtuple
        admitted = admitted or value.__module__.startswith("torch.nn.modules")
    elif isinstance(value, FunctionType) and package != "torch":
        return _check(value, owner, seen)
    elif callable(value):
        admitted = _hashable(value) and (value in _BUILTINS or value in _torch_functions())
        admitted = admitted or getattr(math, getattr(value, "__name__", ""), None) is value
    else:
        admitted = isinstance(value, _CONSTANTS) and name.startswith(("torch.", "math."))
    if not admitted:
        raise Refused(f"uses {name}")


@functools.cache
def _torch_functions() -> set[Callable[..., Any]]:
    """Every function of torch that a trace records, and is_scripting, which is False here as ever."""
    functional = torch.nn.functional
    recorded = set(torch.overrides.get_testing_overrides())
    in_place = {
        function
        for space in (torch, functional)
        for name, function in vars(space).items()
        if name.endswith("_") and not name.startswith("_") and getattr(space, name[:-1], None) in recorded
    }
    rest = {functional.sigmoid, functional.tanh, torch.jit.is_scripting, torch._assert}
    return recorded | in_place | _FACTORIES | rest


def real(instruction: dis.Instruction) -> bool:
    """Whether the instruction does anything."""
    return instruction.opname not in ("CACHE", "PRECALL", "NOP")


def tests_none(instruction: dis.Instruction, before: dis.Instruction | None) -> bool:
    """Whether it is that of ``... is None`` (or True or False), whose constant is loaded just before."""
    if instruction.opname.endswith(("IF_NONE", "IF_NOT_NONE")):
        return True
    constant = before is not None and before.opname == "LOAD_CONST" and before.argval in (None, True, False)
    return instruction.opname == "IS_OP" and constant


def _check_none_test(code: CodeType, instructions: list[dis.Instruction], at: int) -> None:
    """``x is None`` is known for attributes (guarded) and arguments, not for what a child returned."""
    at -= 2 if instructions[at].opname == "IS_OP" else 1  # skip the constant None
    tested = instructions[at]
    arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    if tested.opname.startswith("LOAD_ATTR"):
        return
    last = tested.argval[-1] if isinstance(tested.argval, tuple) else tested.argval
    if not (tested.opname.startswith("LOAD_FAST") and last in arguments):
        raise Refused("tests a computed value for None")


def _immutable(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_immutable, value))
    return value is None or isinstance(value, (bool, int, float, str, bytes, torch.dtype, torch.device))


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def required_arguments(function: Callable[..., Any]) -> Iterator[str]:
    """The names of the arguments of a forward that have no default; the others keep theirs in a trace."""
    for parameter in list(inspect.signature(function).parameters.values())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise Refused(f"takes {parameter}")
        if parameter.default is parameter.empty:
            if parameter.kind is parameter.KEYWORD_ONLY:
                raise Refused(f"takes {parameter.name} by keyword only")
            yield parameter.name
