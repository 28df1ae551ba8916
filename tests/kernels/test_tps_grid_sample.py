"""tps_grid_sample: where control points are sampled, and what kernels do at every edge, by the one rule."""

import itertools
import math

import pytest
import torch
from namesakes import tps_grid
from support import KERNEL_BACKENDS

import fastdl.functional as F
from fastdl import backends, nn
from fastdl.models.geomatch import Warp
from fastdl.ops.tps_grid_sample import MOST_POINTS, regular_points
from fastdl.parity.tolerance import judge

NAN, INF = float("nan"), float("inf")
MODES, PADDINGS = ("bilinear", "nearest"), ("zeros", "border", "reflection")
RULES = list(itertools.product(MODES, PADDINGS, (False, True)))

every_kernel = pytest.mark.parametrize("kernel", KERNEL_BACKENDS)
slow_interpreted = pytest.mark.slow_interpreted


def regular(count):
    return regular_points(count).float()


def turned(count, scale=1.0, bend=0.1, batch=2):
    """A regular grid, turned and scaled, every point moved at random: numbers without pattern."""
    x, y = regular(count).unbind(1)
    grid = scale * torch.stack([0.9 * x - 0.3 * y + 0.07, 0.35 * x + 0.85 * y - 0.11], 1)
    return grid + bend * torch.randn(batch, count, 2)


def run(x, points, grad_out, controls=None, mode="bilinear", padding_mode="zeros", align_corners=False):
    """The output in the dtype of x, the gradients of input and points."""
    x, points = x.detach().requires_grad_(), points.detach().requires_grad_()
    size = (len(points), x.shape[1], *grad_out.shape[2:])
    out = F.tps_grid_sample(x, points, size, controls, mode, padding_mode, align_corners)
    return out.detach(), *torch.autograd.grad(out, (x, points), grad_out)


def check(kernel, device, x, points, grad_out, *rules):
    """``kernel`` against the reference in float32 and float64; half precision is rounded from those.

    Where the rule fails, further images are drawn and all are judged as one: the gradient of a few points
    says little about rounding, torch may be exact by luck.
    """
    controls, *rules = rules or [None]
    draws = [(x, points, grad_out)]
    results = compared(kernel, device, draws, controls, rules)
    if any(judge(*three).failure for three in results.values()):
        draws += [(torch.randn_like(x), points, torch.randn_like(grad_out)) for _ in range(7)]
        results = compared(kernel, device, draws, controls, rules)
    for name, three in results.items():
        assert not (failure := judge(*three).failure), f"{name}: {failure}"
    return [ours[0] for ours, _, _ in results.values()]


def compared(kernel, device, draws, controls, rules):
    """By name: what ``kernel``, the reference and the oracle make of all draws."""
    found = {"out": [], "input": [], "points": []}
    for draw in draws:
        x, points, grad_out = (t.to(device) for t in draw)
        placed = controls if controls is None else controls.to(device)
        with backends.use_backend(kernel):
            results = run(x, points, grad_out, placed, *rules)
        with backends.use_backend("reference"):
            expected, oracle = (
                run(
                    *(t.to(dtype) for t in (x, points, grad_out)),
                    placed if placed is None else placed.to(dtype),
                    *rules,
                )
                for dtype in (torch.float32, torch.float64)
            )
        for name, ours, torchs, exact in zip(found, results, expected, oracle, strict=True):
            found[name].append((ours, torchs.to(ours.dtype), exact))
    return {
        name: tuple(torch.stack(each) for each in zip(*all_of, strict=True)) for name, all_of in found.items()
    }


# ------------------------------------------------------------------------------------- what a spline is


@pytest.mark.parametrize("count", [4, 9, 25])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding", PADDINGS)
def test_identity_reproduces_the_image(count, align_corners, padding, on, device):
    x = torch.rand(2, 3, 7, 9, device=device)
    points = regular(count).expand(2, -1, -1).to(device)
    out = F.tps_grid_sample(x, points, x.shape, None, "bilinear", padding, align_corners)
    torch.testing.assert_close(out, x, atol=2e-4, rtol=0)
    nearest = F.tps_grid_sample(x, points, x.shape, None, "nearest", padding, align_corners)
    assert torch.equal(nearest, x)


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_affine_points_are_affine_grid_sample(rules, on, device):
    """A spline through points that an affine map moved is that map."""
    theta = torch.tensor([[0.81, -0.43, 0.107], [0.47, 0.83, -0.153]], device=device).repeat(2, 1, 1)
    theta[1, :, :2] *= 1.7
    controls = regular(9).to(device)
    points = controls @ theta[:, :, :2].mT + theta[:, None, :, 2]
    x, size = torch.rand(2, 3, 8, 9, device=device), (2, 3, 7, 11)
    mode, padding, align_corners = rules
    out = F.tps_grid_sample(x, points, size, None, mode, padding, align_corners)
    expected = F.affine_grid_sample(x, theta, size, mode, padding, align_corners)
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("count", [3, 4, 7, 25])
def test_each_control_point_is_sampled_at_its_point(count, on, device):
    """With pixels for control points, of an image that holds its own coordinates."""
    side = 9
    pixels = torch.randperm(side * side)[:count]
    rows, columns = pixels // side, pixels % side
    centres = (2 * torch.arange(side) + 1) / side - 1
    controls = torch.stack([centres[columns], centres[rows]], 1)
    points = 0.8 * controls + 0.1 * torch.randn(2, count, 2)
    image = torch.stack(torch.meshgrid(centres, centres, indexing="xy"))[None]
    out = F.tps_grid_sample(
        image.to(device), points.to(device), (2, 2, side, side), controls.to(device), padding_mode="border"
    )
    found = out[:, :, rows, columns].mT.cpu()
    torch.testing.assert_close(found, points.clamp(centres[0], centres[-1]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("padding", ["zeros", "border"])
def test_is_the_warp_of_geometric_matching(padding, on, device):
    """fastdl.models.geomatch.Warp, which keeps a basis in memory: the outputs and the gradients."""
    warp, size = Warp("tps", 12, padding).to(device), (2, 1, 12, 12)
    x, points = torch.rand(2, 1, 10, 10, device=device), turned(9).to(device)
    weights = torch.randn(size, device=device)
    ours, theirs = (
        (out, *torch.autograd.grad(out, inputs, weights))
        for inputs in [(x.clone().requires_grad_(), points.clone().requires_grad_()) for _ in range(1)]
        for out in (
            F.tps_grid_sample(*inputs, size, padding_mode=padding),
            warp(inputs[0], inputs[1].flatten(1)),
        )
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)


def test_bends_by_the_formula():
    """One point moved, by hand: U(r) = r^2 log r^2 and w orthogonal to the affine maps."""
    points = regular(9)[None].double()
    points[0, 4, 0] = 0.5
    (x, y) = tps_grid(points, (1, 1, 5, 5), None, True)[0].unbind(2)
    torch.testing.assert_close(x[2, 2], torch.tensor(0.5, dtype=torch.float64))
    for row, column in itertools.product((0, 2, 4), repeat=2):
        if (row, column) != (2, 2):
            assert abs(x[row, column] - (column / 2 - 1)) < 1e-12
    assert (y - torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]).abs().max() < 1e-12
    image = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, 5, dtype=torch.float64)] * 2, indexing="xy"))[
        None
    ]
    out = F.tps_grid_sample(image, points, (1, 2, 5, 5), padding_mode="border", align_corners=True)[0]
    torch.testing.assert_close(out, torch.stack([x, y]).clamp(-1, 1))


# ------------------------------------------------------------------------------ the kernels, at every edge


@pytest.mark.parametrize("rules", RULES, ids=str)
@every_kernel
def test_every_rule(kernel, rules, device):
    points = [turned(9), turned(9, 3.0), turned(9, 0.3, 0.03), turned(9, 1.0, 0.6)]
    points = torch.cat([each[:1] for each in points])
    check(kernel, device, torch.randn(4, 2, 6, 9), points, torch.randn(4, 2, 8, 7), None, *rules)


@pytest.mark.parametrize("count", [3, 5, 16, 17, 65, MOST_POINTS])
@every_kernel
def test_any_number_of_points(kernel, count, device):
    """Of one's own; beside, on and between the pixels."""
    controls = torch.rand(count, 2) * 2.4 - 1.2
    controls[:3] = torch.tensor([[-1.1, -0.9], [1.2, -1.0], [0.1, 1.1]])  # a triangle: not nearly on a line
    n = 4 if count < 64 else 1
    points = 0.9 * controls + 0.05 * torch.randn(n, count, 2) / math.sqrt(count)
    check(kernel, device, torch.randn(n, 2, 5, 6), points, torch.randn(n, 2, 4, 4), controls)


@every_kernel
def test_one_point_too_many_goes_to_the_reference(kernel, device):
    x, count = torch.rand(1, 1, 4, 4, device=device), MOST_POINTS + 1
    points = torch.rand(1, count, 2, device=device)
    with backends.use_backend(kernel), pytest.raises(RuntimeError, match="control points have no kernel"):
        F.tps_grid_sample(x, points, x.shape, points[0])
    with backends.record() as choices:
        F.tps_grid_sample(x, points, x.shape, points[0])
    assert choices[0].backend == "reference"


@pytest.mark.parametrize("sizes", [(1, 1, 3, 4), (3, 4, 1, 1), (1, 5, 4, 1), (1, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding", PADDINGS)
@every_kernel
def test_sizes_of_one(kernel, sizes, align_corners, padding, device):
    x, grad_out = torch.randn(2, 3, *sizes[:2]), torch.randn(2, 3, *sizes[2:])
    check(kernel, device, x, turned(4), grad_out, None, "bilinear", padding, align_corners)


@pytest.mark.parametrize("channels", [1, 3, 19, pytest.param(35, marks=slow_interpreted)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "sliced"])
@every_kernel
def test_layouts(kernel, channels, layout, device):
    x, grad_out, points = torch.randn(2, channels, 9, 10), torch.randn(2, channels, 8, 9), turned(9)
    if layout == "channels_last":
        x = x.to(memory_format=torch.channels_last)
    elif layout == "transposed":
        x, grad_out = x.mT, grad_out.to(memory_format=torch.channels_last)
        points = points.mT.contiguous().mT
    elif layout == "sliced":
        x, grad_out = x[:, ::2, 1:, ::2], grad_out[:, ::2, 1:]
    check(kernel, device, x, points, grad_out)


@pytest.mark.parametrize("image", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("points_dtype", [torch.float32, torch.float16, torch.bfloat16])
@every_kernel
def test_half_precision(kernel, image, points_dtype, device):
    """The output of half precision, the coordinates never."""
    x, points = torch.randn(2, 2, 5, 6).to(image), turned(9).to(points_dtype)
    out, grad_x, grad_points = check(kernel, device, x, points, torch.randn(2, 2, 6, 5).to(image))
    assert (out.dtype, grad_x.dtype, grad_points.dtype) == (image, image, points_dtype)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding", PADDINGS)
@every_kernel
def test_one_image_for_all_splines(kernel, mode, padding, device):
    points = turned(9, batch=3)
    check(kernel, device, torch.randn(1, 2, 5, 6), points, torch.randn(3, 2, 4, 7), None, mode, padding)


@pytest.mark.parametrize(
    "padding", ["zeros", *(pytest.param(each, marks=slow_interpreted) for each in PADDINGS[1:])]
)
@every_kernel
def test_many_tiles(kernel, padding, device):
    """Several tiles of input and output, folds among them; sums from more than one program."""
    points = turned(9, 1.1, 0.3, 1)
    x, grad_out = torch.randn(1, 1, 25, 29), torch.randn(1, 1, 33, 50)
    check(kernel, device, x, points, grad_out, None, "bilinear", padding)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding", PADDINGS)
@every_kernel
def test_everything_sampled_in_one_place(kernel, mode, padding, device):
    """All points the same: every output falls on the same pixels, or on none."""
    points = torch.tensor([[[0.13, -0.27]], [[5.1, 4.7]]]).expand(2, 9, 2)
    check(kernel, device, torch.randn(2, 2, 9, 10), points, torch.randn(2, 2, 14, 13), None, mode, padding)


@pytest.mark.parametrize("kernel", [k for k in KERNEL_BACKENDS if k == "triton"])
@pytest.mark.parametrize("channels_last", [False, pytest.param(True, marks=slow_interpreted)])
def test_wide_offsets_change_nothing(kernel, channels_last, device):
    from fastdl.kernels import _runtime

    x, points = torch.randn(2, 3, 9, 10, device=device), turned(9).to(device)
    x = x.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    args = x, points, torch.randn(2, 3, 9, 34, device=device), None, "bilinear", "border"
    with backends.use_backend(kernel):
        narrow = run(*args)
        with _runtime.force_wide():
            wide = run(*args)
    assert all(torch.equal(a, b) for a, b in zip(narrow, wide, strict=True))


@slow_interpreted
@pytest.mark.parametrize("shared", [False, True])
@every_kernel
def test_repetition_changes_no_bit(kernel, shared, device):
    x, points = torch.randn(1 if shared else 2, 4, 12, 11, device=device), turned(9).to(device)
    grad_out = torch.randn(2, 4, 22, 15, device=device)
    with backends.use_backend(kernel):
        first, again = (run(x, points, grad_out, None, "bilinear", "reflection") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


# ---------------------------------------------------------------------------------- what is not a number


@pytest.mark.parametrize("value", [1e7, -1e20, 3e38, INF, -INF, NAN])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding", PADDINGS)
@every_kernel
def test_no_points_read_or_write_outside(kernel, value, mode, padding, device):
    """Far coordinates read the padding, those that are no number NaN or the edge (pytorch#24823, #35202)."""
    frame = torch.full((3, 1, 8, 9), 1e9, device=device)
    x = frame[1:2, :, 2:-2, 2:-2]
    x.copy_(torch.rand(x.shape) + 1)
    points = regular(9)[None].to(device) + value
    with backends.use_backend(kernel):
        out, grad_x, _ = run(x, points, torch.randn(1, 1, 4, 5, device=device), None, mode, padding)
    if padding != "zeros":
        assert torch.all((out >= 1) & (out <= 2)) and torch.all(grad_x.abs() < 100)
    elif mode == "nearest" or abs(value) < 1e10:
        assert torch.all(out == 0)
    else:
        assert torch.all((out == 0) | out.isnan())
    if padding == "zeros":
        assert torch.all(grad_x == 0)


@every_kernel
def test_points_that_are_no_number_spoil_only_their_own_sample(kernel, device):
    x, points = torch.randn(1, 1, 5, 6, device=device), turned(9, batch=3).to(device)
    grad_out = torch.randn(3, 1, 4, 5, device=device)
    points[1, 4, 0] = NAN
    good = torch.tensor([0, 2], device=device)
    with backends.use_backend(kernel):
        out, grad_x, grad_points = run(x, points, grad_out)
        out_good, grad_x_good, grad_points_good = run(x, points[good], grad_out[good])
    assert torch.equal(out[good], out_good) and torch.equal(grad_x, grad_x_good)
    assert torch.equal(grad_points[good], grad_points_good) and out[1].isnan().all()


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("padding", ["zeros", "reflection"])
@every_kernel
def test_nan_and_inf_spread_as_in_torch(kernel, value, padding, device):
    x, grad_out = torch.randn(2, 1, 6, 7), torch.randn(2, 1, 7, 6)
    x[:, :, 2, 3] = value
    grad_out[:, :, 3, 2] = value
    check(kernel, device, x, turned(9, 0.8), grad_out, None, "bilinear", padding)


# --------------------------------------------------------------------------------- gradients by torch


def test_gradient_of_control_points(device):
    """By the reference, to any order; by finite differences."""
    x = torch.randn(1, 2, 5, 5, dtype=torch.float64, device=device, requires_grad=True)
    controls = regular_points(4).to(device) + 0.1 * torch.rand(4, 2, device=device).double()
    points = (0.8 * controls[None] + 0.05).requires_grad_()
    controls.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *a: F.tps_grid_sample(a[0], a[1], (1, 2, 4, 3), a[2]), (x, points, controls)
    )
    assert torch.autograd.gradgradcheck(
        lambda p, c: F.tps_grid_sample(x.detach(), p, (1, 2, 4, 3), c), (points, controls)
    )
    with backends.record() as choices:
        F.tps_grid_sample(x.float(), points.float(), (1, 2, 4, 3), controls.float())
    assert choices[0].backend == "reference" and "control_points" in choices[0].reason


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
@every_kernel
def test_one_gradient_alone_is_the_same(kernel, wanted, device):
    x, points = torch.randn(2, 3, 6, 7, device=device), turned(9).to(device)
    grad_out = torch.randn(2, 3, 5, 6, device=device)
    with backends.use_backend(kernel):
        both = run(x, points, grad_out)[1:]
        inputs = [t.detach().requires_grad_(want) for t, want in zip((x, points), wanted, strict=True)]
        out = F.tps_grid_sample(*inputs, (2, 3, 5, 6))
        asked = [t for t in inputs if t.requires_grad]
        (alone,) = torch.autograd.grad(out, asked, grad_out)
    assert torch.equal(alone, both[wanted.index(True)])


def test_control_points_without_a_spline(on):
    """On a line, or one of them twice; a hair beside the line there is one."""
    x, points = torch.rand(2, 1, 4, 4), torch.rand(2, 4, 2)
    line = torch.tensor([[-1.0, -1.0], [0.0, 0.0], [0.5, 0.5], [1.0, 1.0]])
    if on == "reference":
        with pytest.raises(ValueError, match="do not lie on one line"):
            F.tps_grid_sample(x, points, x.shape, line)
        twice = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [0.0, 1.0], [0.0, 1.0]])
        with pytest.raises(torch.linalg.LinAlgError):
            F.tps_grid_sample(x, points, x.shape, twice)
        beside = line + torch.tensor([[0.0, 0.0], [0.0, 0.01], [0.0, 0.0], [0.0, 0.0]])
        assert F.tps_grid_sample(x, points, x.shape, beside).isfinite().all()


def test_module_is_the_function(on, device):
    x, points = torch.rand(2, 3, 6, 7, device=device), turned(9).to(device)
    module = nn.TPSGridSample((5, 4), padding_mode="border")
    expected = F.tps_grid_sample(x, points, (2, 3, 5, 4), padding_mode="border")
    assert torch.equal(module(x, points), expected)
    assert nn.TPSGridSample()(x, points).shape == x.shape
    own = nn.TPSGridSample(control_points=regular(9)).to(device)
    assert torch.equal(own(x, points), F.tps_grid_sample(x, points, x.shape, regular(9).to(device)))
    assert not own.state_dict() and "size=(5, 4)" in repr(module)


def test_torch_func(device):
    """vmap over splines, over control points too; grad against autograd."""
    x, points, controls = torch.rand(2, 1, 6, 6), turned(9), regular(9) + 0.1 * torch.rand(2, 9, 2)
    x, points, controls = (t.to(device) for t in (x, points, controls))

    def one(x, points, controls=None):
        return F.tps_grid_sample(x[None], points[None], (1, 1, 5, 4), controls)[0]

    with backends.use_backend("reference"):
        every = F.tps_grid_sample(x, points, (2, 1, 5, 4))
        torch.testing.assert_close(torch.vmap(one)(x, points), every)
        each = torch.stack([one(*args) for args in zip(x, points, controls, strict=True)])
        torch.testing.assert_close(torch.vmap(one)(x, points, controls), each)
        grad = torch.func.grad(lambda p: F.tps_grid_sample(x, p, (2, 1, 5, 4)).square().sum())(points)
        points.requires_grad_()
        out = F.tps_grid_sample(x, points, (2, 1, 5, 4))
        torch.testing.assert_close(grad, torch.autograd.grad(out.square().sum(), points)[0])
