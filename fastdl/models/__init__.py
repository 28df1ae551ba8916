"""The networks of a deep learning course, in plain torch.nn, one architecture a file.

names()                     every network there is
create(name, **options)     one of them; converted like any user's model
example_inputs(name)        what it takes; example_targets(name) and create_loss(name) what it is trained by
"""

from .net import Net
from .registry import create, create_loss, example_inputs, example_targets, names
from .resnet import ResNet, resnet8, resnet18, resnet50
from .stn import STN

__all__ = [
    "STN",
    "Net",
    "ResNet",
    "create",
    "create_loss",
    "example_inputs",
    "example_targets",
    "names",
    "resnet8",
    "resnet18",
    "resnet50",
]
