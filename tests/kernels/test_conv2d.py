"""kernels/conv2d.py fills what it is handed, within the rule against torch and a float64 oracle."""

import os

import pytest
import torch
import torch.nn.functional as F

if not (torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"):
    pytest.skip("needs CUDA or TRITON_INTERPRET=1", allow_module_level=True)
pytest.importorskip("triton")

from fastdl.kernels import _runtime, conv2d_split_k
from fastdl.kernels import conv2d as op

from fastdl.activations import ACTIVATIONS
from fastdl.parity.tolerance import judge

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
NAN, INF = float("nan"), float("inf")


def conv(stride=1, padding=0, dilation=1, groups=1, activation=""):
    """Keyword arguments of the launchers."""

    def pair(value):
        return (value, value) if isinstance(value, int) else value

    return {
        "stride": pair(stride),
        "padding": pair(padding),
        "dilation": pair(dilation),
        "groups": groups,
        "activation": activation,
        "activation_param": ACTIVATIONS[activation].param if activation else 0.0,
        "allow_tf32": False,
    }


def normal(*shape, dtype=FP32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


def nchw(t):
    return t.contiguous()


def channels_last(t):
    return t.contiguous(memory_format=torch.channels_last)


def sliced(t):
    """``t`` as every second channel and all but the border of something larger."""
    n, c, h, w = t.shape
    larger = t.new_full((n, 2 * c, h + 2, w + 1), NAN)
    larger[:, ::2, 1:-1, 1:] = t
    return larger[:, ::2, 1:-1, 1:]


def transposed(t):
    """``t`` with H and W swapped in memory."""
    return t.transpose(2, 3).contiguous().transpose(2, 3)


def unwritten(shape, like, layout):
    return layout(torch.full(shape, NAN, dtype=like.dtype, device=like.device))


def reference(dtype, x, weight, bias, grad_out, options):
    """out, grad_x, grad_weight, grad_bias by torch in ``dtype`` on the CPU."""
    inputs = [t.detach().cpu().to(dtype).contiguous().requires_grad_() for t in (x, weight, bias)]
    names = ("stride", "padding", "dilation", "groups")
    out = F.conv2d(*inputs, **{name: options[name] for name in names})
    if options["activation"]:
        out = ACTIVATIONS[options["activation"]].function(out, options["activation_param"])
    return out.detach(), *torch.autograd.grad(out, inputs, grad_out.cpu().to(dtype))


def out_shape(x, weight, options):
    size = [
        (x.shape[2 + i] + 2 * options["padding"][i] - options["dilation"][i] * (weight.shape[2 + i] - 1) - 1)
        // options["stride"][i]
        + 1
        for i in (0, 1)
    ]
    return x.shape[0], weight.shape[0], *size


def ours(x, weight, bias, grad_out, options, layout=nchw, weight_layout=nchw):
    """out, grad_x, grad_weight, grad_bias from the launchers, into outputs that start as NaN."""
    out = unwritten(out_shape(x, weight, options), x, layout)
    op.forward(x, weight, bias, out, **options)
    grad_x, grad_weight = unwritten(x.shape, x, layout), unwritten(weight.shape, x, weight_layout)
    grad_bias = torch.full_like(bias, NAN)
    saved = out if options["activation"] else None
    op.backward(grad_out, x, weight, saved, grad_x, grad_weight, grad_bias, **options)
    return out, grad_x, grad_weight, grad_bias


def check(x, weight, options, layout=nchw, weight_layout=nchw, grad_out=None, keep_x=False):
    bias = normal(weight.shape[0], dtype=x.dtype, seed=2)
    if grad_out is None:
        grad_out = layout(normal(*out_shape(x, weight, options), dtype=x.dtype, seed=3))
    got = ours(
        x if keep_x else layout(x), weight_layout(weight), bias, grad_out, options, layout, weight_layout
    )
    torchs = reference(x.dtype, x, weight, bias, grad_out, options)
    oracle = reference(torch.float64, x, weight, bias, grad_out, options)
    for what, *values in zip(("out", "grad_x", "grad_weight", "grad_bias"), got, torchs, oracle, strict=True):
        failure = judge(*values).failure
        assert not failure, f"{what}: {failure}"


# x, weight, options: each takes another way through the kernels
CASES = {
    "image": ((2, 3, 9, 10), (5, 3, 3, 3), conv(padding=1)),
    "gray image": ((2, 1, 12, 12), (6, 1, 5, 5), conv(padding=2)),
    "stride 2": ((2, 3, 11, 10), (5, 3, 3, 3), conv(stride=2, padding=1)),
    "stride 4 of 3 and 2 taps": ((2, 4, 13, 12), (5, 4, 3, 2), conv(stride=4)),
    "patches": ((2, 3, 8, 8), (6, 3, 4, 4), conv(stride=4)),
    "stride and dilation in common": ((1, 3, 13, 12), (4, 3, 3, 3), conv((2, 4), 2, (4, 2))),
    "stride 3 and dilation 2": ((1, 3, 13, 12), (4, 3, 3, 3), conv(3, (3, 2), 2)),
    "padding past the image": ((1, 2, 3, 2), (3, 2, 3, 3), conv(2, 4)),
    "one row of taps": ((2, 3, 5, 9), (4, 3, 1, 5), conv(1, (0, 2))),
    "blocks of every axis": ((2, 36, 9, 8), (70, 36, 2, 2), conv(padding=1)),
    "64 channels, stride 2": ((1, 64, 6, 5), (32, 64, 3, 2), conv(2, 1)),
    "24 channels": ((1, 24, 5, 6), (8, 24, 3, 3), conv(padding=1)),
    "1x1": ((3, 36, 5, 6), (20, 36, 1, 1), conv()),
    "1x1, stride 2": ((3, 36, 5, 6), (20, 36, 1, 1), conv(stride=2)),
    "1x1, padding": ((2, 5, 4, 3), (4, 5, 1, 1), conv(padding=1)),
    "1x1 image": ((4, 20, 1, 1), (18, 20, 1, 1), conv()),
    "groups": ((2, 8, 6, 5), (12, 4, 3, 3), conv(padding=1, groups=2)),
    "groups, stride 2": ((2, 9, 7, 6), (6, 3, 3, 3), conv(2, 1, groups=3)),
    "depthwise": ((2, 7, 9, 8), (7, 1, 3, 3), conv(padding=1, groups=7)),
    "depthwise 5x3, all else odd": ((2, 6, 11, 9), (6, 1, 5, 3), conv((2, 3), (1, 2), (1, 2), groups=6)),
    "depthwise, two outputs each": ((2, 16, 6, 5), (32, 1, 3, 3), conv(padding=1, groups=16)),
}


@pytest.mark.parametrize("layout", [nchw, channels_last])
@pytest.mark.parametrize("name", CASES)
def test_forward_and_backward(name, layout):
    x_shape, weight_shape, options = CASES[name]
    check(normal(*x_shape), normal(*weight_shape, seed=1), options, layout, layout)


@pytest.mark.parametrize("layout", [nchw, channels_last])
@pytest.mark.parametrize("dtype", [FP16, BF16])
@pytest.mark.parametrize("name", ["image", "blocks of every axis", "1x1", "depthwise"])
def test_half_precision(name, dtype, layout):
    x_shape, weight_shape, options = CASES[name]
    options = options | {"activation": "relu"}
    weight = normal(*weight_shape, dtype=dtype, seed=1) / 4
    check(normal(*x_shape, dtype=dtype), weight, options, layout, layout)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("groups", [1, 4])
def test_activations(activation, groups):
    options = conv(padding=1, groups=groups, activation=activation)
    check(normal(2, 4, 5, 6), normal(4, 4 // groups, 3, 3, seed=1), options)


@pytest.mark.parametrize("name", ["stride 2", "64 channels, stride 2", "1x1", "groups", "depthwise"])
@pytest.mark.parametrize("layout, weight_layout", [(sliced, sliced), (transposed, transposed)])
def test_any_strides(name, layout, weight_layout):
    x_shape, weight_shape, options = CASES[name]
    options = options | {"activation": "relu"}
    check(normal(*x_shape), normal(*weight_shape, seed=1), options, layout, weight_layout)


@pytest.mark.parametrize("activation", ["", "relu"])
@pytest.mark.parametrize("name", ["image", "1x1", "depthwise"])
def test_gradient_of_stride_zero(name, activation):
    x_shape, weight_shape, options = CASES[name]
    options = options | {"activation": activation}
    x, weight = normal(*x_shape), normal(*weight_shape, seed=1)
    grad_out = torch.full((), 0.5, device=DEVICE).expand(out_shape(x, weight, options))
    check(x, weight, options, channels_last, grad_out=grad_out)


def test_mixed_layouts():
    x, weight = channels_last(normal(2, 36, 6, 5)), normal(20, 36, 3, 3, seed=1)
    check(x, weight, conv(padding=1, activation="relu"), nchw, channels_last, keep_x=True)
    check(nchw(x), weight, conv(padding=1, activation="relu"), channels_last, nchw, keep_x=True)


def test_no_bias():
    x, weight = normal(2, 3, 6, 5), normal(4, 3, 3, 3, seed=1)
    with_bias, without = (torch.full((2, 4, 4, 3), NAN, device=DEVICE) for _ in range(2))
    op.forward(x, weight, torch.zeros(4, device=DEVICE), with_bias, **conv())
    op.forward(x, weight, None, without, **conv())
    assert torch.equal(with_bias, without)


@pytest.mark.parametrize("activation", ["", "relu"])
@pytest.mark.parametrize("groups", [1, 4])
def test_only_what_is_wanted(groups, activation):
    options = conv(padding=1, groups=groups, activation=activation)
    x, weight, bias = normal(2, 4, 6, 5), normal(4, 4 // groups, 3, 3, seed=1), normal(4, seed=2)
    grad_out = normal(2, 4, 6, 5, seed=3)
    out, *gradients = ours(x, weight, bias, grad_out, options)
    for i, expected in enumerate(gradients):
        wanted = [torch.full_like(g, NAN) if j == i else None for j, g in enumerate(gradients)]
        with _runtime.record() as launches:
            op.backward(grad_out, x, weight, out if activation else None, *wanted, **options)
        names = {launch.kernel.__name__ for launch in launches} - {"conv2d_add_splits"}
        assert len(names) == (1 if i == 2 or not activation else 2), names
        op.backward(grad_out, x, weight, out if activation else None, *wanted, **options)
        assert torch.equal(wanted[i], expected)


@pytest.mark.parametrize("name", ["image", "1x1", "depthwise"])
def test_empty_batch(name):
    x_shape, weight_shape, options = CASES[name]
    x, weight = normal(0, *x_shape[1:]), normal(*weight_shape, seed=1)
    bias = normal(weight.shape[0], seed=2)
    grad_out = normal(*out_shape(x, weight, options))
    _, grad_x, grad_weight, grad_bias = ours(x, weight, bias, grad_out, options)
    assert grad_x.shape == x.shape
    assert not grad_weight.any() and not grad_bias.any()


@pytest.mark.parametrize("layout", [nchw, channels_last])
@pytest.mark.parametrize("name", ["stride 2", "64 channels, stride 2", "1x1", "groups", "depthwise"])
def test_64_bit_offsets_change_nothing(name, layout):
    x_shape, weight_shape, options = CASES[name]
    options = options | {"activation": "relu"}
    x, weight = layout(normal(*x_shape)), normal(*weight_shape, seed=1)
    args = x, weight, normal(weight.shape[0], seed=2), normal(*out_shape(x, weight, options), seed=3), options
    narrow = ours(*args, layout)
    with _runtime.force_wide():
        wide = ours(*args, layout)
    for a, b in zip(wide, narrow, strict=True):
        assert torch.equal(a, b)


def test_many_splits(monkeypatch):
    """Sums over pixels in more partials than one block adds at a time."""
    monkeypatch.setattr(conv2d_split_k, "program_target", lambda _: 4000)
    check(normal(2, 2, 66, 64), normal(3, 2, 1, 2, seed=1), conv())


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("groups", [1, 4])
def test_nan_and_infinity_stay_in_their_windows(groups, value):
    x, weight = normal(1, 4, 7, 6), normal(4, 4 // groups, 3, 3, seed=1)
    x[0, 1, 3, 3] = value
    check(x, weight, conv(activation="relu", groups=groups))


def test_1x1_is_one_matrix_product():
    """Its pixels are one axis: all images in channels_last, one image at a time in NCHW."""
    for layout, images, pixels in ((channels_last, 1, 2 * 6 * 5), (nchw, 2, 6 * 5)):
        x, weight, out = layout(normal(2, 8, 6, 5)), normal(4, 8, 1, 1), layout(normal(2, 4, 6, 5))
        with _runtime.record() as launches:
            op.forward(x, weight, None, out, **conv())
        (launch,) = launches
        sizes = dict(zip(launch.kernel.arg_names, launch.args, strict=False))
        assert (sizes["dst_h"], sizes["dst_w"]) == (1, pixels)
        assert sizes["pixels"] == images * pixels
