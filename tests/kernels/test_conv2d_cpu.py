"""The conv2d kernels of csrc/cpu, called directly in each capability of this CPU, and what the composition in
fastdl/native/conv2d.py makes of them and torch's convolution: each path and its edges, held against torch."""

import functools

import pytest
import torch
import torch.nn.functional as F
from support import NATIVE_BACKENDS

from fastdl import native
from fastdl.activations import ACTIVATIONS
from fastdl.native import conv2d as composed
from fastdl.parity.tolerance import judge

if "cpu" not in NATIVE_BACKENDS:
    pytest.skip("needs the C++ kernels", allow_module_level=True)

CAPABILITIES = native.CAPABILITIES[
    : native.CAPABILITIES.index(torch.backends.cpu.get_cpu_capability().lower()) + 1
]
FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
NAN, INF = float("nan"), float("inf")


@functools.cache
def library_of(capability):
    return native._bindings()[0].Library(str(native.HERE / f"libfastdl_cpu_{capability}.so"))


@pytest.fixture(params=[c for c in CAPABILITIES if (native.HERE / f"libfastdl_cpu_{c}.so").exists()])
def library(request):
    return library_of(request.param)


def of_avx512():
    """For what it alone covers."""
    if "avx512" not in CAPABILITIES:
        pytest.skip("needs AVX-512")
    return library_of("avx512")


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def normal(*shape, dtype=FP32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def nchw(t):
    return t.contiguous()


def channels_last(t):
    return t.contiguous(memory_format=torch.channels_last)


def misaligned(t):
    return torch.empty(t.numel() + 1, dtype=t.dtype)[1:].view(t.shape).copy_(t)


def sliced(t):
    n, c, h, w = t.shape
    larger = t.new_full((n, 2 * c, h + 2, w + 1), NAN)
    larger[:, ::2, 1:-1, 1:] = t
    return larger[:, ::2, 1:-1, 1:]


def expanded(t):
    return t[:1, :1, :1, :1].expand(t.shape)


def unwritten(shape, dtype=FP32, layout=nchw):
    return layout(torch.full(shape, NAN, dtype=dtype))


def window(stride=1, padding=0, dilation=1, groups=1):
    pair = lambda value: (value, value) if isinstance(value, int) else value  # noqa: E731
    return {"stride": pair(stride), "padding": pair(padding), "dilation": pair(dilation), "groups": groups}


def act(name="", param=None):
    default = ACTIVATIONS[name].param if name else 0.0
    return {"activation": name, "activation_param": default if param is None else param}


def applied(x, activation="", activation_param=0.0):
    return ACTIVATIONS[activation].function(x, activation_param) if activation else x


def held(got, function, *inputs):
    """``got`` against function(*inputs) in its own dtype and in float64."""
    wide = [None if t is None else t.double() for t in inputs]
    failure = judge(got, function(*inputs), function(*wide)).failure
    assert not failure, failure


# ------------------------------------------------------------------------------------------- direct kernels

# x, weight, window: sizes end within a vector, on its edge, and one beyond
DIRECT = {
    "lenet": ((3, 1, 28, 28), (6, 1, 5, 5), window()),
    "stn": ((2, 1, 28, 28), (8, 1, 7, 7), window()),
    "vgg": ((2, 3, 32, 32), (19, 3, 3, 3), window(padding=1)),
    "wide": ((1, 3, 9, 230), (9, 3, 3, 3), window(padding=1)),
    "stem": ((1, 3, 47, 53), (17, 3, 7, 7), window(2, 3)),
    "stride 4": ((1, 3, 100, 99), (5, 3, 4, 4), window(4)),
    "stride (1, 3), dilation (3, 2)": ((1, 2, 19, 81), (7, 2, 3, 2), window((1, 3), (2, 1), (3, 2))),
    "1x1": ((2, 8, 5, 33), (3, 8, 1, 1), window()),
    "padding past the image": ((1, 2, 3, 20), (3, 2, 3, 3), window(1, 4)),
    "one output": ((1, 3, 40, 49), (1, 3, 3, 3), window(padding=1)),
    "two outputs": ((1, 3, 10, 131), (2, 3, 3, 3), window(padding=1)),
    "groups": ((2, 8, 12, 30), (10, 4, 3, 3), window(padding=1, groups=2)),
    "depthwise 3x3": ((2, 5, 14, 14), (5, 1, 3, 3), window(padding=1, groups=5)),
    "depthwise 3x3, stride 2": ((2, 5, 57, 57), (5, 1, 3, 3), window(2, 1, groups=5)),
    "depthwise 5x5": ((1, 3, 17, 33), (3, 1, 5, 5), window(padding=2, groups=3)),
    "depthwise 5x5, stride 2": ((1, 3, 61, 61), (3, 1, 5, 5), window(2, 2, groups=3)),
    "depthwise 7x7": ((1, 3, 15, 16), (3, 1, 7, 7), window(padding=3, groups=3)),
    "depthwise 7x7, stride 2": ((1, 3, 60, 66), (3, 1, 7, 7), window(2, 3, groups=3)),
    "depthwise 3x2, dilation 2": ((1, 4, 20, 35), (4, 1, 3, 2), window(1, 1, 2, groups=4)),
    "depthwise, two outputs each": ((1, 3, 12, 41), (6, 1, 3, 3), window(padding=1, groups=3)),
}
DEPTHWISE_CHANNELS = {
    "3x3": ((2, 19, 9, 10), (19, 1, 3, 3), window(padding=1, groups=19)),
    "3x3, stride 2": ((2, 33, 11, 13), (33, 1, 3, 3), window(2, 1, groups=33)),
    "3x3, padding past the image": ((1, 16, 2, 3), (16, 1, 3, 3), window(1, 3, groups=16)),
    "3x3, no padding, one column": ((1, 4, 5, 3), (4, 1, 3, 3), window(groups=4)),
}


# pixels and outputs that end within a tile and on its edge, one and several terms of the sums
POINTWISE = {
    "one vector": ((2, 9, 4, 4), 7, 1),
    "7x7": ((3, 64, 7, 7), 65, 1),
    "a tile": ((1, 65, 8, 8), 24, 1),
    "several tiles": ((1, 130, 9, 21), 49, 1),
    "stride 2": ((2, 70, 15, 17), 50, 2),
    "stride (1, 3)": ((2, 48, 10, 31), 64, (1, 3)),
    "one output": ((2, 12, 8, 9), 1, 1),
    "few images": ((1, 200, 8, 8), 80, 1),
    "many images": ((100, 50, 8, 8), 51, 1),
    "many pixels": ((1, 30, 23, 30), 33, 1),
}
POINTWISE_CHANNELS = {name: case for name, case in POINTWISE.items() if case[0][1] >= 48 and case[1] >= 48}


def out_shape(x, weight, options):
    meta = (t.to("meta") for t in (x, weight))
    return F.conv2d(*meta, None, **options).shape


def direct_forward(library, x, weight, bias, options, out_layout=nchw, **activation):
    activation = activation or act()
    out = unwritten(out_shape(x, weight, options), layout=out_layout)
    assert library.conv2d_forward_covers(x, weight, bias, out, **options, **activation)
    library.conv2d_forward(x, weight, bias, out, **options, **activation)
    return out


@pytest.mark.parametrize("layout", [nchw, misaligned, sliced, channels_last])
@pytest.mark.parametrize("name", DIRECT)
def test_forward(library, name, layout):
    x_shape, weight_shape, options = DIRECT[name]
    x, weight, bias = normal(*x_shape), normal(*weight_shape, seed=1), normal(weight_shape[0], seed=2)
    for values in (bias, None):
        got = direct_forward(library, layout(x), layout(weight), values, options, **act("relu"))
        held(got, lambda *t: F.relu(F.conv2d(*t, **options)), x, weight, values)


def one_by_one(case):
    x_shape, outputs, stride = case
    return (
        normal(*x_shape),
        normal(outputs, x_shape[1], 1, 1, seed=1),
        normal(outputs, seed=2),
        window(stride),
    )


@pytest.mark.parametrize("layout", [nchw, misaligned, sliced, channels_last])
@pytest.mark.parametrize("name", POINTWISE)
def test_pointwise(library, name, layout):
    x, weight, bias, options = one_by_one(POINTWISE[name])
    turned = weight.transpose(0, 1).contiguous().transpose(0, 1)
    for values, w in ((bias, weight), (None, turned)):
        got = direct_forward(library, layout(x), w, values, options, **act("relu"))
        held(got, lambda *t: F.relu(F.conv2d(*t, **options)), x, weight, values)
    x[0, 0, 1, -2], x[-1, -1, 0, 0] = NAN, INF
    got = direct_forward(library, layout(x), weight, bias, options, **act("tanh"))
    held(got, lambda *t: torch.tanh(F.conv2d(*t, **options)), x, weight, bias)


@pytest.mark.parametrize("layout", [channels_last, lambda t: channels_last(misaligned(t)), "rows apart"])
@pytest.mark.parametrize("name", POINTWISE_CHANNELS)
def test_pointwise_of_channels(name, layout):
    library = of_avx512()
    x, weight, bias, options = one_by_one(POINTWISE[name])
    turned = weight.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "rows apart":
        layout = lambda t: channels_last(F.pad(t, (1, 2, 1, 0), value=NAN))[:, :, 1:, 1:-2]  # noqa: E731
    for values, w in ((bias, weight), (None, turned)):
        got = direct_forward(library, layout(x), w, values, options, channels_last, **act("relu"))
        held(got, lambda *t: F.relu(F.conv2d(*t, **options)), x, weight, values)
    x[0, 0, 1, -2], x[-1, -1, 0, 0] = NAN, INF
    got = direct_forward(library, layout(x), weight, bias, options, channels_last, **act("tanh"))
    held(got, lambda *t: torch.tanh(F.conv2d(*t, **options)), x, weight, bias)


@pytest.mark.parametrize("name", ["one vector", "7x7", "a tile", "several tiles", "many images"])
def test_pointwise_input_gradient(library, name):
    x, weight, _, options = one_by_one(POINTWISE[name])
    grad_out = normal(*out_shape(x, weight, options), seed=3)
    function = lambda x, w, g: torch.nn.grad.conv2d_input(x.shape, w, g, **options)  # noqa: E731
    for layout in (nchw, sliced):
        grad_x = unwritten(x.shape)
        if not library.conv2d_backward_covers(layout(grad_out), x, weight, grad_x, None, **options):
            assert weight.shape[0] <= 8  # planes of few channels have rules of their own
            continue
        library.conv2d_backward(layout(grad_out), x, weight, grad_x, None, **options)
        held(grad_x, function, x, weight, grad_out)


@pytest.mark.parametrize("layout", [nchw, misaligned, sliced, channels_last])
@pytest.mark.parametrize("name", POINTWISE)
def test_pointwise_weight_gradient(library, name, layout):
    x, weight, _, options = one_by_one(POINTWISE[name])
    grad_out = normal(*out_shape(x, weight, options), seed=3)
    function = lambda x, w, g: torch.nn.grad.conv2d_weight(x, w.shape, g, **options)  # noqa: E731
    for turn in (lambda t: t, lambda t: t.transpose(0, 1)):
        grad_weight = unwritten(turn(weight).shape)
        assert library.conv2d_backward_covers(grad_out, layout(x), weight, None, turn(grad_weight), **options)
        library.conv2d_backward(grad_out, layout(x), weight, None, turn(grad_weight), **options)
        held(turn(grad_weight), function, x, weight, grad_out)
    grad_out[0, 0, 1, 0], grad_out[-1, -1, 0, 0], x[-1, 2, -1, -1] = NAN, INF, NAN
    library.conv2d_backward(grad_out, layout(x), weight, None, turn(grad_weight), **options)
    held(turn(grad_weight), function, x, weight, grad_out)


CHANNELS = {
    **{name: DIRECT[name] for name in ("lenet", "vgg", "stem", "stride 4", "two outputs")},
    "stride (1, 3), dilation (3, 2)": DIRECT["stride (1, 3), dilation (3, 2)"],
    "padding past the image": DIRECT["padding past the image"],
    "3 -> 64": ((2, 3, 9, 13), (64, 3, 3, 3), window(padding=1)),
    "3 -> 100": ((1, 3, 5, 7), (100, 3, 3, 3), window(padding=1)),
    "4 -> 40, narrow": ((2, 4, 6, 5), (40, 4, 5, 5), window(1, 2)),
    "1x1": ((2, 2, 5, 33), (17, 2, 1, 1), window()),
    "one column": ((2, 3, 7, 3), (48, 3, 3, 3), window()),
}


@pytest.mark.parametrize("layout", [nchw, misaligned, sliced, channels_last])
@pytest.mark.parametrize("name", CHANNELS)
def test_forward_of_channels(library, name, layout):
    x_shape, weight_shape, options = CHANNELS[name]
    x, weight, bias = normal(*x_shape), normal(*weight_shape, seed=1), normal(weight_shape[0], seed=2)
    for values in (bias, None):
        got = direct_forward(
            library, layout(x), layout(weight), values, options, channels_last, **act("relu")
        )
        held(got, lambda *t: F.relu(F.conv2d(*t, **options)), x, weight, values)
    for value in (NAN, INF):
        x[0, 0, x_shape[2] // 2, -1] = value
        got = direct_forward(library, layout(x), weight, bias, options, channels_last, **act("tanh"))
        held(got, lambda *t: F.conv2d(*t, **options).tanh(), x, weight, bias)


@pytest.mark.parametrize("name", DEPTHWISE_CHANNELS)
def test_depthwise_of_channels(library, name):
    x_shape, weight_shape, options = DEPTHWISE_CHANNELS[name]
    x, weight, bias = normal(*x_shape), normal(*weight_shape, seed=1), normal(weight_shape[0], seed=2)
    for layout in (nchw, channels_last, sliced):
        got = direct_forward(
            library, channels_last(x), layout(weight), bias, options, channels_last, **act("relu")
        )
        held(got, lambda *t: F.relu(F.conv2d(*t, **options)), x, weight, bias)


@pytest.mark.parametrize("activation", ["", *ACTIVATIONS])
@pytest.mark.parametrize("name", ["lenet", "vgg", "depthwise 3x3"])
def test_activations(library, name, activation):
    x_shape, weight_shape, options = DIRECT[name]
    x, weight, bias = normal(*x_shape), normal(*weight_shape, seed=1) / 3, normal(weight_shape[0], seed=2)
    got = direct_forward(library, x, weight, bias, options, **act(activation))
    held(got, lambda *t: applied(F.conv2d(*t, **options), **act(activation)), x, weight, bias)
    if name == "depthwise 3x3":
        got = direct_forward(
            library, channels_last(x), weight, bias, options, channels_last, **act(activation)
        )
        held(got, lambda *t: applied(F.conv2d(*t, **options), **act(activation)), x, weight, bias)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("name", ["lenet", "vgg", "groups", "depthwise 3x3", "depthwise, two outputs each"])
def test_nan_and_infinity_stay_in_their_windows(library, name, value):
    x_shape, weight_shape, options = DIRECT[name]
    x, weight, bias = normal(*x_shape), normal(*weight_shape, seed=1), normal(weight_shape[0], seed=2)
    x[0, 0, 3, x_shape[3] - 1] = value  # next to the columns that lie between rows
    got = direct_forward(library, x, weight, bias, options, **act("relu"))
    held(got, lambda *t: F.relu(F.conv2d(*t, **options)), x, weight, bias)
    grad_out = normal(*got.shape, seed=3)
    grad_weight = unwritten(weight.shape)
    library.conv2d_backward(grad_out, x, weight, None, grad_weight, **options)
    held(
        grad_weight,
        lambda x, w, g: torch.nn.grad.conv2d_weight(x, w.shape, g, **options),
        x,
        weight,
        grad_out,
    )


@pytest.mark.parametrize("layout", [nchw, misaligned, channels_last])
@pytest.mark.parametrize("name", [n for n in DIRECT if n != "stride 4" and "(1, 3)" not in n])
def test_weight_gradient(library, name, layout):
    x_shape, weight_shape, options = DIRECT[name]
    x, weight = normal(*x_shape), normal(*weight_shape, seed=1)
    grad_out = normal(*out_shape(x, weight, options), seed=3)
    grad_weight = unwritten(weight_shape, layout=channels_last if layout is channels_last else nchw)
    for grad in (grad_out, misaligned(grad_out), F.pad(grad_out, (1, 2, 1, 1))[:, :, 1:-1, 1:-2]):
        grad_weight.fill_(NAN)
        assert library.conv2d_backward_covers(grad, layout(x), weight, None, grad_weight, **options)
        library.conv2d_backward(grad, layout(x), weight, None, grad_weight, **options)
        function = lambda x, w, g: torch.nn.grad.conv2d_weight(x, w.shape, g, **options)  # noqa: E731
        held(grad_weight, function, x, weight, grad_out)


WIDE = {
    "3x3": ((2, 19, 9, 22), (19, 1, 3, 3), window(padding=1, groups=19)),
    "3x3, stride 2": ((2, 33, 11, 43), (33, 1, 3, 3), window(2, 1, groups=33)),
    "3x3, two rows": ((1, 16, 2, 19), (16, 1, 3, 3), window(1, 2, groups=16)),
    "3x3, padding past the image": ((1, 16, 2, 15), (16, 1, 3, 3), window(1, 4, groups=16)),
    "3x3, stride 2, no padding": ((3, 5, 8, 42), (5, 1, 3, 3), window(2, groups=5)),
}


@pytest.mark.parametrize("name", WIDE)
def test_depthwise_weight_gradient_of_channels(library, name):
    x_shape, weight_shape, options = WIDE[name]
    x, weight = channels_last(normal(*x_shape)), normal(*weight_shape, seed=1)
    grad_out = channels_last(normal(*out_shape(x, weight, options), seed=3))
    larger = channels_last(torch.full((x_shape[0], x_shape[1], x_shape[2] + 2, x_shape[3] + 1), NAN))
    part = larger[:, :, 1:-1, 1:]
    function = lambda x, w, g: torch.nn.grad.conv2d_weight(x, w.shape, g, **options)  # noqa: E731
    part.copy_(x)
    for input in (x, part):
        grad_weight = unwritten(weight_shape)
        assert library.conv2d_backward_covers(grad_out, input, weight, None, grad_weight, **options)
        library.conv2d_backward(grad_out, input, weight, None, grad_weight, **options)
        held(grad_weight, function, x, weight, grad_out)
    # at a corner of the image: of torch's own convolutions some multiply it by the padding, some do not
    corner = torch.zeros_like(grad_out)
    corner[0, 0, 0, 0] = corner[-1, -1, -1, -1] = 1
    met = function(torch.ones_like(x), weight, corner) != 0
    grad_out[corner == 1] = NAN
    library.conv2d_backward(grad_out, part, weight, None, grad_weight, **options)
    assert torch.equal(grad_weight.isnan(), met)


@pytest.mark.parametrize("layout", [nchw, channels_last])
@pytest.mark.parametrize("name", ["depthwise 3x3", "depthwise 5x5", "depthwise 7x7"])
def test_depthwise_input_gradient(library, name, layout):
    x_shape, weight_shape, options = DIRECT[name]
    x, weight = normal(*x_shape), normal(*weight_shape, seed=1)
    grad_out = layout(normal(*out_shape(x, weight, options), seed=3))
    grad_x = unwritten(x_shape, layout=layout)
    covered = library.conv2d_backward_covers(grad_out, layout(x), weight, grad_x, None, **options)
    assert covered == (layout is nchw or name == "depthwise 3x3")
    if covered:
        library.conv2d_backward(grad_out, layout(x), weight, grad_x, None, **options)
        function = lambda x, w, g: torch.nn.grad.conv2d_input(x.shape, w, g, **options)  # noqa: E731
        held(grad_x, function, x, weight, grad_out)


# rows beyond a tile of them, fewer than one; columns within a vector and beyond
KERNELS = {
    "3x3": ((2, 5, 30, 33), (3, 3), {"padding": 1}),
    "3x2, columns apart": ((1, 9, 11, 40), (3, 2), {"padding": (0, 1), "dilation": (1, 3)}),
    "3x3, rows apart": ((2, 4, 21, 22), (3, 3), {"padding": 2, "dilation": (2, 1)}),
    "3x3 of two rows": ((3, 6, 2, 24), (3, 3), {"padding": 1}),
    "5x5": ((2, 16, 22, 27), (5, 5), {"padding": 2}),
    "5x5, full": ((2, 10, 28, 28), (5, 5), {}),
    "7x7": ((1, 8, 19, 23), (7, 7), {"padding": 3}),
    "4x4": ((1, 7, 16, 25), (4, 4), {"padding": 1}),
    "1x1": ((2, 20, 9, 31), (1, 1), {}),
}


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("name", KERNELS)
def test_input_gradient_of_few_channels(library, name, channels):
    (n, k, h, w), kernel, options = KERNELS[name]
    options = window(**options)
    x, weight = normal(n, channels, h, w), normal(k, channels, *kernel, seed=1)
    grad_out = normal(*out_shape(x, weight, options), seed=3)
    function = lambda x, w, g: torch.nn.grad.conv2d_input(x.shape, w, g, **options)  # noqa: E731
    for layout in (nchw, misaligned, sliced, channels_last):
        grad_x = unwritten(x.shape)
        assert library.conv2d_backward_covers(layout(grad_out), x, layout(weight), grad_x, None, **options)
        library.conv2d_backward(layout(grad_out), x, layout(weight), grad_x, None, **options)
        held(grad_x, function, x, weight, grad_out)
    grad_out[0, 0, 1, -1], grad_out[-1, -1, 0, 0] = NAN, INF
    grad_x.fill_(0)
    library.conv2d_backward(grad_out, x, weight, grad_x, None, **options)
    held(grad_x, function, x, weight, grad_out)


def test_input_gradient_of_groups_of_one_channel(library):
    options = window(padding=1, groups=3)
    x, weight, grad_out = normal(2, 3, 12, 41), normal(6, 1, 3, 3, seed=1), normal(2, 6, 12, 41, seed=2)
    grad_x = unwritten(x.shape)
    assert library.conv2d_backward_covers(grad_out, x, weight, grad_x, None, **options)
    library.conv2d_backward(grad_out, x, weight, grad_x, None, **options)
    held(grad_x, lambda w, g: torch.nn.grad.conv2d_input(x.shape, w, g, **options), weight, grad_out)


def test_what_input_gradient_is_not_covered(library):
    def covered(x, weight, options, layout=nchw):
        x, weight = layout(torch.zeros(x)), torch.zeros(weight)
        grad_out = layout(torch.zeros(out_shape(x, weight, options)))
        return library.conv2d_backward_covers(grad_out, x, weight, torch.empty_like(x), None, **options)

    assert covered((1, 3, 32, 32), (64, 3, 3, 3), window(padding=1))
    assert not covered((1, 3, 32, 32), (64, 3, 3, 3), window(padding=1), channels_last)
    assert not covered((1, 3, 32, 32), (64, 3, 3, 3), window(2, 1))
    assert not covered((1, 3, 32, 32), (64, 3, 3, 3), window(padding=3))  # past what a tap reaches
    assert not covered((1, 16, 32, 32), (64, 16, 3, 3), window(padding=1))
    assert not covered((1, 6, 32, 32), (64, 3, 3, 3), window(padding=1, groups=2))


def test_what_is_not_covered(library):
    """What oneDNN is better at, and what there is no kernel for."""

    def covered(x, weight, options, layout=nchw, dtype=FP32):
        x, weight = layout(torch.zeros(x, dtype=dtype)), torch.zeros(weight, dtype=dtype)
        out = layout(torch.zeros(out_shape(x, weight, options), dtype=dtype))
        return library.conv2d_forward_covers(x, weight, None, out, **options, **act())

    assert covered((1, 3, 32, 32), (64, 3, 3, 3), window(padding=1))
    assert covered((1, 3, 32, 32), (64, 3, 3, 3), window(padding=1), channels_last)
    assert not covered((1, 8, 32, 32), (64, 8, 3, 3), window(padding=1), channels_last)
    assert not covered((1, 3, 224, 224), (64, 3, 11, 11), window(4, 2), channels_last)
    assert not covered((1, 3, 32, 32), (64, 3, 3, 3), window(padding=1), dtype=BF16)
    assert not covered((1, 16, 32, 32), (64, 16, 3, 3), window(padding=1))
    assert not covered((1, 3, 224, 224), (64, 3, 11, 11), window(4, 2))
    assert not covered((1, 3, 300, 300), (64, 3, 3, 3), window(9))
    assert not covered((1, 6, 12, 12), (16, 6, 5, 5), window())
    assert not covered((1, 40, 7, 7), (40, 1, 3, 3), window(padding=1, groups=40))
    assert not covered((1, 40, 28, 28), (40, 1, 5, 5), window(padding=2, groups=40), channels_last)
    assert covered((1, 64, 8, 8), (64, 64, 1, 1), window())
    assert not covered((1, 64, 3, 3), (64, 64, 1, 1), window())
    assert not covered((1, 256, 4, 4), (256, 256, 1, 1), window())
    assert not covered((1, 64, 8, 8), (64, 64, 1, 1), window(padding=1))
    assert not covered((1, 64, 8, 8), (64, 32, 1, 1), window(groups=2))
    assert not covered((9, 64, 28, 28), (64, 64, 1, 1), window(), channels_last)  # without an activation


@pytest.mark.parametrize("layout", [nchw, channels_last])
@pytest.mark.parametrize("name", ["lenet", "vgg", "depthwise 3x3", "few images"])
def test_any_number_of_threads_gives_the_same_forward(library, threads, name, layout):
    if name in POINTWISE:
        x, weight, _, options = one_by_one(POINTWISE[name])
        library = of_avx512() if layout is channels_last else library
    else:
        x_shape, weight_shape, options = DIRECT[name]
        x, weight = normal(32, *x_shape[1:]), normal(*weight_shape, seed=1)
    found = []
    for number in (1, 2, 3):
        threads(number)
        found.append(direct_forward(library, layout(x), weight, None, options, layout, **act("relu")))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("number", [1, 2, 3])
def test_weight_gradient_repeats_bit_for_bit(library, threads, number):
    x_shape, weight_shape, options = DIRECT["vgg"]
    threads(number)
    x, weight = normal(32, *x_shape[1:]), normal(*weight_shape, seed=1)
    grad_out, first, second = normal(32, 19, 32, 32, seed=3), unwritten(weight_shape), unwritten(weight_shape)
    for grad_weight in (first, second):
        library.conv2d_backward(grad_out, x, weight, None, grad_weight, **options)
    assert torch.equal(first, second)
    held(first, lambda x, w, g: torch.nn.grad.conv2d_weight(x, w.shape, g, **options), x, weight, grad_out)


# ------------------------------------------------------------------------------------------ with a max pool


@pytest.mark.parametrize("activation", ["", "relu", "tanh"])
@pytest.mark.parametrize("name", ["lenet", "stn", "vgg", "wide", "stem", "groups", "one output"])
def test_max_pool2d(library, name, activation):
    x_shape, weight_shape, options = DIRECT[name]
    x = torch.randint(
        -2, 3, x_shape, generator=torch.Generator().manual_seed(0)
    ).float()  # sums are exact: ties
    weight = torch.randint(-1, 2, weight_shape, generator=torch.Generator().manual_seed(1)).float()
    bias = torch.randint(-3, 4, weight_shape[:1], generator=torch.Generator().manual_seed(2)).float()
    x[0, 0, 3, 5], x[0, 0, 4, 11] = NAN, -INF
    pooled, indices = F.max_pool2d(F.conv2d(x, weight, bias, **options), 2, return_indices=True)
    out, without = unwritten(pooled.shape), unwritten(pooled.shape)
    offsets = torch.full(pooled.shape, 99, dtype=torch.uint8)
    pool = {"pool_kernel_size": (2, 2), "pool_stride": (2, 2)}
    assert library.conv2d_max_pool2d_covers(
        x, weight, bias, out, offsets, **options, **act(activation), **pool
    )
    library.conv2d_max_pool2d(x, weight, bias, out, offsets, **options, **act(activation), **pool)
    library.conv2d_max_pool2d(x, weight, bias, without, None, **options, **act(activation), **pool)
    held(out, lambda t: applied(t, **act(activation)), pooled)
    assert torch.equal(out.nan_to_num(123), without.nan_to_num(123))
    width = out_shape(x, weight, options)[3]
    rows, columns = torch.arange(pooled.shape[2]).unsqueeze(1), torch.arange(pooled.shape[3])
    cells = (indices // width - 2 * rows) * 2 + indices % width - 2 * columns
    assert torch.equal(offsets.long(), cells)


# -------------------------------------------------------------------------------------------- the epilogues


@pytest.mark.parametrize("layout", [nchw, channels_last])
@pytest.mark.parametrize("dtype", [FP32, FP16, BF16])
@pytest.mark.parametrize("activation", ["", *ACTIVATIONS])
def test_epilogue(library, activation, dtype, layout):
    for shape in ((2, 3, 5, 7), (1, 17, 4, 4), (2, 16, 1, 1), (3, 1, 6, 11), (1, 33, 2, 1)):
        y, bias = normal(*shape, dtype=dtype), normal(shape[1], dtype=dtype, seed=1)
        y.view(-1)[:3] = torch.tensor([NAN, -0.0, INF])
        for values in (bias, None):
            got = layout(y.clone())
            library.conv2d_epilogue(got, values, **act(activation))
            shaped = None if values is None else values.view(-1, 1, 1)
            held(got, lambda y, b: applied(y if b is None else y + b, **act(activation)), y, shaped)


def test_epilogue_keeps_the_sign_of_zero(library):
    y = torch.full((1, 1, 4, 9), -0.0)
    library.conv2d_epilogue(y, None, **act("relu"))
    assert torch.signbit(y).all() == torch.signbit(F.relu(torch.tensor(-0.0)))


@pytest.mark.parametrize("grad_layout", [nchw, channels_last, sliced, expanded])
@pytest.mark.parametrize("layout", [nchw, channels_last])
@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("activation", ["", *ACTIVATIONS])
def test_epilogue_backward(library, activation, dtype, layout, grad_layout):
    for shape in ((2, 3, 5, 7), (3, 17, 4, 4), (5, 1, 6, 11), (2, 4, 40, 41)):
        x, grad_out = normal(*shape, dtype=dtype), grad_layout(normal(*shape, dtype=dtype, seed=1))
        out = layout(applied(x, **act(activation)))
        saved = out if activation else None
        grad_pre, grad_bias = unwritten(shape, dtype, layout), unwritten((shape[1],), dtype)

        def derivative(grad_out, out):
            d = (
                ACTIVATIONS[activation].derivative(out, act(activation)["activation_param"])
                if activation
                else 1
            )
            return grad_out * d

        library.conv2d_epilogue_backward(grad_out, saved, grad_pre, grad_bias, **act(activation))
        held(grad_pre, derivative, grad_out, out)
        if shape[1] > 1:  # torch's sum of one channel may be right by luck
            held(grad_bias, lambda g, y: derivative(g, y).sum((0, 2, 3)), grad_out, out)
        else:
            exact = derivative(grad_out.double(), out.double())
            bound = exact.abs().sum() * torch.finfo(dtype).eps
            assert abs(grad_bias.double() - exact.sum()) <= bound
        alone = unwritten((shape[1],), dtype)
        library.conv2d_epilogue_backward(grad_out, saved, None, alone, **act(activation))
        torch.testing.assert_close(alone, grad_bias)  # without grad_pre in the order of grad_out


@pytest.mark.parametrize("layout", [nchw, channels_last])
def test_epilogue_backward_is_the_same_for_any_number_of_threads(library, threads, layout):
    grad_out, out = layout(normal(64, 24, 20, 21)), layout(normal(64, 24, 20, 21, seed=1))
    found = []
    for number in (1, 2, 3):
        threads(number)
        grad_pre, grad_bias = torch.full_like(out, NAN), unwritten((24,))
        library.conv2d_epilogue_backward(grad_out, out, grad_pre, grad_bias, **act("relu"))
        found.append((grad_pre, grad_bias))
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))
    held(found[0][1], lambda g, y: (g * (y > 0)).sum((0, 2, 3)), grad_out, out)


# --------------------------------------------------------------------------------- with torch's convolution

COMPOSED = {
    **{name: DIRECT[name] for name in ("lenet", "vgg", "stride 4", "depthwise 3x3")},
    "3x3": ((2, 20, 9, 10), (33, 20, 3, 3), window(padding=1)),
    "1x1, stride 2": ((3, 36, 5, 6), (20, 36, 1, 1), window(2)),
    "groups, dilation": ((2, 24, 9, 8), (16, 12, 3, 3), window(1, 2, 2, groups=2)),
    "depthwise of 7x7": ((2, 24, 7, 7), (24, 1, 3, 3), window(padding=1, groups=24)),
}


@pytest.mark.parametrize("layout", [nchw, channels_last])
@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("activation", ["", "relu"])
@pytest.mark.parametrize("name", COMPOSED)
def test_composed(library, name, activation, dtype, layout):
    x_shape, weight_shape, options = COMPOSED[name]
    weight_scale = (weight_shape[1] * weight_shape[2] * weight_shape[3]) ** -0.5
    x, weight = normal(*x_shape, dtype=dtype), normal(*weight_shape, seed=1).mul(weight_scale).to(dtype)
    bias, keywords = (
        normal(weight_shape[0], dtype=dtype, seed=2),
        options | act(activation) | {"allow_tf32": False},
    )
    grad_out = normal(*out_shape(x, weight, options), dtype=dtype, seed=3)
    out = unwritten(grad_out.shape, dtype, layout)
    composed.forward(library, layout(x), layout(weight), bias, out, **keywords)
    strides = layout(grad_out).stride()
    assert out.stride() == strides

    gradients = [unwritten(t.shape, dtype, layout if t.dim() == 4 else nchw) for t in (x, weight, bias)]
    saved = out if activation else None
    composed.backward(library, layout(grad_out), layout(x), layout(weight), saved, *gradients, **keywords)

    def results(dtype):
        inputs = [t.to(dtype).requires_grad_() for t in (layout(x), layout(weight), bias)]
        y = applied(F.conv2d(*inputs, **options), **act(activation))
        return y.detach(), *torch.autograd.grad(y, inputs, grad_out.to(dtype))

    for what, *values in zip("yxwb", (out, *gradients), results(dtype), results(torch.float64), strict=True):
        failure = judge(*values).failure
        assert not failure, f"{what}: {failure}"
    for i, expected in enumerate(gradients):  # each alone
        wanted = [torch.full_like(g, NAN) if i == j else None for j, g in enumerate(gradients)]
        composed.backward(library, layout(grad_out), layout(x), layout(weight), saved, *wanted, **keywords)
        torch.testing.assert_close(wanted[i], expected)


def test_composed_keeps_nan(library):
    """oneDNN's own relu would not."""
    x, weight = normal(1, 16, 8, 8), normal(16, 16, 3, 3, seed=1)
    x[0, 0, 4, 4] = NAN
    out = unwritten((1, 16, 6, 6))
    composed.forward(library, x, weight, None, out, **window(), **act("relu"), allow_tf32=False)
    assert torch.equal(out.isnan(), F.conv2d(x, weight).isnan())


def test_composed_on_an_empty_batch(library):
    x, weight, out = normal(0, 3, 8, 8), normal(4, 3, 3, 3), torch.empty(0, 4, 6, 6)
    keywords = window() | act("relu") | {"allow_tf32": False}
    composed.forward(library, x, weight, None, out, **keywords)
    grad_weight, grad_bias = unwritten(weight.shape), unwritten((4,))
    composed.backward(library, out, x, weight, out, None, grad_weight, grad_bias, **keywords)
    assert not grad_weight.any() and not grad_bias.any()
