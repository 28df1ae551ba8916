"""What every op shares: the wording of complaints, pairs, memory formats, registration with torch."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import backends

#: Where the ops live: ``torch.ops.fastdl``.
library = torch.library.Library("fastdl", "DEF")

#: Types of tensors that nothing of anybody's looks at.
PLAIN = (Tensor, torch.nn.Parameter)


def register(
    name: str,
    schema: str,
    arguments: type[NamedTuple],
    allocate: Callable[..., Any],
    fill: Callable[..., None],
) -> Any:
    """Define ``torch.ops.fastdl.<name>`` and return it.

    ``arguments`` names the arguments of ``schema``, in its order; ``allocate(arguments)`` makes the outputs
    and ``fill(outputs, arguments)`` computes them. ``allocate`` is the fake implementation too, so the fake
    outputs and the real ones cannot disagree.
    """

    def implementation(*args: Any) -> Any:
        called = arguments(*args)
        outputs = allocate(called)
        fill(outputs, called)
        return outputs

    library.define(name + schema)
    for key in ("CPU", "CUDA"):
        library.impl(name, implementation, key)
    torch.library.register_fake(f"fastdl::{name}", lambda *args: allocate(arguments(*args)), lib=library)
    return getattr(torch.ops.fastdl, name).default


def short_way(op: str, input: Any, *args: Any) -> Any:
    """The result of a plain call, served whole in C++ (csrc/calls.cpp); None where Python must go on.

    False, of conv2d_max_pool2d alone: a plain call that no kernel has whole.

    Which is wherever a Triton kernel or the reference serves, something looks at the call, or it is not
    plain: the long way then finds out what is the matter.
    """
    if type(input) not in PLAIN or torch.compiler.is_compiling():
        return None
    call, library = backends.short_way(op, input.device, input.dtype)
    if call is None:
        return None
    try:
        return call(library, input, *args)
    except TypeError:  # an argument of a type that the long way has words for
        return None


def complaint(op: str, expected: str, got: object, remedy: str = "") -> str:
    """The one form of error messages: op, argument, expected, got and, where there is one, the remedy."""
    return f"fastdl.{op}: expected {expected}, got {got}" + (f"; {remedy}" if remedy else "")


def check_tensors(op: str, optional: tuple[str, ...] = (), **tensors: Any) -> None:
    """Refuse what is not a tensor, and tensors on different devices.

    ``optional`` names those that may be None.

    Raises:
        TypeError: for an argument that is no tensor.
        RuntimeError: for arguments on two devices.
    """
    first, device = "", None
    for name, tensor in tensors.items():
        if tensor is None and name in optional:
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(complaint(op, f"{name} to be a Tensor", type(tensor).__name__))
        if device is None:
            first, device = name, tensor.device
        elif tensor.device != device:
            raise RuntimeError(complaint(op, f"{name} on the device of {first}, {device}", tensor.device))


def pair(op: str, name: str, value: Any) -> tuple[int, int]:
    """``value`` as (height, width): an int counts for both, as does a sequence of one.

    Raises:
        TypeError: if it is neither an int nor a sequence of ints.
        RuntimeError: for a sequence of another length.
    """
    integers = (int, torch.SymInt, numbers.Integral)  # the last: NumPy's
    if isinstance(value, Tensor) and value.dim() == 0 and not value.is_floating_point():
        value = int(value)
    if isinstance(value, integers):
        value = (value,)
    if not isinstance(value, Sequence) or not all(isinstance(v, integers) for v in value):
        raise TypeError(complaint(op, f"{name} to be an int or a tuple of two ints", repr(value)))
    if len(value) not in (1, 2):
        raise RuntimeError(complaint(op, f"{name} to be an int or a tuple of two ints", tuple(value)))
    first, last = (v if isinstance(v, (int, torch.SymInt)) else int(v) for v in (value[0], value[-1]))
    return first, last


def unsupported(*tensors: Tensor | None) -> str | None:
    """Why no kernel takes these tensors, whatever the op; None if nothing stands against it."""
    for tensor in tensors:
        if tensor is not None and (tensor.layout is not torch.strided or tensor.is_quantized):
            return f"{str(tensor.layout).removeprefix('torch.')} layout has no kernel"
    if torch._C._are_functorch_transforms_active():
        return "functorch transforms run through the reference"
    if forward_ad._current_level >= 0:  # an op that knows no tangents would drop them without a word
        return "forward-mode derivatives run through the reference"
    return None


def memory_format(x: Tensor) -> torch.memory_format:
    """The memory format that torch's operators give their output for an input ``x`` (from its strides)."""
    order = {4: (1, 3, 2, 0), 5: (1, 4, 3, 2, 0)}.get(x.dim())
    if order is None or x.stride(1) == 0:
        return torch.contiguous_format
    least = 0
    for axis in order:
        if x.shape[axis] == 0 or x.stride(axis) < least:
            return torch.contiguous_format
        if axis == 0 and least == x.stride(1):  # [N, 1, 1, 1]: ambiguous, torch calls it contiguous
            return torch.contiguous_format
        least = x.stride(axis) * (x.shape[axis] if x.shape[axis] > 1 else 1)
    return torch.channels_last if x.dim() == 4 else torch.channels_last_3d


def is_channels_last(x: Tensor) -> bool:
    """Whether outputs for ``x`` are channels_last (4-D) or channels_last_3d (5-D)."""
    return memory_format(x) is not torch.contiguous_format


def empty(x: Tensor, size: Sequence[int], channels_last: bool, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised tensor of ``size`` on the device of ``x``, in its dtype unless another is given."""
    format = torch.contiguous_format
    if channels_last:
        format = torch.channels_last if len(size) == 4 else torch.channels_last_3d
    return torch.empty(size, dtype=dtype or x.dtype, device=x.device, memory_format=format)


def empty_if(wanted: bool, x: Tensor | None, like: Tensor) -> Tensor:
    """An uninitialised tensor like ``x`` if wanted, else one of no elements: ops cannot return None."""
    return torch.empty_like(x) if wanted else like.new_empty(0)


def wanted(tensor: Tensor, flag: bool) -> Tensor | None:
    """``tensor`` if its flag is set, else None: how output masks reach a kernel."""
    return tensor if flag else None


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether autograd will ask for a gradient of one of ``tensors``."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The lower precision of autocast on the device of ``x``; None where autocast is off."""
    kind = x.device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def differentiate(outputs: Tensor, inputs: Sequence[Tensor | None], grad_out: Tensor) -> list[Tensor | None]:
    """The gradients of a reference computation, themselves differentiable; None stays None."""
    asked = [i for i in inputs if i is not None and i.requires_grad]
    found = iter(torch.autograd.grad(outputs, asked, grad_out, create_graph=True, allow_unused=True))
    return [next(found) if i is not None and i.requires_grad else None for i in inputs]
