"""The conv2d kernels of csrc/cuda, called directly: each path and its edges, held against torch."""

import pytest
import torch
import torch.nn.functional as F
from support import DEVICE, NATIVE_BACKENDS

from fastdl import native
from fastdl.activations import ACTIVATIONS
from fastdl.native import conv2d as composed
from fastdl.parity.tolerance import judge

if "cuda" not in NATIVE_BACKENDS:
    pytest.skip("needs the CUDA kernels, on a GPU or emulated", allow_module_level=True)

LIBRARY = native.library("cuda")[0]
FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
NAN, INF = float("nan"), float("inf")


def normal(*shape, dtype=FP32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


def nchw(t):
    return t.contiguous()


def channels_last(t):
    return t.contiguous(memory_format=torch.channels_last)


def misaligned(layout):
    """``layout``, one element past an aligned address."""

    def place(t):
        dense = layout(t)
        flat = torch.empty(t.numel() + 1, dtype=t.dtype, device=t.device)
        return flat[1:].as_strided(dense.shape, dense.stride(), 1).copy_(dense)

    return place


def sliced(t):
    n, c, h, w = t.shape
    larger = t.new_full((n, 2 * c, h + 2, w + 1), NAN)
    larger[:, ::2, 1:-1, 1:] = t
    return larger[:, ::2, 1:-1, 1:]


def expanded(t):
    return t[:1, :1, :1, :1].expand(t.shape)


def unwritten(shape, like, layout):
    return layout(torch.full(shape, NAN, dtype=like.dtype, device=like.device))


def window(stride=1, padding=0, dilation=1, groups=1):
    pair = lambda value: (value, value) if isinstance(value, int) else value  # noqa: E731
    return {"stride": pair(stride), "padding": pair(padding), "dilation": pair(dilation), "groups": groups}


def act(name="", param=None):
    default = ACTIVATIONS[name].param if name else 0.0
    return {"activation": name, "activation_param": default if param is None else param}


def applied(x, activation="", activation_param=0.0):
    return ACTIVATIONS[activation].function(x, activation_param) if activation else x


def on_cpu(dtype, *tensors):
    return [None if t is None else t.detach().cpu().to(dtype).contiguous().requires_grad_() for t in tensors]


def assert_judged(ours, torchs, oracle):
    failure = judge(ours, torchs, oracle).failure
    assert not failure, failure


def same(a, b):
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


def out_shape(x, weight, options):
    meta = F.conv2d(torch.empty(x.shape, device="meta"), torch.empty(weight.shape, device="meta"), **options)
    return meta.shape


# --------------------------------------------------------------------------------------------- the epilogue

SHAPES = {
    "planes of 16 bytes": (3, 5, 4, 16),
    "planes of odd size": (2, 3, 5, 7),
    "planes smaller than 16 bytes": (5, 3, 1, 2),
    "16 channels": (2, 16, 5, 3),
    "7 channels": (3, 7, 3, 3),
    "1x1 image": (5, 24, 1, 1),
    "many blocks": (2, 24, 40, 40),
}
LAYOUTS = {
    "nchw": nchw,
    "channels_last": channels_last,
    "misaligned nchw": misaligned(nchw),
    "misaligned channels_last": misaligned(channels_last),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [FP32, FP16])
def test_epilogue(dtype, shape, layout):
    x, bias = normal(*SHAPES[shape], dtype=dtype), normal(SHAPES[shape][1], dtype=dtype, seed=1)
    for b, options in ((bias, act("relu")), (bias, act()), (None, act("leaky_relu"))):
        out = LAYOUTS[layout](x.clone())
        LIBRARY.conv2d_epilogue(out, b, **options)
        torchs, oracle = (
            applied(y if c is None else y + c.view(-1, 1, 1), **options).detach()
            for y, c in (on_cpu(dtype, x, b), on_cpu(torch.float64, x, b))
        )
        assert_judged(out, torchs, oracle)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_epilogue_activations(dtype, activation):
    x = 8 * normal(2, 8, 5, 8, dtype=dtype)
    x[0, :3, 0, 0] = torch.tensor([NAN, INF, -INF])
    out = x.clone()
    LIBRARY.conv2d_epilogue(out, None, **act(activation))
    assert_judged(out, applied(x.cpu(), **act(activation)), applied(x.cpu().double(), **act(activation)))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", ["", "relu", "tanh"])
@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_a_library_convolution_gets_its_bias_in_the_epilogue(dtype, activation, layout, monkeypatch):
    """Where there is no direct kernel, on a GPU. On a CPU too, for once: in half precision a second rounding,
    which torch on a CPU does not have, makes gradients at a kink another matter than parity's."""
    monkeypatch.setattr(composed, "_bias_is_free", lambda x: False)
    x, weight, bias = normal(2, 16, 9, 9), normal(8, 16, 3, 3, seed=1) / 12, normal(8, seed=2)
    x, weight, bias = (t.to(dtype) for t in (LAYOUTS[layout](x), LAYOUTS[layout](weight), bias))
    seen = []

    class Spy:
        def __getattr__(self, name):
            return getattr(LIBRARY, name)

        def conv2d_epilogue(self, out, bias, **options):
            seen.append(bias)
            LIBRARY.conv2d_epilogue(out, bias, **options)

    out = unwritten((2, 8, 9, 9), x, LAYOUTS[layout])
    composed.forward(Spy(), x, weight, bias, out, **window(padding=1), **act(activation), allow_tf32=False)
    assert len(seen) == 1 and seen[0] is bias
    torchs, oracle = (
        applied(F.conv2d(*tensors, padding=1), **act(activation))
        for tensors in (on_cpu(dtype, x, weight, bias), on_cpu(torch.float64, x, weight, bias))
    )
    assert_judged(out, torchs, oracle)


@pytest.mark.parametrize("layouts", [(name, name) for name in LAYOUTS] + [
    ("sliced", "nchw"), ("sliced", "channels_last"), ("expanded", "nchw"), ("expanded", "channels_last"),
    ("nchw", "channels_last"),
])  # fmt: skip
@pytest.mark.parametrize("shape", SHAPES)
def test_epilogue_backward(shape, layouts):
    place_grad, place = ({**LAYOUTS, "sliced": sliced, "expanded": expanded}[name] for name in layouts)
    grad = place_grad(normal(*SHAPES[shape]))
    for name in ("relu", "tanh"):
        out = place(applied(normal(*SHAPES[shape], seed=1), **act(name)))
        grad_pre, grad_bias = unwritten(out.shape, out, place), normal(out.shape[1])
        LIBRARY.conv2d_epilogue_backward(grad, out, grad_pre, grad_bias, **act(name))
        wanted = [
            grad.cpu().to(dtype) * ACTIVATIONS[name].derivative(out.cpu().to(dtype), 0.0)
            for dtype in (FP32, torch.float64)
        ]
        assert_judged(grad_pre, *wanted)
        assert_judged(grad_bias, *(g.sum((0, 2, 3)) for g in wanted))
        only = torch.full_like(grad_bias, NAN)
        LIBRARY.conv2d_epilogue_backward(grad, out, None, only, **act(name))
        assert torch.equal(only, grad_bias)
        only = unwritten(out.shape, out, place)
        LIBRARY.conv2d_epilogue_backward(grad, out, only, None, **act(name))
        assert torch.equal(only, grad_pre)


@pytest.mark.parametrize("dtype", [FP32, FP16, BF16])
@pytest.mark.parametrize("layout", [nchw, channels_last])
def test_epilogue_backward_without_activation(layout, dtype):
    grad = layout(normal(3, 16, 9, 8, dtype=dtype))
    grad_bias = torch.full((16,), NAN, dtype=dtype, device=DEVICE)
    LIBRARY.conv2d_epilogue_backward(grad, None, None, grad_bias, **act())
    assert_judged(grad_bias, grad.cpu().sum((0, 2, 3)), grad.cpu().double().sum((0, 2, 3)))


# ----------------------------------------------------------------------------------- convolutions, directly


def gradients(dtype, x, weight, grad_out, options):
    inputs = on_cpu(dtype, x, weight)
    return torch.autograd.grad(F.conv2d(*inputs, **options), inputs, grad_out.cpu().to(dtype))


def check(
    x, weight, options, epilogue=None, layout=nchw, place_x=None, place_weight=nchw, backward=(True, True)
):
    """Forward and those of the gradients (of x, of the weight) against torch."""
    epilogue = epilogue or act("relu")
    bias = normal(weight.shape[0], dtype=x.dtype, seed=2)
    x, weight = (place_x or layout)(x), place_weight(weight)
    out = unwritten(out_shape(x, weight, options), x, layout)
    assert LIBRARY.conv2d_forward_covers(x, weight, bias, out, **options, **epilogue)
    LIBRARY.conv2d_forward(x, weight, bias, out, **options, **epilogue)
    torchs, oracle = (
        applied(F.conv2d(*on_cpu(dtype, x, weight, bias), **options), **epilogue).detach()
        for dtype in (x.dtype, torch.float64)
    )
    assert_judged(out, torchs, oracle)

    without = unwritten(out.shape, x, layout)
    LIBRARY.conv2d_forward(x, weight, None, without, **options, **act())
    LIBRARY.conv2d_forward(x, weight, torch.zeros_like(bias), out, **options, **act())
    assert same(without, out)

    grad_out = (place_x or layout)(normal(*out.shape, dtype=x.dtype, seed=3))
    expected = (
        gradients(x.dtype, x, weight, grad_out, options),
        gradients(torch.float64, x, weight, grad_out, options),
    )
    dense = channels_last if weight.stride(1) < weight.stride(3) else nchw
    for i, (like, place) in enumerate(((x, layout), (weight, dense))):
        found = [None, None]
        found[i] = unwritten(like.shape, x, place)
        assert LIBRARY.conv2d_backward_covers(grad_out, x, weight, *found, **options) == backward[i]
        if backward[i]:
            LIBRARY.conv2d_backward(grad_out, x, weight, *found, **options)
            assert_judged(found[i], expected[0][i], expected[1][i])
            again = [None, None]
            again[i] = unwritten(like.shape, x, place)
            LIBRARY.conv2d_backward(grad_out, x, weight, *again, **options)
            assert same(again[i], found[i])


DEPTHWISE = {
    "one tile": ((2, 8, 9, 8), 3, window(padding=1)),
    "odd image, odd channels": ((3, 7, 11, 9), 3, window(padding=1)),
    "no padding": ((2, 4, 6, 7), 3, window()),
    "padding past the window": ((1, 4, 4, 3), 3, window(padding=4)),
    "padding past the window, stride 2": ((1, 4, 4, 3), 3, window(2, 4)),
    "stride 2": ((2, 8, 12, 10), 3, window(2, 1)),
    "stride 2, odd": ((2, 5, 11, 13), 3, window(2, (0, 2))),
    "5x5": ((2, 8, 9, 12), 5, window(padding=2)),
    "5x5, stride 2": ((2, 4, 13, 9), 5, window(2, (2, 1))),
    "7x7": ((2, 4, 10, 9), 7, window(padding=3)),
    "7x7, stride 2": ((1, 8, 12, 15), 7, window(2, 3)),
    "one pixel": ((3, 4, 3, 3), 3, window()),
    "many columns": ((1, 4, 5, 150), 3, window(padding=1)),
    "many rows": ((1, 4, 90, 6), 3, window(padding=1)),
    "many rows, stride 2": ((1, 4, 90, 5), 5, window(2, 2)),
    "many channels": ((2, 140, 5, 4), 3, window(padding=1)),
    "many images": ((70, 4, 4, 5), 3, window(padding=1)),
}


@pytest.mark.parametrize("layout", [nchw, channels_last])
@pytest.mark.parametrize("name", DEPTHWISE)
def test_depthwise(name, layout):
    shape, size, options = DEPTHWISE[name]
    options = options | {"groups": shape[1]}
    check(normal(*shape), normal(shape[1], 1, size, size, seed=1), options, layout=layout)


@pytest.mark.parametrize("dtype", [FP16, BF16])
@pytest.mark.parametrize("layout", [nchw, channels_last])
@pytest.mark.parametrize("name", ["one tile", "stride 2", "stride 2, odd", "7x7"])
def test_depthwise_half_precision(name, layout, dtype):
    shape, size, options = DEPTHWISE[name]
    options = options | {"groups": shape[1]}
    weight = normal(shape[1], 1, size, size, dtype=dtype, seed=1) / 4
    check(normal(*shape, dtype=dtype), weight, options, layout=layout)


@pytest.mark.parametrize("place", [misaligned(nchw), misaligned(channels_last), sliced, expanded])
@pytest.mark.parametrize("layout", [nchw, channels_last])
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_any_strides(stride, layout, place):
    options = window(stride, 1, groups=8)
    check(
        normal(2, 8, 9, 8),
        normal(8, 1, 3, 3, seed=1),
        options,
        layout=layout,
        place_x=place,
        place_weight=nchw,
    )


DIRECT = {
    "gray 3x3": ((2, 1, 9, 10), (8, 1, 3, 3), window(padding=1)),
    "lenet": ((2, 1, 28, 28), (6, 1, 5, 5), window()),
    "stn": ((2, 1, 42, 42), (16, 1, 5, 5), window(padding=2)),
    "image, 20 outputs": ((2, 3, 13, 11), (20, 3, 3, 3), window(padding=1)),
    "image, 64 outputs": ((1, 3, 40, 33), (64, 3, 3, 3), window(padding=1)),
    "image, 200 outputs": ((1, 3, 6, 7), (200, 3, 3, 3), window(padding=1)),
    "resnet stem": ((1, 3, 40, 36), (24, 3, 7, 7), window(2, 3)),
    "alexnet": ((1, 3, 63, 67), (40, 3, 11, 11), window(4, 2)),
    "4 channels": ((2, 4, 9, 9), (12, 4, 3, 3), window(2, 1)),
    "8 channels": ((1, 8, 10, 17), (16, 8, 3, 3), window(padding=1)),
    "stride 3 and dilation 2": ((1, 3, 13, 12), (5, 3, 3, 2), window((3, 2), (3, 2), (2, 3))),
    "padding past the image": ((1, 2, 3, 2), (3, 2, 3, 3), window(2, 4)),
    "wide": ((1, 2, 3, 150), (4, 2, 3, 5), window(padding=(1, 2))),
    "1x1": ((2, 3, 6, 5), (7, 3, 1, 1), window()),
    "groups": ((2, 6, 7, 6), (10, 3, 3, 3), window(padding=1, groups=2)),
    "two outputs each": ((2, 4, 6, 5), (8, 1, 3, 3), window(padding=1, groups=4)),
    "many images": ((40, 1, 5, 6), (3, 1, 3, 3), window()),
}


@pytest.mark.parametrize("layout", [nchw, channels_last])
@pytest.mark.parametrize("name", DIRECT)
def test_few_channels(name, layout):
    shape, weight, options = DIRECT[name]
    check(
        normal(*shape),
        normal(*weight, seed=1),
        options,
        layout=layout,
        place_weight=layout,
        backward=(False, True),
    )


@pytest.mark.parametrize("dtype", [FP16, BF16])
@pytest.mark.parametrize("layout", [nchw, channels_last])
@pytest.mark.parametrize("name", [
    "lenet", "stn", "image, 20 outputs", "image, 64 outputs", "image, 200 outputs", "resnet stem", "alexnet",
    "8 channels", "groups", "wide",
])  # fmt: skip
def test_few_channels_half_precision(name, layout, dtype):
    """Matrix products of the warp for 16 output channels and more."""
    shape, weight, options = DIRECT[name]
    x, w = normal(*shape, dtype=dtype), normal(*weight, dtype=dtype, seed=1) / 4
    if w[0].numel() > 32 and DEVICE == "cuda" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("not covered without tensor cores of this kind")
    check(x, w, options, layout=layout, place_weight=layout, backward=(False, w[0].numel() <= 80))


@pytest.mark.parametrize("place", [misaligned(nchw), sliced, expanded])
@pytest.mark.parametrize("layout", [nchw, channels_last, misaligned(channels_last)])
def test_few_channels_half_precision_any_strides(layout, place):
    shape, weight, options = DIRECT["image, 64 outputs"]
    x, w = normal(*shape, dtype=FP16), normal(*weight, dtype=FP16, seed=1) / 4
    check(x, w, options, act("tanh"), layout, place, channels_last if layout is nchw else nchw, (False, True))


def test_nan_does_not_reach_the_padding_of_a_matrix_product():
    x, weight = normal(1, 3, 20, 18, dtype=FP16), normal(16, 3, 3, 3, dtype=FP16, seed=1)
    x[0, 2, 5, 5] = x[0, 0, 0, 0] = NAN
    for layout in (nchw, channels_last):
        check(x, weight, window(padding=1), layout=layout, backward=(False, True))


@pytest.mark.parametrize("place", [misaligned(nchw), misaligned(channels_last), sliced, expanded])
@pytest.mark.parametrize("layout", [nchw, channels_last, misaligned(channels_last)])
def test_few_channels_any_strides(layout, place):
    for name in ("image, 64 outputs", "4 channels"):
        shape, weight, options = DIRECT[name]
        check(
            normal(*shape), normal(*weight, seed=1), options,
            layout=layout, place_x=place, place_weight=nchw if layout is channels_last else channels_last,
            backward=(False, True),
        )  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [((2, 4, 5, 6), (4, 1, 3, 3), 4), ((2, 3, 5, 6), (9, 3, 3, 3), 1)])
def test_activations(shape, activation):
    x, weight, groups = shape
    backward = (groups == 4, True)
    check(
        normal(*x),
        normal(*weight, seed=1),
        window(padding=1, groups=groups),
        act(activation),
        backward=backward,
    )


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("groups", [1, 4])
def test_nan_and_infinity_stay_in_their_windows(groups, value):
    x, weight = normal(1, 4, 9, 8), normal(4, 4 // groups, 3, 3, seed=1)
    x[0, 1, 3, 3] = value
    for layout in (nchw, channels_last):
        check(x, weight, window(groups=groups), layout=layout, backward=(groups == 4, True))


def test_a_transposed_weight_gets_its_gradient_elsewhere():
    """Partial sums are added flat: a gradient that is neither contiguous nor channels_last is not covered."""
    for shape, groups in (((4, 1, 3, 3), 4), ((5, 4, 3, 3), 1)):
        x, weight, options = normal(1, 4, 6, 5), normal(*shape), window(groups=groups)
        transposed = weight.transpose(2, 3).contiguous().transpose(2, 3)
        grad_out = normal(*out_shape(x, weight, options))
        for like, covered in ((weight, True), (transposed, False)):
            grad_weight = torch.empty_like(like)
            assert (
                LIBRARY.conv2d_backward_covers(grad_out, x, weight, None, grad_weight, **options) == covered
            )


@pytest.mark.parametrize("x, weight, options", [
    ((2, 16, 8, 8), (8, 16, 3, 3), window()),             # many channels
    ((1, 8, 20, 20), (8, 8, 7, 7), window()),             # many taps
    ((2, 4, 9, 9), (4, 1, 3, 3), window(3, groups=4)),    # depthwise of stride 3: few channels
    ((2, 4, 9, 9), (4, 1, 9, 9), window(groups=4)),       # depthwise 9x9: few channels
])  # fmt: skip
def test_what_is_not_depthwise_may_be_of_few_channels(x, weight, options):
    x, weight = normal(*x), normal(*weight, seed=1)
    out = torch.empty(out_shape(x, weight, options), device=DEVICE)
    covered = LIBRARY.conv2d_forward_covers(x, weight, None, out, **options, **act())
    assert covered == (weight.shape[1] <= 8 and weight[0].numel() <= 363)
    if covered:
        check(x, weight, options, backward=(False, True))
    else:
        with pytest.raises(RuntimeError, match="no direct kernel"):
            LIBRARY.conv2d_max_pool2d(
                x, weight, None, out, None, **options, **act(), pool_kernel_size=(4, 4), pool_stride=(4, 4)
            )


# -------------------------------------------------------------------------------------------- with max-pool

POOLED = {
    "lenet conv1": ((2, 1, 28, 28), (10, 1, 5, 5), window(), 2, 2),
    "lenet conv2": ((2, 10, 12, 12), (20, 10, 5, 5), window(), 2, 2),
    "stn conv2": ((1, 16, 21, 21), (32, 16, 5, 5), window(padding=2), 2, 2),
    "64 outputs": ((1, 3, 18, 20), (64, 3, 3, 3), window(padding=1), 2, 2),
    "overlapping 2x2": ((1, 3, 9, 8), (5, 3, 3, 3), window(padding=1), 2, 1),
    "3x3": ((2, 3, 12, 13), (9, 3, 3, 3), window(padding=1), 3, 3),
    "overlapping 3x3": ((1, 3, 17, 40), (20, 3, 5, 5), window(2, 2), 3, 2),
    "groups": ((2, 6, 8, 9), (10, 3, 3, 3), window(padding=1, groups=2), 2, 2),
    "gaps between windows": ((1, 2, 9, 10), (3, 2, 3, 3), window(), 2, 3),
}


def pooled(x, weight, options, side, step, epilogue, layout, bias=None, place_x=None, place_weight=nchw):
    x, weight = (place_x or layout)(x), place_weight(weight)
    size = [(n - side) // step + 1 for n in out_shape(x, weight, options)[2:]]
    out = unwritten((x.shape[0], weight.shape[0], *size), x, layout)
    offsets = layout(torch.full(out.shape, 255, dtype=torch.uint8, device=DEVICE))
    pool = {"pool_kernel_size": (side, side), "pool_stride": (step, step)}
    assert LIBRARY.conv2d_max_pool2d_covers(x, weight, bias, out, offsets, **options, **epilogue, **pool)
    LIBRARY.conv2d_max_pool2d(x, weight, bias, out, offsets, **options, **epilogue, **pool)
    again = unwritten(out.shape, x, layout)
    LIBRARY.conv2d_max_pool2d(x, weight, bias, again, None, **options, **epilogue, **pool)
    assert same(again, out)
    return out, offsets


@pytest.mark.parametrize("layout", [nchw, channels_last])
@pytest.mark.parametrize("dtype", [FP32, FP16])
@pytest.mark.parametrize("name", POOLED)
def test_max_pool(name, dtype, layout):
    shape, weight, options, side, step = POOLED[name]
    x, w, bias = (
        normal(*shape, dtype=dtype),
        normal(*weight, dtype=dtype, seed=1) / 4,
        normal(weight[0], dtype=dtype),
    )
    for epilogue in (act("relu"), act("sigmoid")):
        out, offsets = pooled(x, w, options, side, step, epilogue, layout, bias, place_weight=layout)
        torchs, oracle = (
            F.max_pool2d(
                applied(F.conv2d(*on_cpu(t, x, w, bias), **options), **epilogue), side, step
            ).detach()
            for t in (dtype, torch.float64)
        )
        assert_judged(out, torchs, oracle)
        sums = F.conv2d(*(t.detach() for t in on_cpu(torch.float64, x, w, bias)), **options)
        _, index = F.max_pool2d(sums, side, step, return_indices=True)
        y, x_at = index // sums.shape[3], index % sums.shape[3]
        top, left = (torch.arange(n) * step for n in out.shape[2:])
        expected = (y - top.view(-1, 1)) * side + (x_at - left)
        assert (
            offsets.cpu() == expected
        ).float().mean() > 0.99  # but for sums that float32 cannot tell apart
        assert int(offsets.max()) < side * side


def test_max_pool_takes_the_last_nan_and_the_first_of_equals():
    x, weight = torch.zeros(1, 1, 4, 6, device=DEVICE), torch.ones(1, 1, 1, 1, device=DEVICE)
    x[0, 0, 0, 1] = x[0, 0, 1, 0] = NAN  # window 0: offsets 1 and 2
    x[0, 0, 1, 3] = INF
    x[0, 0, 2:, :2] = -INF
    out, offsets = pooled(x, weight, window(), 2, 2, act("relu"), nchw)
    assert offsets.flatten().tolist() == [2, 3, 0, 0, 0, 0]
    assert out.isnan().flatten().tolist() == [True, *[False] * 5]
    assert out.flatten().tolist()[1:] == [INF, 0, 0, 0, 0]


@pytest.mark.parametrize("place", [misaligned(nchw), sliced, expanded])
def test_max_pool_any_strides(place):
    shape, weight, options, side, step = POOLED["64 outputs"]
    x, w = normal(*shape), normal(*weight, seed=1)
    for layout in (nchw, misaligned(channels_last)):
        out, _ = pooled(x, w, options, side, step, act(), layout, place_x=place, place_weight=channels_last)
        torchs, oracle = (
            F.max_pool2d(F.conv2d(*on_cpu(t, place(x), w), **options), side, step).detach()
            for t in (FP32, torch.float64)
        )
        assert_judged(out, torchs, oracle)


def test_max_pool_leaves_large_work_to_a_library():
    x, weight = torch.empty(512, 32, 66, 66, device="meta"), torch.empty(64, 32, 3, 3, device="meta")
    x, weight = (torch.empty_strided(t.shape, [0] * 4, device=DEVICE) for t in (x, weight))
    out = torch.empty_strided((512, 64, 32, 32), [0] * 4, device=DEVICE)
    pool = {"pool_kernel_size": (2, 2), "pool_stride": (2, 2)}
    assert not LIBRARY.conv2d_max_pool2d_covers(x, weight, None, out, None, **window(), **act(), **pool)
