"""max_pool2d's kernels fill what they are handed: values, cells and gradients are torch's, bit for bit.

The Triton kernels (interpreted where there is no GPU) and, where they were built, those of csrc/cpu in each
capability that this CPU has, and of csrc/cuda. A maximum is one of the inputs and gradients here are sums of
small integers, so nothing is rounded and every comparison is exact.
"""

import os
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from support import DEVICE, NATIVE_BACKENDS

from fastdl import native

try:
    import triton  # noqa: F401
    from fastdl.kernels import _runtime
    from fastdl.kernels import max_pool2d as triton_max_pool2d
except ImportError:
    triton_max_pool2d = None


def _fills(library):
    return SimpleNamespace(forward=library.max_pool2d_forward, backward=library.max_pool2d_backward)


def _kernels():
    """Every implementation that this machine can run, by name."""
    found = {}
    if triton_max_pool2d is not None and (DEVICE == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"):
        found["triton"] = triton_max_pool2d
    if "cpu" in NATIVE_BACKENDS:
        best = native.CAPABILITIES.index(torch.backends.cpu.get_cpu_capability().lower())
        for name in native.CAPABILITIES[: best + 1]:
            path = native.HERE / f"libfastdl_cpu_{name}.so"
            if path.exists():
                found[f"cpu {name}"] = _fills(native._bindings()[0].Library(str(path)))
    if "cuda" in NATIVE_BACKENDS:
        found["cuda"] = native.kernel("cuda", "max_pool2d")
    return found


KERNELS = _kernels()
NATIVE_KERNELS = [name for name in KERNELS if name != "triton"]
op = None  # the implementation under test: see `kernels`

if not KERNELS:
    pytest.skip("no kernel of max_pool2d runs here", allow_module_level=True)


@pytest.fixture(autouse=True, params=KERNELS)
def kernels(request, monkeypatch):
    """Each implementation in turn."""
    monkeypatch.setattr(sys.modules[__name__], "op", KERNELS[request.param])
    return request.param


only_triton = pytest.mark.parametrize("kernels", [k for k in KERNELS if k == "triton"], indirect=True)
only_native = pytest.mark.parametrize("kernels", NATIVE_KERNELS, indirect=True)

NAN, INF = float("nan"), float("inf")


def options(kernel_size, stride=None, padding=0, dilation=1):
    def pair(value):
        return (value, value) if isinstance(value, int) else value

    return {
        "kernel_size": pair(kernel_size),
        "stride": pair(kernel_size if stride is None else stride),
        "padding": pair(padding),
        "dilation": pair(dilation),
    }


def cells(indices, width, kernel_size, stride, padding, dilation):
    """torch's indices h*W + w as positions kh*KW + kw in their windows."""
    oh = torch.arange(indices.shape[2])[:, None]
    ow = torch.arange(indices.shape[3])
    kh = (indices // width + padding[0] - oh * stride[0]) // dilation[0]
    kw = (indices % width + padding[1] - ow * stride[1]) // dilation[1]
    return kh * kernel_size[1] + kw


def unwritten(shape, like, dtype):
    """A tensor in the memory format of ``like`` holding what no kernel writes."""
    t = torch.empty(shape, dtype=dtype, device=like.device)
    if like.shape[1] > 1 and like.stride(1) == 1:
        t = t.to(memory_format=torch.channels_last)
    return t.fill_(NAN if dtype.is_floating_point else 99)


def check(x, ceil_mode=False, layout=lambda t: t, grad_layout=None, **opts):
    """Forward with and without offsets, and backward, against torch on the CPU."""
    cpu = x.cpu().float().contiguous().requires_grad_()
    expected, indices = F.max_pool2d(cpu, **opts, ceil_mode=ceil_mode, return_indices=True)
    count = opts["kernel_size"][0] * opts["kernel_size"][1]
    x, out, bare = layout(x), *(layout(unwritten(expected.shape, x, x.dtype)) for _ in range(2))
    offsets = layout(unwritten(expected.shape, x, torch.uint8 if count <= 256 else torch.int16))
    op.forward(x, out, offsets, **opts)
    torch.testing.assert_close(out.cpu().float(), expected.detach(), rtol=0, atol=0, equal_nan=True)
    wanted = cells(indices, x.shape[3], **opts)
    torch.testing.assert_close(offsets.cpu().long(), wanted, rtol=0, atol=0)
    op.forward(x, bare, None, **opts)
    torch.testing.assert_close(bare, out, rtol=0, atol=0, equal_nan=True)

    grad_out = torch.randint(-4, 5, out.shape, device=x.device).to(x.dtype)
    grad_out = (grad_layout or layout)(grad_out)
    grad_x = layout(unwritten(x.shape, x, x.dtype))
    op.backward(grad_out, offsets, grad_x, **opts)
    (wanted,) = torch.autograd.grad(expected, cpu, grad_out.cpu().float())
    torch.testing.assert_close(grad_x.cpu().float(), wanted, rtol=0, atol=0)


def data(*shape, dtype=torch.float32, channels_last=False):
    """Values of few kinds, so that windows hold ties, -inf and NaN."""
    torch.manual_seed(0)
    x = torch.randint(-3, 4, shape).to(dtype)
    x.masked_fill_(torch.rand(shape) < 0.3, -INF).masked_fill_(torch.rand(shape) < 0.05, NAN)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    return x.to(DEVICE)


WINDOWS = {
    "2x2 s2": ((2, 3, 12, 10), options(2)),
    "3x3 s2 p1": ((2, 3, 13, 12), options(3, 2, 1)),
    "overlapping in one axis only": ((1, 2, 9, 20), options((2, 5), (2, 1), (1, 2))),
    "gaps between windows": ((2, 2, 11, 11), options(2, 3)),
    "dilation": ((2, 3, 14, 13), options(3, 2, 1, (2, 3))),
    "one cell, any dilation": ((1, 2, 5, 4), options(1, 2, 0, 2**31 - 1)),
    "7x7 loops instead of unrolling": ((1, 2, 12, 20), options(7, 1, 3)),
    "global, lanes over cells": ((2, 5, 8, 8), options(8)),
    "width 1, offsets past one byte": ((2, 3, 300, 1), options((300, 1))),
    "large and overlapping": ((1, 2, 40, 3), options((20, 2), (3, 1), (10, 1))),
}


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("shape, opts", WINDOWS.values(), ids=WINDOWS.keys())
def test_windows(shape, opts, channels_last):
    check(data(*shape, channels_last=channels_last), **opts)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_half_precision(dtype, channels_last):
    check(data(2, 8, 9, 11, dtype=dtype, channels_last=channels_last), **options(3, 2, 1))


@pytest.mark.parametrize("opts", [options(3, 2, 1), options(2, 2), options(5, 3, 2, 2)])
def test_ceil_mode_reaches_beyond_the_padding(opts):
    check(data(2, 3, 12, 13), ceil_mode=True, **opts)


@pytest.mark.parametrize("planes", [1, 20])
def test_window_without_a_cell_inside(planes):
    x = torch.ones(1, planes, 1, 3, device=DEVICE)  # rows -1 and 1 of an input that has row 0 only
    out, offsets = unwritten(x.shape, x, x.dtype), unwritten(x.shape, x, torch.uint8)
    opts = {"kernel_size": (2, 1), "stride": (1, 1), "padding": (1, 0), "dilation": (2, 1)}
    op.forward(x, out, offsets, **opts)
    assert bool((out == -INF).all())
    grad_x = unwritten(x.shape, x, x.dtype)
    op.backward(out.fill_(1.0), offsets, grad_x, **opts)
    assert bool((grad_x == 0).all())


@pytest.mark.parametrize(
    "window, value, cell",
    [
        ([1.0, 3, 3, 2], 3, 1),  # ties: the first
        ([NAN, 5, NAN, 7], NAN, 2),  # NaN wins, and the last of them
        ([-INF] * 4, -INF, 0),
        ([-INF, NAN, INF, 1], NAN, 1),
        ([0.0, -0.0, -1, -1], 0.0, 0),
    ],
)
def test_literals(window, value, cell):
    x = torch.tensor(window, device=DEVICE).view(1, 1, 2, 2)
    out, offsets = unwritten((1, 1, 1, 1), x, x.dtype), unwritten((1, 1, 1, 1), x, torch.uint8)
    op.forward(x, out, offsets, **options(2))
    torch.testing.assert_close(out.item(), float(value), rtol=0, atol=0, equal_nan=True)
    assert offsets.item() == cell


@pytest.mark.parametrize(
    "opts", [options(3, 2, 1), options((3, 33), 1, (1, 16))], ids=["3x3", "lanes over cells"]
)
def test_nothing_but_minus_infinity_names_the_first_cell_inside(opts):
    x = torch.full((1, 1, 5, 40), -INF, device=DEVICE)
    check(x[..., :5].contiguous() if opts["kernel_size"] == (3, 3) else x, **opts)


LAYOUTS = {
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "every second": lambda t: t.repeat_interleave(2, 3)[..., ::2],
    "batch innermost": lambda t: t.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "odd offset": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_strides(layout):
    check(data(2, 3, 9, 8), layout=layout, **options(3, 2, 1))


def test_expanded_gradient():
    check(data(2, 3, 9, 8), grad_layout=lambda g: g[:1, :1, :1, :1].expand(g.shape), **options(3, 2, 1))


@only_triton
@pytest.mark.parametrize("name", ["3x3 s2 p1", "7x7 loops instead of unrolling", "global, lanes over cells"])
def test_wide_offsets_agree(name):
    shape, opts = WINDOWS[name]
    with _runtime.force_wide():
        check(data(*shape), **opts)
        check(data(*shape, channels_last=True), **opts)


def test_empty_batch_launches_nothing():
    x, out = torch.empty(0, 2, 4, 4, device=DEVICE), torch.empty(0, 2, 2, 2, device=DEVICE)
    offsets = torch.empty_like(out, dtype=torch.uint8)
    op.forward(x, out, offsets, **options(2))
    op.backward(out, offsets, x, **options(2))


def test_neighbours_of_the_outputs_stay_untouched():
    canary = torch.full((2, 4, 8, 8), 7.0, device=DEVICE)
    x, opts = data(2, 2, 9, 9), options(3, 2, 1)
    out, offsets = canary.clone()[:, 1:3, 1:6, 2:7], torch.zeros(2, 4, 8, 8, dtype=torch.uint8, device=DEVICE)
    base = out._base
    op.forward(x, out, offsets[:, 1:3, 1:6, 2:7], **opts)
    mask = torch.ones_like(base, dtype=torch.bool)
    mask[:, 1:3, 1:6, 2:7] = False
    assert bool((base[mask] == 7.0).all()) and bool((offsets[mask] == 0).all())
    torch.testing.assert_close(
        out.cpu(), F.max_pool2d(x.cpu(), **opts), rtol=0, atol=0, equal_nan=True, check_stride=False
    )


# What follows is about the vectors of csrc: the interpreter would take minutes.

FAST = {"2x2 s2": options(2), "3x3 s2 p1": options(3, 2, 1)}
fast_windows = pytest.mark.parametrize("opts", FAST.values(), ids=FAST.keys())


@only_native
@fast_windows
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_width(opts, dtype):
    for width in [3, 5, 8, 11, 12, 13, 14, 15, 16, 17, 18, 24, 31, 32, 33, 34, 35, 47, 48, 64, 65, 80]:
        for height, ceil_mode in ((4, False), (5, True)):
            check(data(2, 2, height, width, dtype=dtype), ceil_mode=ceil_mode, **opts)


@only_native
@pytest.mark.parametrize("opts", [*FAST.values(), options(3, 1, 1), options(6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_number_of_channels(opts, dtype):
    for channels in [2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 80, 129]:
        check(data(1, channels, 7, 9, dtype=dtype, channels_last=True), **opts)


LARGE = {
    "points": ((3, 5, 1024, 1), options((1024, 1), 1)),
    "points, in a row": ((3, 5, 1, 1024), options((1, 1024), 1)),
    "points, many channels": ((2, 70, 300, 1), options((300, 1), 1)),
    "global": ((3, 40, 7, 9), options((7, 9), 1)),
    "global, padded": ((2, 3, 40, 40), options(40, 1, 20)),
    "more cells than a table": ((1, 2, 70, 70), options(66, 1, 2)),
    "wide rows": ((2, 3, 9, 200), options((3, 90), (2, 50))),
    "tall": ((1, 2, 300, 40), options((150, 3), (10, 1))),
    "stride 1": ((2, 3, 20, 35), options(4, 1, 1)),
    "stride 3": ((2, 3, 20, 61), options(3, 3)),
    "many rows kept": ((1, 1, 90, 500), options((80, 3), (1, 2))),
}


@only_native
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("shape, opts", LARGE.values(), ids=LARGE.keys())
def test_large_windows(shape, opts, channels_last):
    check(data(*shape, channels_last=channels_last), **opts)
    check(data(*shape, dtype=torch.float16, channels_last=channels_last), **opts)
    check(torch.full(shape, -INF, device=DEVICE), **opts)


def rolled(t, by):
    """The same tensor in memory of the same layout that begins ``by`` elements after an aligned address."""
    memory = torch.zeros(t.numel() + 64, dtype=t.dtype, device=t.device)
    moved = memory[by : by + t.numel()].as_strided(t.shape, t.stride(), by)
    return moved.copy_(t)


@only_native
@fast_windows
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_addresses_of_any_alignment(opts, channels_last, dtype):
    for by in (1, 2, 4, 8):
        x = data(2, 16, 16, 32, dtype=dtype, channels_last=channels_last)
        check(x, layout=lambda t, by=by: rolled(t, by), **opts)
        check(x, grad_layout=lambda t, by=by: rolled(t, by), **opts)


@only_native
@pytest.mark.parametrize("opts", [*FAST.values(), options(3, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layouts_agree_to_the_last_bit(opts, dtype):
    x = torch.randn(2, 40, 15, 22, dtype=dtype, device=DEVICE)
    size = F.max_pool2d(x, **opts).shape
    grad = torch.randn(size, dtype=dtype, device=DEVICE)
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        laid = x.contiguous(memory_format=layout)
        out = torch.empty(size, dtype=dtype, device=DEVICE, memory_format=layout)
        offsets, grad_x = torch.empty_like(out, dtype=torch.uint8), torch.empty_like(laid)
        op.forward(laid, out, offsets, **opts)
        op.backward(grad.contiguous(memory_format=layout), offsets, grad_x, **opts)
        found.append((out, offsets, grad_x))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, check_stride=False)


CUTS = {**{name: ((3, 5, 61, width), FAST[name]) for name in FAST for width in (20,)}, **{
    "3x3 s2 p1, wide": ((1, 3, 120, 130), FAST["3x3 s2 p1"]),
    "rows kept": ((1, 3, 80, 80), options(5, 1, 2)),
    "wide windows": ((5, 60, 16, 16), options(16)),
    "one plane": ((1, 1, 200, 200), options(3, 1, 1)),
}}  # fmt: skip


@pytest.mark.parametrize("kernels", [k for k in KERNELS if k.startswith("cpu")], indirect=True)
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("shape, opts", CUTS.values(), ids=CUTS.keys())
def test_any_number_of_threads(shape, opts, channels_last):
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            check(data(*shape, channels_last=channels_last), **opts)
    finally:
        torch.set_num_threads(before)


@only_native
@pytest.mark.parametrize("width", [6, 20, 33])
@fast_windows
def test_nothing_beyond_a_tensor_is_written(opts, width):
    guards = []

    def guarded(t):
        memory = torch.full((t.numel() + 256,), 77, dtype=torch.float32, device=t.device).to(t.dtype)
        guards.append((memory[:128], memory[-128:]))
        return memory[128:-128].view(t.shape).copy_(t)

    check(data(7, 9, 11, width), layout=guarded, **opts)
    assert all(bool((guard == 77).all()) for pair in guards for guard in pair)


@only_native
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("opts", [*FAST.values(), options(7, 3)])
def test_images_beyond_2_to_the_31_elements_apart(opts, channels_last):
    def far(t):
        apart = 2**31 + 8  # untouched pages cost nothing
        try:
            memory = torch.empty(apart + t[0].numel(), dtype=t.dtype, device=t.device)
        except RuntimeError:
            pytest.skip("no room for 4 GiB of addresses")
        return memory.as_strided(t.shape, (apart, *t.stride()[1:])).copy_(t)

    check(data(2, 8, 12, 16, dtype=torch.float16, channels_last=channels_last), layout=far, **opts)


# Planes on the lanes: at least half as many planes as lanes, in blocks that do and do not fill them.
LANES = {
    "3x3 s1": ((2, 19, 7, 7), options(3, 1)),
    "3x3 s1 p1": ((1, 16, 14, 14), options(3, 1, 1)),
    "2x2 s1": ((3, 7, 5, 6), options(2, 1)),
    "5x5 s1 p2": ((2, 33, 4, 5), options(5, 1, 2)),
    "3x3 s3": ((2, 19, 10, 10), options(3, 3)),
    "4x2 s3, gaps": ((1, 21, 11, 13), options((4, 2), (3, 5), (2, 1))),
    "3x3 s4": ((1, 13, 9, 9), options(3, 4, 1)),
    "2x2 s2": ((2, 19, 7, 7), options(2)),
    "3x3 s2 p1": ((2, 19, 9, 7), options(3, 2, 1)),
    "one window a plane": ((2, 19, 3, 3), options(3, 3)),
    "dilation": ((2, 19, 14, 13), options(3, 3, 1, (2, 3))),
    "offsets of two bytes": ((1, 17, 40, 40), options(17, 3)),
    "bands": ((1, 18, 90, 95), options(3, 3)),
    "bands that overlap": ((1, 18, 90, 55), options(2, 1)),
}


@only_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape, opts", LANES.values(), ids=LANES.keys())
def test_planes_on_the_lanes(shape, opts, dtype):
    check(data(*shape, dtype=dtype), **opts)
    check(torch.full(shape, -INF, dtype=dtype, device=DEVICE), **opts)
    if opts["dilation"] == (1, 1):
        check(data(*shape, dtype=dtype), ceil_mode=True, **opts)


@only_native
@pytest.mark.parametrize("name", ["3x3 s1", "3x3 s3", "2x2 s2", "bands"])
def test_planes_on_the_lanes_with_others_between(name):
    shape, opts = LANES[name]
    check(data(*shape), layout=lambda t: t.repeat_interleave(2, 1)[:, ::2], **opts)
    check(data(*shape), layout=lambda t: t.transpose(0, 1).contiguous().transpose(0, 1), **opts)


@pytest.mark.parametrize("kernels", [k for k in KERNELS if k.startswith("cpu")], indirect=True)
@pytest.mark.parametrize("name", ["3x3 s1", "3x3 s3", "bands"])
def test_planes_on_the_lanes_of_any_number_of_threads(name):
    shape, opts = LANES[name]
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            check(data(shape[0] * 40, *shape[1:]), **opts)
    finally:
        torch.set_num_threads(before)


GARBAGE = {
    "short rows": ((2, 9, 7, 7), options(5, 1)),
    "short padded rows": ((2, 9, 7, 7), options(5, 1, 2)),
    "2x2 s2": ((3, 5, 12, 40), options(2)),
    "3x3 s2 p1": ((3, 5, 13, 40), options(3, 2, 1)),
    "narrow": ((3, 5, 9, 8), options(3, 2, 1)),
    "no overlap": ((2, 9, 12, 12), options(3, 3)),
    "on the lanes": ((2, 19, 7, 7), options(3, 1, 1)),
    "padded": ((1, 3, 40, 40), options(7, 1, 3)),
    "one window a plane": ((2, 9, 14, 14), options(14)),
    "two bytes": ((1, 3, 40, 40), options(17, 3, 8)),
    "more cells than a table": ((1, 2, 70, 70), options(66, 1, 2)),
}


@only_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("shape, opts", GARBAGE.values(), ids=GARBAGE.keys())
def test_offsets_that_name_no_cell_write_nothing_outside(shape, opts, channels_last, dtype):
    """Backward on the CPU added wherever the saved bytes pointed to."""
    x = data(*shape, dtype=dtype, channels_last=channels_last)
    size = F.max_pool2d(x.cpu().float(), **opts).shape
    cells = opts["kernel_size"][0] * opts["kernel_size"][1]
    like = torch.empty(size, dtype=dtype, device=DEVICE)
    like = like.to(memory_format=torch.channels_last) if channels_last else like
    offsets = torch.empty_like(like, dtype=torch.uint8 if cells <= 256 else torch.int16)
    room = 2**18  # two bytes name cells that far away
    memory = torch.full((x.numel() + 2 * room,), 77, dtype=dtype, device=DEVICE)
    grad_x = memory[room:-room].as_strided(x.shape, x.stride())
    for low, high in ((0, cells), (0, 256) if cells <= 256 else (-(2**15), 2**15)):
        offsets.copy_(torch.randint(low, high, size))
        op.backward(torch.ones_like(like), offsets, grad_x, **opts)
    assert bool((memory[:room] == 77).all()) and bool((memory[-room:] == 77).all())
    assert bool(grad_x.isfinite().all())


@pytest.mark.parametrize("kernels", [k for k in KERNELS if k.startswith("cpu")], indirect=True)
@pytest.mark.parametrize("wrong", ["offsets", "grad_x", "both"])
def test_backward_of_more_windows_than_there_are_is_refused(wrong):
    shapes = {"grad": (1, 2, 4, 4), "offsets": (1, 2, 4, 4), "x": (1, 2, 8, 8)}
    shapes |= {
        "offsets": {"offsets": (1, 2, 3, 4)},
        "grad_x": {"x": (1, 1, 8, 8)},
        "both": {"grad": (1, 2, 4, 40), "offsets": (1, 2, 4, 40)},
    }[wrong]
    offsets = torch.zeros(shapes["offsets"], dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="expected one element for each window"):
        op.backward(torch.ones(shapes["grad"]), offsets, torch.empty(shapes["x"]), **options(2))
