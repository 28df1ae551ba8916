"""What a data set is here: tensors in memory, split in two, and perhaps a way to draw batches from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset

Tensors = tuple[Tensor, ...]
Batch = tuple[Tensors, Tensors]


class Split(NamedTuple):
    """Samples: ``inputs`` of the network and ``targets`` of its loss, all of one length."""

    inputs: Tensors
    targets: Tensors


class Data(NamedTuple):
    """A data set.

    ``draw`` makes what the network sees of training samples, anew for every batch from the generator given;
    None takes them as they are. The test samples are as they are always.
    """

    train: Split
    test: Split
    draw: Callable[[Tensors, Tensors, Generator], Batch] | None = None
    names: tuple[str, ...] = ()  # of the classes


class Samples(Dataset):
    """A split for torch's DataLoader. A list of numbers gives a batch at once: ``batch_size=None``."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split.targets[0])

    def __getitem__(self, index: int | list[int] | Tensor) -> Batch:
        inputs, targets = self.split
        return tuple(x[index] for x in inputs), tuple(y[index] for y in targets)


def hold_out(data: Data, fraction: float, seed: int = 0) -> tuple[Data, Split]:
    """``data`` without a random ``fraction`` of its training samples, and these: for choices, not reports.

    They are drawn once, where the data set draws its samples.

    Raises:
        ValueError: if that is no sample.
    """
    number = len(data.train.targets[0])
    order = torch.randperm(number, generator=Generator().manual_seed(seed))
    part = round(fraction * number)
    if part == 0:
        raise ValueError(
            f"fastdl.data.hold_out: expected at least one of {number} training samples for validation, "
            f"got a part of {fraction}"
        )
    samples = Samples(data.train)
    held = Split(*samples[order[:part]])
    if data.draw is not None:
        held = Split(*data.draw(*held, Generator().manual_seed(seed + 1)))
    return data._replace(train=Split(*samples[order[part:]])), held
