"""Networks of other people, from the packages of requirements-extras.txt (`make test-slow` installs them)."""

import contextlib
import importlib
import os
import re
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import nn

_stubs = []


def need(name: str):
    """The module, or a skip that says why; under FASTDL_EXTRAS=required (CI) it is an error."""
    try:
        return _torchvision() if name == "torchvision" else importlib.import_module(name)
    except ImportError as error:
        if os.environ.get("FASTDL_EXTRAS") == "required":
            raise
        pytest.skip(f"{error}; pip install --no-deps -r requirements-extras.txt")


def _torchvision():
    """torchvision's models are plain Python, but its wheel's C++ is for one build of torch, not a CPU one.

    Without it the import fails at the first registration of an operator that is not there: we define those.
    """
    for _ in range(20):
        try:
            return importlib.import_module("torchvision")
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None:
                raise
            _stubs.append(torch.library.Library("torchvision", "FRAGMENT"))
            _stubs[-1].define(f"{missing[1]}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    raise ImportError("torchvision lacks too many of its operators")


def vision(name: str, **options) -> nn.Module:
    need("torchvision")
    models = importlib.import_module("torchvision.models")
    if name in ("fcn_resnet50", "lraspp_mobilenet_v3_large"):
        options["weights_backbone"] = None
    return models.get_model(name, weights=None, **options)


def timm(name: str, **options) -> nn.Module:
    need("torchvision")
    return need("timm").create_model(name, num_classes=10, **options)


def cv(name: str, **options) -> nn.Module:
    need("torchvision")
    return need("pytorchcv.model_provider").get_model(name, **options)


def monai(name: str, **options) -> nn.Module:
    return getattr(need("monai.networks.nets"), name)(**options)


@contextlib.contextmanager
def _elsewhere():
    """Without the root of this repository on sys.path: transformers looks for a package named kernels."""
    root = Path(__file__).resolve().parents[1]
    with mock.patch.object(sys, "path", [p for p in sys.path if Path(p or ".").resolve() != root]):
        yield


def transformers(name: str, kind: str = "Model", **options) -> nn.Module:
    need("torchvision")
    with _elsewhere():
        package = need("transformers")
        return getattr(package, name + kind)(getattr(package, name + "Config")(**options))


def segmentation(name: str, encoder: str, **options) -> nn.Module:
    need("torchvision")
    return getattr(need("segmentation_models_pytorch"), name)(encoder, encoder_weights=None, **options)


def pyramid() -> nn.Module:
    """A ResNet with frozen norms, a feature pyramid and a head whose weights all levels share."""
    need("torchvision")
    detection = importlib.import_module("torchvision.models.detection")

    class Pyramid(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = detection.backbone_utils.resnet_fpn_backbone(
                backbone_name="resnet18", weights=None
            )
            self.head = detection.retinanet.RetinaNetHead(256, num_anchors=1, num_classes=3)

        def forward(self, x):
            return self.head(list(self.backbone(x).values()))

    return Pyramid()


def tied() -> nn.Module:
    """A residual network in which two convolutions have one weight and two blocks one norm."""
    model = vision("resnet18", num_classes=10)
    model.layer1[1].conv1.weight = model.layer1[0].conv1.weight
    model.layer2[1].bn2 = model.layer2[1].bn1
    return model


def synchronised() -> nn.Module:
    return nn.SyncBatchNorm.convert_sync_batchnorm(vision("resnet18", num_classes=10))


IMAGE = (2, 3, 64, 64)
SMALL = (2, 3, 32, 32)
#: name: (how to make it, shape of an input, fewest fused calls)
MODELS = {
    "residual": (lambda: vision("resnet18", num_classes=10), IMAGE, 17),
    "dense": (lambda: vision("densenet121", num_classes=10), IMAGE, 120),
    "inverted residual": (lambda: vision("mobilenet_v2", num_classes=10), IMAGE, 0),
    "squeeze-excite": (lambda: vision("mobilenet_v3_small", num_classes=10), IMAGE, 14),
    "fire": (lambda: vision("squeezenet1_1", num_classes=10), IMAGE, 26),
    "shuffle": (lambda: vision("shufflenet_v2_x0_5", num_classes=10), IMAGE, 37),
    "inception, auxiliary outputs": (lambda: vision("googlenet", init_weights=False), IMAGE, 57),
    "group convolutions": (lambda: vision("regnet_y_400mf", num_classes=10), IMAGE, 65),
    "dict of outputs": (lambda: vision("lraspp_mobilenet_v3_large", num_classes=4), IMAGE, 20),
    "frozen norms, shared head": (pyramid, IMAGE, 8),
    "shared weights and norms": (tied, IMAGE, 16),
    "norm and activation in one": (lambda: timm("regnetx_002"), IMAGE, 0),
    "identities": (lambda: timm("seresnet18"), IMAGE, 8),
    "split attention": (lambda: timm("resnest14d"), IMAGE, 14),
    "hierarchical residual": (lambda: timm("res2net50_26w_4s"), IMAGE, 80),
    "aggregated dense": (lambda: timm("vovnet39a"), IMAGE, 0),
    "trees of lists": (lambda: timm("dla34"), IMAGE, 27),
    "scaled weights": (lambda: timm("nfnet_l0"), IMAGE, 0),
    "convolution and attention": (lambda: timm("edgenext_xx_small"), IMAGE, 0),
    "pre-activation": (lambda: cv("preresnet20_cifar10"), SMALL, 9),
    "random in forward and backward": (lambda: cv("shakeshakeresnet20_2x16d_cifar10"), SMALL, 19),
    "stochastic depth": (lambda: cv("resdropresnet20_cifar10"), SMALL, 10),
    "network in network": (lambda: cv("nin_cifar10"), SMALL, 9),
    "binary weights": (lambda: cv("wrn20_10_1bit_cifar10"), SMALL, 19),
    "hourglass": (lambda: cv("linknet_cityscapes", in_size=(64, 64)), IMAGE, 23),
    "factorised": (lambda: cv("erfnet_cityscapes", in_size=(64, 64)), IMAGE, 56),
    "encoder-decoder": (
        lambda: monai("BasicUNet", spatial_dims=2, in_channels=3, features=(4, 4, 8, 8, 16, 4)), IMAGE, 0,
    ),
    "residual units": (
        lambda: monai("UNet", spatial_dims=2, in_channels=3, out_channels=2, channels=(4, 8, 16),
                      strides=(2, 2), num_res_units=2, norm="batch", act="relu"), IMAGE, 0,
    ),
    "attention gates": (
        lambda: monai("AttentionUnet", spatial_dims=2, in_channels=3, out_channels=2, channels=(4, 8, 16),
                      strides=(2, 2)), IMAGE, 0,
    ),
    "configured": (
        lambda: transformers("ResNet", "ForImageClassification", embedding_size=8, hidden_sizes=[8, 16],
                             depths=[1, 2], layer_type="basic"), IMAGE, 0,
    ),
    "configured, keywords": (
        lambda: transformers("MobileNetV2", depth_multiplier=0.35, image_size=64), IMAGE, 0,
    ),
    "decoder with skips": (lambda: segmentation("Unet", "resnet18"), IMAGE, 8),
    "pyramid decoder": (lambda: segmentation("DeepLabV3Plus", "mobilenet_v2"), IMAGE, 0),
}  # fmt: skip


def made(name: str) -> tuple[nn.Module, torch.Tensor]:
    """The model and an input, the same every time."""
    torch.manual_seed(0)
    build, shape, _ = MODELS[name]
    return build(), torch.randn(shape)
