"""affine_grid_sample's kernels fill what they are handed: affine_grid and grid_sample within the one rule.

The Triton kernels (interpreted where there is no GPU) and, where they were built, those of csrc/cpu in each
capability that this CPU has, and of csrc/cuda.
"""

import itertools
import math
import os
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from support import DEVICE, NATIVE_BACKENDS

from fastdl import native
from fastdl.parity.tolerance import judge

try:
    import triton  # noqa: F401
    from fastdl.kernels import _runtime
    from fastdl.kernels import affine_grid_sample as triton_affine_grid_sample
except ImportError:
    triton_affine_grid_sample = None

TORCHS_CAPABILITY = torch.backends.cpu.get_cpu_capability().lower()


def _fills(library):
    return SimpleNamespace(
        forward=library.affine_grid_sample_forward, backward=library.affine_grid_sample_backward
    )


def _kernels():
    """Every implementation that this machine can run, by name."""
    found = {}
    if triton_affine_grid_sample is not None and (
        DEVICE == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
    ):
        found["triton"] = triton_affine_grid_sample
    if "cpu" in NATIVE_BACKENDS:
        for name in native.CAPABILITIES[: native.CAPABILITIES.index(TORCHS_CAPABILITY) + 1]:
            path = native.HERE / f"libfastdl_cpu_{name}.so"
            if path.exists():
                found[f"cpu {name}"] = _fills(native._bindings()[0].Library(str(path)))
    if "cuda" in NATIVE_BACKENDS:
        found["cuda"] = native.kernel("cuda", "affine_grid_sample")
    return found


KERNELS = _kernels()
CPU_KERNELS = [name for name in KERNELS if name.startswith("cpu")]
NATIVE_KERNELS = [name for name in KERNELS if name != "triton"]
op = None  # the implementation under test: see `kernels`

if not KERNELS:
    pytest.skip("no kernel of affine_grid_sample runs here", allow_module_level=True)


@pytest.fixture(autouse=True, params=KERNELS)
def kernels(request, monkeypatch):
    """Each implementation in turn."""
    monkeypatch.setattr(sys.modules[__name__], "op", KERNELS[request.param])
    return request.param


only_triton = pytest.mark.parametrize("kernels", [k for k in KERNELS if k == "triton"], indirect=True)
only_native = pytest.mark.parametrize("kernels", NATIVE_KERNELS, indirect=True)
only_cpu = pytest.mark.parametrize("kernels", CPU_KERNELS, indirect=True)

NAN, INF = float("nan"), float("inf")
MODES, PADDINGS = ("bilinear", "nearest"), ("zeros", "border", "reflection")
RULES = list(itertools.product(MODES, PADDINGS, (False, True)))


def turn(degrees, scale=1.0, x=0.0, y=0.0):
    c, s = scale * math.cos(math.radians(degrees)), scale * math.sin(math.radians(degrees))
    return [[c, -s, x], [s, c, y]]


# numbers without pattern: no coordinate meets a pixel, or the middle between two, by chance
THETAS = {
    "rotation": turn(33, 0.83, 0.11, -0.17),
    "half turn": turn(203, 1.27, 0.31, 0.05),
    "zoom in": turn(7, 0.3, -0.13, 0.21),
    "zoom out": turn(11, 3.0, 0.07, 0.03),
    "shear": [[1.03, 0.71, 0.09], [0.043, 0.93, 0.017]],
    "flip": [[-1.02, 0.013, 0.011], [0.021, 1.03, 0.023]],
    "shifted out": turn(19, 1.01, 5.03, -0.7),
    "singular": [[0.5, 0.25, 0.1], [1.0, 0.5, -0.13]],
    "all zero": [[0.0, 0.0, 0.131], [0.0, 0.0, -0.217]],
}


def unwritten(like):
    """As fastdl/ops allocates it, contiguous; the Triton kernels take any strides."""
    strides = torch.preserve_format if op is triton_affine_grid_sample else torch.contiguous_format
    return torch.empty_like(like, memory_format=strides).fill_(777.0)


def ours(x, theta, grad_out, mode, padding_mode, align_corners, wanted=(True, True)):
    """Output in the dtype of grad_out and the gradients, those not wanted None."""
    rules = {"mode": mode, "padding_mode": padding_mode, "align_corners": align_corners}
    out = torch.full(grad_out.shape, 777.0, dtype=grad_out.dtype, device=x.device)
    op.forward(x, theta, out, **rules)
    gradients = [unwritten(t) if want else None for t, want in zip((x, theta), wanted, strict=True)]
    op.backward(grad_out, x, theta, *gradients, **rules)
    return out, *gradients


def torchs(x, theta, grad_out, mode, padding_mode, align_corners, dtype):
    """The same by torch on the CPU, computed in ``dtype``."""
    x, theta, grad_out = (t.detach().cpu().to(dtype) for t in (x, theta, grad_out))
    x.requires_grad_(), theta.requires_grad_()
    grid = F.affine_grid(theta, list(grad_out.shape), align_corners)
    image = x.expand(len(theta), -1, -1, -1)
    out = F.grid_sample(image, grid, mode, padding_mode, align_corners)
    return out.detach(), *torch.autograd.grad(out, (x, theta), grad_out)


def check(x, theta, grad_out, *rules):
    """``ours`` against torch in float32 and float64; what is half precision is rounded from those."""
    results = ours(x, theta, grad_out, *rules)
    expected, oracle = (torchs(x, theta, grad_out, *rules, dtype) for dtype in (torch.float32, torch.float64))
    for name, *values in zip(("out", "grad_input", "grad_theta"), results, expected, oracle, strict=True):
        verdict = judge(values[0], values[1].to(values[0].dtype), values[2])
        assert not verdict.failure, f"{name}: {verdict.failure}"
    return results


def randn(*shape, dtype=torch.float32):
    return torch.randn(shape, dtype=dtype).to(DEVICE)


def batch(*names):
    return torch.tensor([THETAS[name] for name in names or THETAS]).to(DEVICE)


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_every_rule_on_every_theta(rules):
    theta = batch()
    check(randn(len(theta), 2, 6, 9), theta, randn(len(theta), 2, 8, 7), *rules)


@only_triton
@pytest.mark.parametrize("rules", RULES, ids=str)
def test_identity_copies_bit_for_bit(rules):
    x, grad_out = randn(1, 1, 7, 28), randn(1, 1, 7, 28)
    out, grad_x, _ = ours(x, torch.eye(2, 3, device=DEVICE)[None], grad_out, *rules)
    assert torch.equal(out, x) and torch.equal(grad_x, grad_out)


@pytest.mark.parametrize("width", [2, 7, 28, 33, 60])
@pytest.mark.parametrize("rules", RULES, ids=str)
def test_identity_is_on_torchs_side_of_every_pixel(kernels, rules, width):
    """Rounding decides on which side of a pixel a sample falls: as torch's fused additions do."""
    if kernels == "triton":
        pytest.skip("samples the pixels themselves")
    x, grad_out, theta = randn(1, 2, 5, width), randn(1, 2, 5, width), torch.eye(2, 3, device=DEVICE)[None]
    results, expected = (
        ours(x, theta, grad_out, *rules),
        torchs(x, theta, grad_out, *rules, dtype=torch.float32),
    )
    same = TORCHS_CAPABILITY in ("avx2", "avx512")
    for got, want in list(zip(results, expected, strict=True))[: 3 if same else 2]:
        torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-5 * width)


@pytest.mark.parametrize("padding", ["zeros", pytest.param("border", marks=pytest.mark.slow_interpreted)])
def test_many_tiles(padding):
    """Several tiles of input and output, some of them inner ones; theta's gradient from two programs."""
    theta = batch("rotation")
    check(randn(1, 1, 17, 65), theta, randn(1, 1, 33, 33), "bilinear", padding, False)


@pytest.mark.parametrize("sizes", [(1, 1, 3, 4), (3, 4, 1, 1), (1, 5, 4, 1), (1, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding", PADDINGS)
def test_sizes_of_one(sizes, align_corners, padding):
    theta = batch("rotation", "zoom out", "shear")
    x, grad_out = randn(3, 8, *sizes[:2]), randn(3, 8, *sizes[2:])
    check(x, theta, grad_out, "bilinear", padding, align_corners)


@pytest.mark.parametrize("channels", [3, 35])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "sliced"])
def test_layouts(channels, layout):
    theta = batch("rotation", "all zero", "shear")
    x, grad_out = randn(3, channels, 5, 6), randn(3, channels, 6, 5)
    if layout == "channels_last":
        x = x.to(memory_format=torch.channels_last)
    elif layout == "transposed":
        x, grad_out = x.mT, grad_out.to(memory_format=torch.channels_last)
        theta = theta.mT.contiguous().mT
    elif layout == "sliced":
        x, grad_out = x[:, ::2, 1:, ::2], grad_out[:, ::2, 1:]
    check(x, theta, grad_out, "bilinear", "zeros", False)


def test_expanded_gradient():
    """What .sum() hands to backward: one element, all strides 0."""
    theta = batch("rotation", "zoom in")
    check(randn(2, 2, 5, 6), theta, randn(1).expand(2, 2, 6, 5), "bilinear", "zeros", False)


@pytest.mark.parametrize("image", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("out", [torch.float32, None])
@pytest.mark.parametrize("theta_dtype", [torch.float32, torch.bfloat16])
def test_dtypes(image, out, theta_dtype):
    theta = batch("rotation", "flip").to(theta_dtype)
    check(
        randn(2, 2, 5, 6, dtype=image),
        theta,
        randn(2, 2, 6, 5, dtype=out or image),
        "bilinear",
        "zeros",
        False,
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding", PADDINGS)
def test_one_image_for_all_thetas(mode, padding):
    theta = batch("rotation", "all zero", "zoom in")
    check(randn(1, 2, 5, 6), theta, randn(3, 2, 4, 7), mode, padding, False)


@pytest.mark.parametrize("wanted", [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("mode", MODES)
def test_unwanted_gradients_are_skipped(wanted, mode):
    x, theta, grad_out = randn(1, 1, 5, 6), batch("rotation"), randn(1, 1, 6, 5)
    everything = ours(x, theta, grad_out, mode, "zeros", False)
    some = ours(x, theta, grad_out, mode, "zeros", False, wanted)
    for want, full, got in zip(wanted, everything[1:], some[1:], strict=True):
        assert torch.equal(full, got) if want else got is None


@only_triton
@pytest.mark.parametrize("wanted", [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("mode", MODES)
def test_unwanted_gradients_launch_nothing(wanted, mode):
    x, theta, grad_out = randn(1, 1, 5, 6), batch("rotation"), randn(1, 1, 6, 5)
    with _runtime.record() as launches:
        ours(x, theta, grad_out, mode, "zeros", False, wanted)
    assert len(launches) == 1 + wanted[0] + (wanted[1] and mode == "bilinear")


@only_triton
def test_gradient_of_theta_in_any_layout():
    x, theta, grad_out = randn(2, 1, 5, 6), batch("rotation", "flip"), randn(2, 1, 6, 5)
    _, _, expected = ours(x, theta, grad_out, "bilinear", "zeros", False)
    strided = torch.full((2, 3, 2), 777.0, device=DEVICE).mT
    op.backward(grad_out, x, theta, None, strided, mode="bilinear", padding_mode="zeros", align_corners=False)
    assert torch.equal(strided, expected)


@only_triton
@pytest.mark.parametrize("channels_last", [False, True])
def test_wide_offsets_and_repetition_change_nothing(channels_last):
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    theta = batch("rotation", "singular")
    x = randn(2, 3, 6, 7).to(memory_format=memory_format)
    args = (x, theta, randn(2, 3, 5, 8), "bilinear", "border", True)
    first, again = ours(*args), ours(*args)
    with _runtime.force_wide():
        wide = ours(*args)
    for a, b, c in zip(first, again, wide, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


@pytest.mark.parametrize("align_corners", [False, True])
def test_no_gradient_where_border_clamps(align_corners):
    """At the outermost pixels themselves, too."""
    theta = torch.tensor([[[0, 0, -1.0], [0, 0, 0.3]], [[0, 0, 1.0], [0, 0, 0.3]]]).to(DEVICE)
    _, _, grad_theta = check(randn(2, 1, 4, 5), theta, randn(2, 1, 3, 3), "bilinear", "border", align_corners)
    assert torch.all(grad_theta[:, 0] == 0) and torch.all(grad_theta[:, 1] != 0)


@pytest.mark.parametrize("value", [NAN, INF])
def test_nan_and_inf_spread_as_in_torch(value):
    x, theta, grad_out = randn(3, 1, 6, 7), batch("rotation", "zoom in", "all zero"), randn(3, 1, 7, 6)
    x[:, :, 2, 3] = value
    grad_out[:, :, 3, 2] = value
    check(x, theta, grad_out, "bilinear", "zeros", False)
    check(x, theta, grad_out, "bilinear", "reflection", False)


@pytest.mark.parametrize("value", [1e7, -1e20, 3e38, INF, -INF, NAN])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding", PADDINGS)
def test_no_theta_reads_or_writes_outside(value, mode, padding):
    """Far coordinates read the padding, those that are no number NaN or the edge (pytorch#24823, #35202)."""
    canary = torch.full((3, 1, 8, 9), 1e9, device=DEVICE)
    x, grad_out = canary[1:2, :, 2:-2, 2:-2], randn(1, 1, 4, 5)
    x.copy_(torch.rand(x.shape) + 1)
    theta = torch.tensor([[[1.0, 0, value], [0, 1, value]]]).to(DEVICE)
    out, grad_x, grad_theta = ours(x, theta, grad_out, mode, padding, False)
    finite = math.isfinite(value) and abs(value) < 1e30
    if padding != "zeros":
        assert torch.all((out >= 1) & (out <= 2)) and torch.all(grad_x.abs() < 100)
    elif finite or mode == "nearest":
        assert torch.all(out == 0) and torch.all(grad_theta == 0)
    else:
        assert torch.all(out.isnan())
    if padding == "zeros":
        assert torch.all(grad_x == 0)
    if finite or mode == "nearest":
        assert torch.all(grad_theta.abs() < 1e3)


def test_non_finite_theta_spoils_only_its_own_sample():
    x, theta, grad_out = randn(1, 1, 5, 6), batch("rotation", "rotation", "zoom in"), randn(3, 1, 4, 5)
    theta[1, 0, 0] = NAN
    out, grad_x, grad_theta = ours(x, theta, grad_out, "bilinear", "zeros", False)
    good = torch.tensor([0, 2], device=DEVICE)
    out_good, grad_x_good, grad_theta_good = ours(x, theta[good], grad_out[good], "bilinear", "zeros", False)
    assert torch.equal(out[good], out_good) and torch.equal(grad_x, grad_x_good)
    assert torch.equal(grad_theta[good], grad_theta_good) and out[1].isnan().all()


@pytest.mark.parametrize("n, channels", [(0, 2), (2, 0)])
def test_nothing_to_do(n, channels):
    theta = torch.zeros(n, 2, 3, device=DEVICE)
    _, _, grad_theta = ours(
        randn(n, channels, 3, 4), theta, randn(n, channels, 4, 3), "bilinear", "zeros", False
    )
    assert torch.all(grad_theta == 0)


# -------------------------------------------------------------------------- the paths of the native kernels


@only_native
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 8, 9, 16, 17, 33])
@pytest.mark.parametrize("channels_last", [False, True])
def test_vectors_and_their_tails(channels, channels_last):
    """Blocks of channels, full and not; rows and chunks of pixels that end anywhere in a vector."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    theta = batch("rotation", "flip")
    for width in (15, 16, 17, 33):
        x = randn(2, channels, 5, width).to(memory_format=layout)
        grad_out = randn(2, channels, 6, 34 - width).to(memory_format=layout)
        check(x, theta, grad_out, "bilinear", "zeros", False)
        check(x, theta, grad_out, "nearest", "border", True)


@only_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [1, 4, 8])
@pytest.mark.parametrize("channels_last", [False, True])
def test_misaligned_views(dtype, channels, channels_last):
    def shifted(*shape):
        values = torch.full((math.prod(shape) + 3,), 6e4, dtype=dtype, device=DEVICE)[1:-2]
        values.copy_(torch.randn(values.shape))
        if channels_last:
            return values.view(shape[0], *shape[2:], shape[1]).permute(0, 3, 1, 2)
        return values.view(shape)

    theta = torch.full((13,), 1e9, device=DEVICE)[1:].view(2, 2, 3).copy_(batch("rotation", "shear"))
    check(shifted(2, channels, 6, 9), theta, shifted(2, channels, 7, 5), "bilinear", "zeros", False)


@only_native
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(
    "channels, size, out",
    [
        (2, (270, 280), (140, 290)),  # several tiles
        (17, (90, 130), (70, 100)),
        (20, (100, 90), (5, 6)),  # a thumbnail: few pixels of the image are sampled
        (1, (120, 120), (9, 10)),
        (3, (9, 8), (150, 7)),  # many outputs to a pixel
    ],
    ids=str,
)
def test_sizes_that_change_the_path(kernels, channels, size, out, padding):
    if kernels == "cuda" and DEVICE == "cpu" and channels * math.prod(size) > 40000:
        pytest.skip("slow under emulation")
    theta = batch("rotation", "zoom in")
    for mode in MODES:
        check(randn(2, channels, *size), theta, randn(2, channels, *out), mode, padding, False)


@only_native
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("channels", [1, 5])
def test_maps_that_many_outputs_share(channels, mode, padding):
    """Singular maps, and edges on which coordinates are clamped: more rows than a thread visits alone."""
    theta = batch("all zero", "singular", "zoom out", "shifted out")
    check(randn(4, channels, 12, 10), theta, randn(4, channels, 40, 36), mode, padding, False)


@only_native
@pytest.mark.parametrize("align_corners", [False, True])
def test_more_reflections_than_are_told_apart(align_corners):
    theta = torch.tensor([turn(31, 150.0, 0.3, 0.1), turn(3, 20.0, 0.3, 0.1)]).to(DEVICE)
    check(randn(2, 1, 3, 4), theta, randn(2, 1, 9, 8), "bilinear", "reflection", align_corners)


@only_native
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("batch_of_one", [False, True])
def test_repetition_changes_no_bit(channels_last, batch_of_one):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    theta = batch("rotation", "singular", "zoom in")
    x = randn(1 if batch_of_one else 3, 4, 20, 17).to(memory_format=layout)
    args = (x, theta, randn(3, 4, 33, 20), "bilinear", "border", True)
    for first, again in zip(ours(*args), ours(*args), strict=True):
        assert torch.equal(first, again)


@only_cpu
@pytest.mark.parametrize("x_batch, channels", [(3, 1), (1, 1), (1, 5), (3, 20)])
def test_threads(x_batch, channels):
    """Also more threads than images and blocks of channels: parts of an image's sums are then added up."""
    theta = batch("rotation", "zoom in", "half turn")
    x, grad_out = randn(x_batch, channels, 60, 50), randn(3, channels, 110, 100)
    threads = torch.get_num_threads()
    outs = []
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            results = check(x, theta, grad_out, "bilinear", "zeros", False)
            again = ours(x, theta, grad_out, "bilinear", "zeros", False)
            assert all(torch.equal(a, b) for a, b in zip(results, again, strict=True))
            outs.append(results[0])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(outs[0], out) for out in outs)
