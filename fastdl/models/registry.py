"""Every network by name: how it is built, what it takes, what it is trained against."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn

from . import clip, geomatch, highway, pointnet, siamese, vae
from .alexnet import AlexNet, alexnet_mini
from .densenet import DenseNet, densenet_mini
from .googlenet import GoogLeNet, InceptionMini
from .inception import InceptionV3
from .lenet import LeNet5
from .linear import Linear
from .mlp import MLP
from .net import Net
from .resnet import resnet8, resnet18, resnet50
from .stn import STN
from .unet import UNet
from .vgg import vgg16, vgg_mini
from .vit import ViT

Tensors = tuple[Tensor, ...]


class Entry(NamedTuple):
    """A network: ``loss()(*outputs, *targets)`` is what training makes small."""

    build: Callable[..., nn.Module]
    inputs: Callable[[Generator], Tensors]
    targets: Callable[[Generator], Tensors]
    loss: Callable[[], nn.Module] = nn.CrossEntropyLoss


def _normal(*shapes: tuple[int, ...]) -> Callable[[Generator], Tensors]:
    return lambda g: tuple(torch.randn(shape, generator=g) for shape in shapes)


def _classes(number: int, *shape: int) -> Callable[[Generator], Tensors]:
    return lambda g: (torch.randint(number, shape, generator=g),)


def _classifier(build: Callable[..., nn.Module], *shape: int, classes: int = 10) -> Entry:
    return Entry(build, _normal(shape), _classes(classes, shape[0]))


def _images(g: Generator) -> Tensors:
    return (torch.rand(8, 1, 28, 28, generator=g),)


def _captions(g: Generator) -> Tensors:
    return torch.randn(4, 3, 28, 28, generator=g), torch.randint(22, (4, 9), generator=g)


def _moved_points(g: Generator) -> Tensors:
    return (geomatch.grid_points(9) + 0.1 * torch.randn(4, 81, 2, generator=g),)


def _matching(**options: str) -> Entry:
    def build(**more: Any) -> nn.Module:
        return geomatch.GeoMatch(**(options | more))

    build.__signature__ = inspect.signature(geomatch.GeoMatch)  # type: ignore[attr-defined]
    shape = (4, 1, 48, 48)
    return Entry(build, _normal(shape, shape), _moved_points, geomatch.GridLoss)


_ENTRIES = {
    "linear": _classifier(Linear, 8, 1, 28, 28),
    "mlp": _classifier(MLP, 8, 1, 28, 28),
    "net": _classifier(Net, 8, 1, 28, 28),
    "lenet5": _classifier(LeNet5, 8, 1, 28, 28),
    "alexnet": _classifier(AlexNet, 1, 3, 227, 227, classes=1000),
    "alexnet_mini": _classifier(alexnet_mini, 8, 1, 67, 67),
    "vgg16": _classifier(vgg16, 1, 3, 224, 224, classes=1000),
    "vgg_mini": _classifier(vgg_mini, 8, 1, 28, 28),
    "inception_v3": _classifier(InceptionV3, 1, 3, 299, 299, classes=1000),
    "googlenet": _classifier(GoogLeNet, 2, 3, 64, 64, classes=1000),
    "inception_mini": _classifier(InceptionMini, 8, 1, 28, 28),
    "resnet8": _classifier(resnet8, 8, 1, 28, 28),
    "resnet18": _classifier(resnet18, 2, 3, 64, 64, classes=1000),
    "resnet50": _classifier(resnet50, 2, 3, 64, 64, classes=1000),
    "densenet": _classifier(DenseNet, 2, 3, 64, 64, classes=1000),
    "densenet_mini": _classifier(densenet_mini, 8, 1, 28, 28),
    "highway": _classifier(highway.Highway, 8, 1, 28, 28),
    "unet": Entry(UNet, _normal((2, 3, 64, 64)), _classes(4, 2, 64, 64)),
    "siamese": Entry(
        siamese.Siamese,
        _normal((8, 1, 28, 28), (8, 1, 28, 28)),
        lambda g: (torch.randint(2, (8,), generator=g).float(),),
        siamese.ContrastiveLoss,
    ),
    "stn": _classifier(STN, 8, 1, 42, 42),
    "geomatch": _matching(),
    "geomatch_tps": _matching(stage="tps"),
    "pointnet_cls": Entry(
        pointnet.PointNetClassifier, _normal((4, 3, 256, 1)), _classes(40, 4), pointnet.PointNetLoss
    ),
    "pointnet_seg": Entry(
        pointnet.PointNetSegmenter, _normal((4, 3, 256, 1)), _classes(50, 4, 256), pointnet.PointNetLoss
    ),
    "vae": Entry(vae.VAE, _images, _images, vae.ELBOLoss),
    "vit": _classifier(ViT, 8, 1, 28, 28),
    "clip": Entry(clip.CLIP, _captions, lambda _: (torch.eye(4),), clip.CLIPLoss),
}


def names() -> tuple[str, ...]:
    """Every network there is."""
    return tuple(_ENTRIES)


def create(name: str, **options: Any) -> nn.Module:
    """The network ``name``, with the options of its class or builder.

    Raises:
        ValueError: if there is no such network, or an option's value is none of its choices.
        TypeError: if it has no such option.
    """
    entry = _entry(name)
    known = inspect.signature(entry.build).parameters
    for option in options:
        if option not in known:
            raise TypeError(
                f"fastdl.models.create: expected options of {name!r} among {', '.join(known) or '(none)'}, "
                f"got {option!r}"
            )
    return entry.build(**options)


def example_inputs(name: str) -> Tensors:
    """What ``create(name)`` takes in one call: always the same numbers."""
    return _entry(name).inputs(Generator().manual_seed(1))


def example_targets(name: str) -> Tensors:
    """What its loss takes beside the outputs for ``example_inputs``."""
    return _entry(name).targets(Generator().manual_seed(2))


def create_loss(name: str) -> nn.Module:
    """The loss that ``name`` is trained with: called with all outputs, then all targets."""
    return _entry(name).loss()


def _entry(name: str) -> Entry:
    if name not in _ENTRIES:
        raise ValueError(f"fastdl.models: expected one of {', '.join(_ENTRIES)}, got {name!r}")
    return _ENTRIES[name]
