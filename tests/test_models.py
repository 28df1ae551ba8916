"""The networks of the course: sizes that the slides and papers state, the registry, what it refuses."""

import pytest
import torch
from torch import nn

from fastdl import models
from fastdl.models import geomatch
from fastdl.models.highway import KINDS
from fastdl.models.mlp import ACTIVATIONS, MLP

#: Parameters: from the slides or, where those give none, from the paper's published version.
PARAMETERS = [
    ("linear", {}, 7_850),
    ("linear", {"shape": (3, 32, 32)}, 30_730),
    ("mlp", {}, 669_706),
    ("net", {}, 21_840),
    ("lenet5", {}, 61_706),
    ("alexnet", {}, 62_378_344),
    ("alexnet_mini", {}, 136_418),
    ("vgg16", {}, 138_357_544),
    ("vgg_mini", {}, 147_162),
    ("inception_v3", {}, 24_125_544),
    ("googlenet", {}, 6_624_904),
    ("inception_mini", {}, 56_954),
    ("resnet8", {}, 77_754),
    ("resnet18", {}, 11_689_512),
    ("resnet50", {}, 25_557_032),
    ("densenet", {}, 7_978_856),
    ("densenet_mini", {}, 69_226),
    ("unet", {}, 121_204),
    ("siamese", {}, 47_120),
    ("stn", {}, 90_160),
    ("stn", {"transform": False}, 74_410),
    ("geomatch", {}, 411_030),
    ("geomatch", {"stage": "tps"}, 411_810),
    ("geomatch_tps", {}, 411_810),
    ("pointnet_cls", {}, 3_480_049),
    ("pointnet_cls", {"width": 0.25, "classes": 8}, 172_161),
    ("pointnet_seg", {}, 3_558_907),
    ("pointnet_seg", {"width": 0.25, "parts": 10}, 177_283),
    ("vae", {}, 652_824),
    ("vit", {}, 139_018),
    ("clip", {}, 133_825),
]
LARGE = {"alexnet", "vgg16", "inception_v3", "googlenet", "resnet18", "resnet50", "densenet"}


def make(name, **options):
    """Without memory for weights where there are many."""
    if name not in LARGE:
        return models.create(name, **options)
    with torch.device("meta"):
        return models.create(name, **options)


@pytest.mark.parametrize(("name", "options", "number"), PARAMETERS, ids=str)
def test_parameters(name, options, number):
    assert sum(p.numel() for p in make(name, **options).parameters()) == number


def shapes_of(model, shape):
    """The output sizes of all leaves in the order of their calls, without the batch."""
    seen = []
    for module in model.modules():
        if not any(True for _ in module.children()):
            module.register_forward_hook(lambda m, _, out: seen.append((type(m).__name__, *out.shape[1:])))
    model.eval()(torch.empty(shape, device="meta"))
    return seen


def test_alexnet_layer_by_layer():
    """The slides' table: sizes, and parameters without biases as the slides count them."""
    model = make("alexnet")
    seen = [s for s in shapes_of(model, (1, 3, 227, 227)) if s[0] in ("Conv2d", "MaxPool2d", "Linear")]
    assert seen == [
        ("Conv2d", 96, 55, 55),
        ("MaxPool2d", 96, 27, 27),
        ("Conv2d", 256, 27, 27),
        ("MaxPool2d", 256, 13, 13),
        ("Conv2d", 384, 13, 13),
        ("Conv2d", 384, 13, 13),
        ("Conv2d", 256, 13, 13),
        ("MaxPool2d", 256, 6, 6),
        ("Linear", 4096),
        ("Linear", 4096),
        ("Linear", 1000),
    ]
    assert model.features[0].weight.numel() == 11 * 11 * 3 * 96  # "35K"


def test_inception_v3_layer_by_layer():
    """The slides' table gives each layer's input; "three, five, two modules" end where the next begins."""
    model, seen = make("inception_v3"), []
    rows = [*model.stem, model.a, model.b, model.c, model.pool, model.fc]
    for row in rows:
        row.register_forward_pre_hook(lambda _, x: seen.append(tuple(x[0].shape[1:])))
    out = model.eval()(torch.empty(1, 3, 299, 299, device="meta"))
    assert seen == [
        (3, 299, 299),
        (32, 149, 149),
        (32, 147, 147),
        (64, 147, 147),
        (64, 73, 73),
        (80, 71, 71),
        (192, 35, 35),
        (288, 35, 35),
        (768, 17, 17),
        (1280, 8, 8),
        (2048, 8, 8),
        (2048,),
    ]
    assert out.shape == (1, 1000)
    assert [len(modules) for modules in (model.a, model.b, model.c)] == [3, 5, 2]


def test_inception_v3_takes_75_pixels():
    assert make("inception_v3").eval()(torch.empty(1, 3, 75, 75, device="meta")).shape == (1, 1000)


def test_net_layer_by_layer():
    seen = []
    model = models.create("net")
    for layer in (model.conv2, model.fc1):
        layer.register_forward_pre_hook(lambda _, x: seen.append(tuple(x[0].shape[1:])))
    model(*models.example_inputs("net"))
    assert seen == [(10, 12, 12), (320,)]


def test_vgg16_sizes():
    pools = [s[1:] for s in shapes_of(make("vgg16"), (1, 3, 224, 224)) if s[0] == "MaxPool2d"]
    assert pools == [(64, 112, 112), (128, 56, 56), (256, 28, 28), (512, 14, 14), (512, 7, 7)]


@pytest.mark.parametrize(
    ("name", "shape"),
    [("resnet18", (2, 3, 64, 64)), ("resnet50", (2, 3, 224, 224)), ("googlenet", (2, 3, 224, 224)),
     ("densenet", (2, 3, 224, 224))],
)  # fmt: skip
def test_large_networks_end_in_logits(name, shape):
    assert make(name)(torch.empty(shape, device="meta")).shape == (2, 1000)


@pytest.mark.parametrize("name", models.names())
def test_example_inputs_fit(name):
    model = make(name)
    device = "meta" if name in LARGE else "cpu"
    inputs = models.example_inputs(name)
    assert all(torch.equal(a, b) for a, b in zip(inputs, models.example_inputs(name), strict=True))
    out = model(*(x.to(device) for x in inputs))
    out = out if isinstance(out, tuple) else (out,)
    if device == "cpu":
        loss = models.create_loss(name)(*out, *models.example_targets(name))
        assert loss.shape == () and torch.isfinite(loss)
        loss.backward()
        assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mlp_activations(activation):
    model = MLP(16, 8, 4, activation=activation)
    assert model(torch.randn(2, 4, 4)).shape == (2, 10)
    assert sum(isinstance(layer, nn.Linear) for layer in model.layers) == 4


def test_activations_as_the_slides_write_them():
    x = torch.tensor([[-3.0, -0.5, 2.0]])
    assert torch.allclose(ACTIVATIONS["leaky_relu"]()(x), torch.maximum(0.1 * x, x))
    assert ACTIVATIONS["shifted_relu"]()(x).tolist() == [[-1.0, -0.5, 2.0]]
    assert ACTIVATIONS["maxout"]()(torch.tensor([[1.0, 5.0, 3.0, 4.0]])).tolist() == [[3.0, 5.0]]


@pytest.mark.parametrize("init", ["he", "zeros", "normal"])
def test_mlp_initialisation(init):
    layer = MLP(1000, 400, 2, init=init).layers[1]
    assert float(layer.weight.detach().std()) == pytest.approx(
        {"he": (2 / 1000) ** 0.5, "zeros": 0, "normal": 1}[init], rel=0.02
    )
    assert not layer.bias.any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("conv", [False, True])
def test_highway_kinds(kind, conv):
    model = models.create("highway", kind=kind, conv=conv, depth=4, width=8)
    assert model(torch.randn(2, 1, 28, 28)).shape == (2, 10)


def test_pointnet_does_not_see_the_order_of_the_points():
    model = models.create("pointnet_cls", width=0.25).eval()
    (x,) = models.example_inputs("pointnet_cls")
    shuffled = x[:, :, torch.randperm(x.shape[2])]
    torch.testing.assert_close(model(shuffled)[0], model(x)[0])


def test_a_siamese_network_gives_equal_images_one_embedding():
    a, b = models.create("siamese")(*models.example_inputs("siamese")[:1] * 2)
    assert torch.equal(a, b)


def test_spline_through_its_control_points():
    """Control points go where they are told; an affine map of all of them is that map everywhere."""
    torch.manual_seed(0)
    moved = geomatch.control_points() + 0.2 * torch.randn(9, 2)
    there = geomatch.map_points(moved.view(1, 18), geomatch.control_points())
    torch.testing.assert_close(there[0], moved)
    theta = torch.randn(1, 6)
    controls = geomatch.map_points(theta, geomatch.control_points()).view(1, 18)
    points = torch.rand(50, 2) * 2 - 1
    torch.testing.assert_close(
        geomatch.map_points(controls, points), geomatch.map_points(theta, points), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("stage", ["affine", "tps"])
def test_identity_warp(stage):
    """Geometric matching starts with a warp that changes nothing."""
    name = "geomatch" if stage == "affine" else "geomatch_tps"
    a, b = models.example_inputs(name)
    warp = models.create(name)(a, b)
    torch.testing.assert_close(geomatch.Warp(stage, 48)(a, warp), a, rtol=1e-3, atol=1e-3)


def test_unknown_network():
    with pytest.raises(
        ValueError, match=r"fastdl\.models: expected one of linear, mlp, .*clip, got 'resnet'"
    ):
        models.create("resnet")


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("net", {"width": 3}, TypeError, r"expected options of 'net' among dropout, got 'width'"),
        ("siamese", {"a": 1}, TypeError, r"among \(none\), got 'a'"),
        ("mlp", {"activation": "gelu"}, ValueError, r"expected activation to be one of relu, .*, got 'gelu'"),
        ("mlp", {"init": "xavier"}, ValueError, r"expected init to be one of default, he"),
        ("highway", {"kind": "dense"}, ValueError, r"expected kind to be one of highway, plain"),
        ("geomatch", {"stage": "spline"}, ValueError, r"expected stage to be one of affine, tps"),
    ],
)  # fmt: skip
def test_unknown_option(name, options, error, message):
    with pytest.raises(error, match=message):
        models.create(name, **options)
