"""Bad input: our wording, torch's exception type, on every backend, and nothing changed."""

import pytest
import torch
import torch.nn.functional as T

import fastdl
import fastdl.functional as F
from fastdl import backends

r = torch.rand


def z(*size):
    return torch.zeros(*size, dtype=torch.long)


def affine(x, theta, size, **options):
    """What affine_grid_sample is to be measured by."""
    return T.grid_sample(x, T.affine_grid(theta, size, False), align_corners=False, **options)


def tps(points, control_points=None):
    """A spline that fits images of [2, 1, 4, 4]."""
    return F.tps_grid_sample(r(2, 1, 4, 4), points, (2, 1, 4, 4), control_points)


# id: (ours, torch's, what our message must say)
BAD = {
    "conv2d 2-D input": ("conv2d", (r(3, 4), r(2, 3, 3, 3)), {}, "[N, C, H, W] or [C, H, W], got [3, 4]"),
    "conv2d 3-D weight": ("conv2d", (r(1, 3, 5, 5), r(3, 3, 3)), {}, "weight of shape [K, C/groups, R, S]"),
    "conv2d channels": ("conv2d", (r(1, 4, 5, 5), r(2, 3, 3, 3)), {}, "expected input of 3 channels"),
    "conv2d groups": ("conv2d", (r(1, 4, 5, 5), r(3, 2, 3, 3)), {"groups": 2}, "groups that divide the 3"),
    "conv2d groups 0": ("conv2d", (r(1, 3, 5, 5), r(2, 3, 3, 3)), {"groups": 0}, "got 0"),
    "conv2d bias": ("conv2d", (r(1, 3, 5, 5), r(2, 3, 3, 3), r(3)), {}, "bias of shape [2], got [3]"),
    "conv2d weight dtype": ("conv2d", (r(1, 3, 5, 5), r(2, 3, 3, 3).double()), {}, "got torch.float64"),
    "conv2d bias dtype": ("conv2d", (r(1, 3, 5, 5), r(2, 3, 3, 3), r(2).half()), {}, "got torch.float16"),
    "conv2d stride 0": ("conv2d", (r(1, 3, 5, 5), r(2, 3, 3, 3)), {"stride": 0}, "stride to be positive"),
    "conv2d dilation 0": ("conv2d", (r(1, 3, 5, 5), r(2, 3, 3, 3)), {"dilation": 0}, "dilation to be positive"),
    "conv2d stride of three": ("conv2d", (r(1, 3, 5, 5), r(2, 3, 3, 3)), {"stride": (1, 2, 3)}, "(1, 2, 3)"),
    "conv2d stride 1.5": ("conv2d", (r(1, 3, 5, 5), r(2, 3, 3, 3)), {"stride": 1.5}, "got 1.5"),
    "conv2d padding -1": ("conv2d", (r(1, 3, 5, 5), r(2, 3, 3, 3)), {"padding": -1}, "non-negative"),
    "conv2d padding name": ("conv2d", (r(1, 3, 5, 5), r(2, 3, 3, 3)), {"padding": "sme"}, "'same', 'valid'"),
    "conv2d same strided": (
        "conv2d", (r(1, 3, 5, 5), r(2, 3, 3, 3)), {"padding": "same", "stride": 2}, "stride 1 with padding='same'",
    ),
    "conv2d small input": ("conv2d", (r(1, 3, 2, 2), r(2, 3, 3, 3)), {}, "at least the kernel's [3, 3]"),
    "conv2d no tensor": ("conv2d", ([1.0], r(2, 3, 3, 3)), {}, "input to be a Tensor, got list"),
    "batch_norm 1-D": ("batch_norm", (r(4), r(4), r(4)), {}, "[N, C, ...], got [4]"),
    "batch_norm 1-D training": ("batch_norm", (r(4), None, None), {"training": True}, "got [4]"),
    "batch_norm running_mean": ("batch_norm", (r(4, 3), r(4), r(4)), {}, "running_mean of shape [3]"),
    "batch_norm running_var": ("batch_norm", (r(4, 3), r(3), r(4)), {}, "running_var of shape [3]"),
    "batch_norm weight": ("batch_norm", (r(4, 3), r(3), r(3), r(4)), {}, "weight of shape [3]"),
    "batch_norm bias": ("batch_norm", (r(4, 3), r(3), r(3), r(3), r(2)), {}, "bias of shape [3]"),
    "batch_norm eval without statistics": ("batch_norm", (r(4, 3), None, None), {}, "in evaluation mode"),
    "batch_norm one value": ("batch_norm", (r(1, 3), None, None), {"training": True}, "more than 1 value"),
    "batch_norm half statistics": (
        "batch_norm", (r(4, 3), r(3), None), {"training": True}, "both running_mean and running_var or neither",
    ),
    "batch_norm eps": ("batch_norm", (r(4, 3), r(3), r(3)), {"eps": -1}, "eps to be non-negative"),
    "batch_norm momentum": ("batch_norm", (r(4, 3), r(3), r(3)), {"momentum": None}, "momentum to be a float"),
    "cross_entropy batch": ("cross_entropy", (r(2, 3), z(3)), {}, "target of shape [2]"),
    "cross_entropy extent": ("cross_entropy", (r(2, 3, 4), z(2, 5)), {}, "got [2, 5]"),
    "cross_entropy target dtype": ("cross_entropy", (r(2, 3), z(2).int()), {}, "use target.long()"),
    "cross_entropy range": ("cross_entropy", (r(2, 3), torch.tensor([0, 3])), {}, "got 3 in row 1"),
    "cross_entropy negative": ("cross_entropy", (r(2, 3), torch.tensor([-5, 0])), {}, "got -5 in row 0"),
    "cross_entropy weight": ("cross_entropy", (r(2, 3), z(2), r(2)), {}, "weight of shape [3], one per class"),
    "cross_entropy smoothing": ("cross_entropy", (r(2, 3), z(2)), {"label_smoothing": 1.5}, "got 1.5"),
    "cross_entropy reduction": ("cross_entropy", (r(2, 3), z(2)), {"reduction": "men"}, "got 'men'"),
    "cross_entropy ignored probabilities": (
        "cross_entropy", (r(2, 3), r(2, 3)), {"ignore_index": 1}, "no ignore_index with class probabilities",
    ),
    "max_pool2d 2-D": ("max_pool2d", (r(32, 32), 2), {}, "[N, C, H, W] or [C, H, W]"),
    "max_pool2d kernel 0": ("max_pool2d", (r(1, 1, 4, 4), 0), {}, "kernel_size to be positive"),
    "max_pool2d kernel of three": ("max_pool2d", (r(1, 1, 4, 4), (2, 2, 2)), {}, "a tuple of two ints"),
    "max_pool2d kernel 2.5": ("max_pool2d", (r(1, 1, 4, 4), 2.5), {}, "got 2.5"),
    "max_pool2d stride 0": ("max_pool2d", (r(1, 1, 4, 4), 2, 0), {}, "stride to be positive"),
    "max_pool2d padding": ("max_pool2d", (r(1, 1, 4, 4), 2, 2, 2), {}, "half of kernel_size (2, 2), got (2, 2)"),
    "max_pool2d padding -1": ("max_pool2d", (r(1, 1, 4, 4), 2, 2, -1), {}, "got (-1, -1)"),
    "max_pool2d dilation 0": ("max_pool2d", (r(1, 1, 4, 4), 2, 2, 0, 0), {}, "dilation to be positive"),
    "max_pool2d window": ("max_pool2d", (r(1, 1, 4, 4), 7), {}, "at least one window of (7, 7)"),
    "max_pool2d empty": ("max_pool2d", (r(1, 1, 0, 4), 2), {}, "no empty dimension but N"),
    "affine theta": ("affine_grid_sample", (r(2, 1, 4, 4), r(2, 3, 3), (2, 1, 4, 4)), {}, "[N, 2, 3] for size"),
    "affine theta batch": (
        "affine_grid_sample", (r(3, 1, 4, 4), r(2, 2, 3), (3, 1, 4, 4)), {}, "as many theta as size says, 3, got 2",
    ),
    "affine input batch": (
        "affine_grid_sample", (r(3, 1, 4, 4), r(2, 2, 3), (2, 1, 4, 4)), {}, "batch 2 or 1, like theta",
    ),
    "affine size": ("affine_grid_sample", (r(2, 1, 4, 4), r(2, 2, 3), (2, 1, 4)), {}, "(N, C, H, W)"),
    "affine size 0": ("affine_grid_sample", (r(2, 1, 4, 4), r(2, 2, 3), (2, 1, 0, 4)), {}, "size to be positive"),
    "affine mode": (
        "affine_grid_sample", (r(2, 1, 4, 4), r(2, 2, 3), (2, 1, 4, 4)), {"mode": "x"}, "bilinear, nearest",
    ),
    "affine padding_mode": (
        "affine_grid_sample", (r(2, 1, 4, 4), r(2, 2, 3), (2, 1, 4, 4)), {"padding_mode": "x"}, "zeros, border",
    ),
    "affine theta dtype": (
        "affine_grid_sample", (r(2, 1, 4, 4), r(2, 2, 3).int(), (2, 1, 4, 4)), {}, "floating-point dtype",
    ),
    "affine empty image": (
        "affine_grid_sample", (r(2, 1, 0, 4), r(2, 2, 3), (2, 1, 4, 4)), {}, "a non-empty image",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, on, device):
    op, args, options, says = BAD[name]
    if device.type == "cuda" and name in ("cross_entropy range", "cross_entropy negative"):
        pytest.skip("torch asserts on the device there; see test_cross_entropy")
    args = [a.to(device) if isinstance(a, torch.Tensor) else a for a in args]
    torchs = affine if op == "affine_grid_sample" else getattr(T, op)
    with pytest.raises(Exception) as expected:
        torchs(*args, **options)
    with pytest.raises(Exception) as raised:
        getattr(F, op)(*args, **options)
    assert type(raised.value) is expected.type
    message = str(raised.value)
    assert message.startswith(f"fastdl.{op}: expected ")
    assert ", got " in message
    assert says in message


# fastdl's own arguments, and devices: no torch namesake to compare with
OWN = {
    "activation": (lambda: F.batch_norm(r(4, 3), None, None, training=True, activation="reluu"), ValueError,
                   "fastdl.batch_norm: expected activation to be None or one of relu, leaky_relu, elu, "
                   "sigmoid, tanh, softplus, got 'reluu'"),
    "activation_param": (lambda: F.conv2d(r(1, 3, 5, 5), r(2, 3, 3, 3), activation="relu", activation_param=1.0),
                         ValueError, "fastdl.conv2d: expected no activation_param for 'relu', got 1.0"),
    "negative slope": (
        lambda: F.conv2d(r(1, 3, 5, 5), r(2, 3, 3, 3), activation="leaky_relu", activation_param=-0.1),
        ValueError, "fastdl.conv2d: expected negative_slope of 'leaky_relu' to be non-negative, got -0.1"),
    "param alone": (lambda: F.conv2d(r(1, 3, 5, 5), r(2, 3, 3, 3), activation_param=0.1), ValueError,
                    "fastdl.conv2d: expected activation_param with an activation, got activation=None"),
    "device": (lambda: F.conv2d(r(1, 3, 5, 5), torch.empty(2, 3, 3, 3, device="meta")), RuntimeError,
               "fastdl.conv2d: expected weight on the device of input, cpu, got meta"),
    "backend": (lambda: fastdl.use_backend("cudnn").__enter__(), ValueError,
                "fastdl.use_backend: expected one of auto, reference, cpu, cuda, triton, got 'cudnn'"),
    "module": (lambda: fastdl.convert("resnet"), TypeError,
               "fastdl.convert: expected model to be a torch.nn.Module, got str"),
    "spline points": (lambda: tps(r(2, 9, 3)), ValueError,
                      "fastdl.tps_grid_sample: expected points of shape [N, K, 2], got [2, 9, 3]"),
    "spline square": (lambda: tps(r(2, 8, 2)), ValueError,
                      "fastdl.tps_grid_sample: expected points of a square grid, [N, 4, 2], [N, 9, 2], ..., "
                      "got [2, 8, 2]; else pass control_points"),
    "spline control_points": (lambda: tps(r(2, 8, 2), r(9, 2)), ValueError,
                              "fastdl.tps_grid_sample: expected control_points of shape [8, 2], like points, got [9, 2]"),
    "spline of two": (lambda: tps(r(2, 2, 2), r(2, 2)), ValueError,
                      "fastdl.tps_grid_sample: expected control_points of shape [3, 2], like points, got [2, 2]"),
    "spline on a line": (lambda: tps(r(2, 3, 2), torch.tensor([[0.0, 1], [1, 3], [2, 5]])), ValueError,
                         "fastdl.tps_grid_sample: expected control_points that do not lie on one line, got "
                         "[[0.0, 1.0], [1.0, 3.0], [2.0, 5.0]]"),
    "spline dtype": (lambda: tps(z(2, 9, 2)), ValueError,
                     "fastdl.tps_grid_sample: expected points of a floating-point dtype, got torch.int64"),
    "spline control dtype": (lambda: tps(r(2, 9, 2), z(9, 2)), ValueError,
                             "fastdl.tps_grid_sample: expected control_points of a floating-point dtype, got torch.int64"),
    "spline size": (lambda: F.tps_grid_sample(r(2, 1, 4, 4), r(2, 9, 2), (4, 4)), NotImplementedError,
                    "fastdl.tps_grid_sample: expected size to be (N, C, H, W), got (4, 4)"),
    "spline batch": (lambda: tps(r(3, 9, 2)), RuntimeError,
                     "fastdl.tps_grid_sample: expected as many points as size says, 2, got 3"),
    "spline mode": (lambda: F.tps_grid_sample(r(2, 1, 4, 4), r(2, 9, 2), (2, 1, 4, 4), mode="linear"), ValueError,
                    "fastdl.tps_grid_sample: expected mode to be one of bilinear, nearest, bicubic, got 'linear'"),
    "spline device": (lambda: tps(r(2, 9, 2), torch.empty(9, 2, device="meta")), RuntimeError,
                      "fastdl.tps_grid_sample: expected control_points on the device of input, cpu, got meta"),
    "localisation": (lambda: fastdl.nn.SpatialTransformer(torch.nn.Flatten())(r(2, 1, 4, 4)), RuntimeError,
                     "fastdl.nn.SpatialTransformer: expected localisation to give [2, 6] or [2, 2, 3], got [2, 16]"),
}  # fmt: skip


@pytest.mark.parametrize("name", OWN)
def test_own_messages_to_the_letter(name):
    call, error, message = OWN[name]
    with pytest.raises(error) as raised:
        call()
    assert str(raised.value) == message


def test_batch_norm_that_raises_changes_nothing(on, device):
    module = fastdl.nn.BatchNorm2d(3).to(device)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    for bad in (r(1, 3, 1, 1), r(2, 4, 5, 5), r(2, 3)):
        with pytest.raises((ValueError, RuntimeError)):
            module(bad.to(device))
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())


def test_named_backend_serves_or_raises(device):
    with backends.use_backend("triton"), pytest.raises(RuntimeError, match="float64 has no kernel"):
        F.max_pool2d(r(1, 1, 4, 4, dtype=torch.float64, device=device), 2)
    with backends.use_backend("triton"), pytest.raises(RuntimeError, match="bicubic"):
        F.affine_grid_sample(
            r(1, 1, 4, 4, device=device), r(1, 2, 3, device=device), (1, 1, 4, 4), mode="bicubic"
        )
    with backends.use_backend("triton"), pytest.raises(RuntimeError, match="more than 256 control points"):
        F.tps_grid_sample(r(1, 1, 4, 4, device=device), r(1, 289, 2, device=device), (1, 1, 4, 4))
