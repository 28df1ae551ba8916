"""What a benchmark is of: one call of an op on given shapes, with what it must at least move and compute."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdl.parity.cases import Draw

#: ``forward`` runs without grad mode, ``backward`` is the gradients alone, ``both`` is forward and gradients.
DIRECTIONS = ("forward", "backward", "both")

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

Tensors = dict[str, Tensor | None]


class Goal(NamedTuple):
    """What the project wants to reach: a peer's time over ours."""

    eager: float
    compile: float | None = None


class Work(NamedTuple):
    """The least that any implementation must do, whatever ours does."""

    bytes: int
    flops: int = 0


@dataclass(frozen=True)
class Case:
    """One row of an op's table.

    Attributes:
        op: its stem.
        name: unique within op and layout.
        inputs: name to what draws it; float32 or integer.
        eager: what a user of plain PyTorch writes; takes inputs and options by name.
        work: ``work(tensors, options, direction)``: bytes moved and floating-point operations.
        options: the other keyword arguments, the same for eager and ours.
        grads: the inputs whose gradients are asked for.
        image: the inputs that have the case's layout.
        keep: the inputs that stay float32 whatever the dtype.
        layout: a key of ``LAYOUTS``.
        directions: those worth timing, with the goal of each (None: no goal but not to be slower).
        function: of ``fastdl.functional``, where it is not called like the op.
    """

    op: str
    name: str
    inputs: Mapping[str, Draw]
    eager: Callable[..., Tensor]
    work: Callable[[Tensors, Mapping[str, Any], str], Work]
    options: Mapping[str, Any] = field(default_factory=dict)
    grads: tuple[str, ...] = ("input",)
    image: tuple[str, ...] = ("input",)
    keep: tuple[str, ...] = ()
    layout: str = "contiguous"
    directions: Mapping[str, Goal | None] = field(default_factory=lambda: {"forward": None, "both": None})
    function: str = ""

    def draw(self, device: torch.device, dtype: torch.dtype) -> Tensors:
        """The inputs, always the same for this case; those of ``grads`` require a gradient."""
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.op} {self.name}".encode()))
        found: Tensors = {}
        for name, draw in self.inputs.items():
            t = draw(generator)
            if t is not None:
                if t.is_floating_point() and name not in self.keep:
                    t = t.to(dtype)
                t = t.to(device)
                if name in self.image and t.dim() == 4:
                    t = t.contiguous(memory_format=LAYOUTS[self.layout])
            found[name] = t
        return self.asking(found)

    def asking(self, tensors: Tensors) -> Tensors:
        """Leaves with the values of ``tensors``, those of ``grads`` requiring a gradient."""
        return {
            name: None if t is None else t.detach().requires_grad_(name in self.grads)
            for name, t in tensors.items()
        }


def size(t: Tensor | None) -> int:
    """Bytes of a tensor's elements."""
    return 0 if t is None else t.numel() * t.element_size()
