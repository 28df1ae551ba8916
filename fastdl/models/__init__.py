"""Networks to try fastdl on, in plain torch.nn, one architecture a file: converted like any user's model."""

from .net import Net
from .resnet import ResNet, resnet8, resnet18, resnet50
from .stn import STN

__all__ = ["STN", "Net", "ResNet", "resnet8", "resnet18", "resnet50"]
