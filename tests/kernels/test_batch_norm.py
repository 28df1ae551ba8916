"""batch_norm's kernels as they fill their outputs, held against torch's own op and a float64 oracle.

The Triton kernels (interpreted where there is no GPU) and, where they were built, those of csrc/cpu in each
capability that this CPU has, and of csrc/cuda.
"""

import math
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
    from fastdl.kernels import _runtime, batch_norm_activation, batch_norm_tiles
    from fastdl.kernels import batch_norm as triton_batch_norm
except ImportError:
    triton_batch_norm = None

# NumPy, which interprets, tells of the NaN and infinities that some cases are about.
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")


def _fills(library):
    return SimpleNamespace(forward=library.batch_norm_forward, backward=library.batch_norm_backward)


def _kernels():
    """Every implementation that this machine can run, by name."""
    found = {}
    if triton_batch_norm is not None and (DEVICE == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"):
        found["triton"] = triton_batch_norm
    if "cpu" in NATIVE_BACKENDS:
        best = native.CAPABILITIES.index(torch.backends.cpu.get_cpu_capability().lower())
        for name in native.CAPABILITIES[: best + 1]:
            path = native.HERE / f"libfastdl_cpu_{name}.so"
            if path.exists():
                found[f"cpu {name}"] = _fills(native._bindings()[0].Library(str(path)))
    if "cuda" in NATIVE_BACKENDS:
        found["cuda"] = native.kernel("cuda", "batch_norm")
    return found


KERNELS = _kernels()
CPU_KERNELS = [name for name in KERNELS if name.startswith("cpu")]
batch_norm = None  # the implementation under test: see `kernels` and `path`

if not KERNELS:
    pytest.skip("no kernel of batch_norm runs here", allow_module_level=True)


@pytest.fixture(params=KERNELS)
def kernels(request, monkeypatch):
    """Each implementation in turn."""
    monkeypatch.setattr(sys.modules[__name__], "batch_norm", KERNELS[request.param])
    return request.param


PATHS = [
    *((name, way) for name in KERNELS if name == "triton" for way in ("one launch", "three launches")),
    *((name, "1 thread") for name in CPU_KERNELS),
    *((name, "3 threads") for name in CPU_KERNELS[-1:]),
    *((name, "") for name in KERNELS if name == "cuda"),
]


@pytest.fixture(params=PATHS, ids=lambda path: " ".join(path).rstrip())
def path(request, monkeypatch):
    """Each implementation, by each way through it that small tensors can be led."""
    name, way = request.param
    monkeypatch.setattr(sys.modules[__name__], "batch_norm", KERNELS[name])
    if way.endswith("launches") or way.endswith("launch"):
        _tiny_tiles(monkeypatch, way == "one launch")
    threads = torch.get_num_threads()
    if "thread" in way:
        torch.set_num_threads(int(way[0]))
    yield name
    torch.set_num_threads(threads)


def _tiny_tiles(monkeypatch, one):
    """Triton: one launch or three; tiny tiles, so that small tensors have many, and three splits of them."""
    monkeypatch.setattr(batch_norm_tiles, "ONE_LAUNCH_TILES", 10**6 if one else 0)
    if not one:
        monkeypatch.setattr(batch_norm_tiles, "program_target", lambda x: 3 * x.shape[1])
    monkeypatch.setattr(batch_norm_tiles, "TILE", 64)
    monkeypatch.setattr(batch_norm_activation, "BLOCK", 64)


MOMENTUM, EPS = 0.1, 1e-5
ACTIVATIONS = {
    "": lambda x, param: x,
    "relu": lambda x, param: F.relu(x),
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "sigmoid": lambda x, param: torch.sigmoid(x),
    "tanh": lambda x, param: torch.tanh(x),
    "softplus": lambda x, param: F.softplus(x),
}
PARAMS = {"leaky_relu": 0.01, "elu": 1.0}


def tensors(shape, dtype, channels_last=False, residual=False, affine=True, parameters=torch.float32):
    """Arguments of one call on DEVICE, by name."""
    generator = torch.Generator().manual_seed(sum(shape))

    def normal(*size):
        return torch.randn(size, generator=generator)

    c = shape[1]

    def laid_out(t):
        t = t.to(dtype)
        if channels_last:
            t = t.contiguous(memory_format={4: torch.channels_last, 5: torch.channels_last_3d}[t.dim()])
        return t.to(DEVICE)

    case = {
        "x": laid_out(normal(*shape) * 2 + 1),
        "grad_out": laid_out(normal(*shape)),
        "residual": laid_out(normal(*shape)) if residual else None,
        "weight": normal(c) + 1 if affine else None,
        "bias": normal(c) if affine else None,
        "running_mean": normal(c),
        "running_var": normal(c).abs() + 0.5,
    }
    for name in ("weight", "bias", "running_mean", "running_var"):
        if case[name] is not None:
            case[name] = case[name].to(DEVICE, parameters)
    return case


def fill(case, *, training, activation="", saved="recompute", skip=()):
    """Outputs of forward and backward; ``saved``: what backward gets for the activation; ``skip``: Nones."""
    x, c = case["x"], case["x"].shape[1]
    wants = {"mean", "invstd", "mask", "grad_x", "grad_weight", "grad_bias", "grad_residual"} - set(skip)
    if saved != "mask":
        wants.discard("mask")
    if case["residual"] is None:
        wants.discard("grad_residual")
    if case["weight"] is None:
        wants -= {"grad_weight", "grad_bias"}

    def blank(name, like=None, **kwargs):
        if name not in wants:
            return None
        return torch.full_like(like, math.nan) if like is not None else torch.full(**kwargs, device=DEVICE)

    result = {
        "out": torch.full_like(x, math.nan),
        "mean": blank("mean", size=(c,), fill_value=math.nan),
        "invstd": blank("invstd", size=(c,), fill_value=math.nan),
        "mask": blank("mask", size=((x.numel() + 7) // 8,), fill_value=0xAA, dtype=torch.uint8),
        "running_mean": case["running_mean"].clone(),
        "running_var": case["running_var"].clone(),
    }
    options = {
        "training": training,
        "activation": activation,
        "activation_param": PARAMS.get(activation, 0.0),
    }
    batch_norm.forward(
        x, case["weight"], case["bias"], case["residual"], result["running_mean"], result["running_var"],
        result["out"], result["mean"], result["invstd"], result["mask"], momentum=MOMENTUM, eps=EPS,
        **options,
    )  # fmt: skip
    if result["mean"] is not None:
        gradients = {
            "grad_x": blank("grad_x", x),
            "grad_weight": blank("grad_weight", case["weight"]),
            "grad_bias": blank("grad_bias", case["bias"]),
            "grad_residual": blank("grad_residual", x),
        }
        batch_norm.backward(
            case["grad_out"], x, case["weight"], case["bias"], result["out"] if saved == "out" else None,
            result["mean"], result["invstd"], result["mask"], *gradients.values(), **options,
        )  # fmt: skip
        result |= gradients
    return {name: value for name, value in result.items() if value is not None}


def torch_says(case, dtype, *, training, activation="", device=DEVICE):
    """The same by torch's own ops: computed in float64 (the oracle), or in the dtypes given (None)."""
    case = {k: None if v is None else v.clone().to(device, dtype or v.dtype) for k, v in case.items()}
    leaves = {"x": "grad_x", "weight": "grad_weight", "bias": "grad_bias", "residual": "grad_residual"}
    leaves = {case[k].requires_grad_(): name for k, name in leaves.items() if case[k] is not None}
    x = case["x"]
    y = F.batch_norm(
        x, case["running_mean"], case["running_var"], case["weight"], case["bias"], training, MOMENTUM, EPS
    )
    if case["residual"] is not None:
        y = y + case["residual"]
    out = ACTIVATIONS[activation](y, PARAMS.get(activation))
    *gradients, dz = torch.autograd.grad(out, [*leaves, y], case["grad_out"])
    result = dict(zip(leaves.values(), gradients, strict=True), out=out.detach())
    result |= {name: case[name] for name in ("running_mean", "running_var")}
    axes = [i for i in range(x.dim()) if i != 1]
    wide = x.detach().to(torch.float64 if dtype else torch.float32)
    if training:
        result["mean"] = wide.mean(axes)
        result["invstd"] = (wide.var(axes, correction=0) + EPS).rsqrt()
    else:
        result["mean"] = case["running_mean"]
        result["invstd"] = (case["running_var"].to(wide.dtype) + EPS).rsqrt()
    per_channel = [1, -1] + [1] * (x.dim() - 2)
    normal = (wide - result["mean"].view(per_channel)) * result["invstd"].view(per_channel)
    result["|grad_weight|"], result["|grad_bias|"] = (dz * normal).abs().sum(axes), dz.abs().sum(axes)
    return result


def hold(ours, case, **options):
    """Our error is at most twice torch's plus one rounding; NaN and infinity stand where torch has them.

    torch sums in float64 on a CPU, so the rounding of a sum is that of the sum of its terms' magnitudes.
    """
    oracle, theirs = torch_says(case, torch.float64, **options), torch_says(case, None, **options)
    for name in set(ours) - {"mask"}:
        exact = oracle[name]
        finite = exact.isfinite()
        assert torch.equal(ours[name][~finite].isnan(), exact[~finite].isnan()), name
        error = (ours[name] - exact)[finite].abs().amax()
        allowed = 2 * (theirs[name] - exact)[finite].abs().amax()
        rounding = torch.finfo(ours[name].dtype).eps * oracle.get(f"|{name}|", exact)[finite].abs().amax()
        assert error <= allowed + rounding, (name, error, allowed, rounding)


SHAPES = [  # shape, channels-last: contiguous sizes that divide by 16, 8, 4, 1; whole and ragged tiles
    ((4, 2, 4, 8), False),
    ((2, 3, 7, 7), False),
    ((3, 2, 2, 5, 4), False),
    ((6, 3, 50), False),
    ((2, 16, 5, 4), True),
    ((3, 5, 4, 3), True),
    ((2, 24, 2, 2, 2), True),
    ((21, 20), False),
    ((2, 1, 6, 6), False),
    ((1, 3, 9, 12), False),
]


@pytest.mark.parametrize(("shape", "channels_last"), SHAPES)
def test_training(shape, channels_last, path):
    case = tensors(shape, torch.float32, channels_last)
    hold(fill(case, training=True, activation="relu"), case, training=True, activation="relu")


@pytest.mark.parametrize(("shape", "channels_last"), SHAPES)
def test_training_residual(shape, channels_last, path):
    """The mask is written and read with whole bytes inside a row and with bytes across rows."""
    case = tensors(shape, torch.float32, channels_last, residual=True)
    hold(fill(case, training=True, activation="relu", saved="mask"), case, training=True, activation="relu")


@pytest.mark.parametrize(("shape", "channels_last"), SHAPES)
def test_evaluation(shape, channels_last, path):
    case = tensors(shape, torch.float32, channels_last, residual=True)
    hold(fill(case, training=False, activation="relu", saved="mask"), case, training=False, activation="relu")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("parameters", [torch.float32, "same"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_half_precision(dtype, parameters, channels_last, path):
    parameters = dtype if parameters == "same" else parameters
    case = tensors((4, 3, 4, 8), dtype, channels_last, residual=True, parameters=parameters)
    for training in (True, False):
        options = {"training": training, "activation": "relu"}
        hold(fill(case, saved="mask", **options), case, **options)


@pytest.mark.parametrize("activation", [a for a in ACTIVATIONS if a != "relu"])
def test_activations(activation, kernels):
    """Recomputed from x without a residual, read off the output with one."""
    for residual, saved in ((False, "recompute"), (True, "out")):
        case = tensors((4, 3, 5, 4), torch.float32, residual=residual)
        for training in (True, False):
            options = {"training": training, "activation": activation}
            hold(fill(case, saved=saved, **options), case, **options)


def test_without_affine(path):
    case = tensors((4, 3, 5, 4), torch.float32, affine=False)
    for training in (True, False):
        hold(fill(case, training=training), case, training=training)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "skip",
    [
        ("grad_x",),
        ("grad_weight", "grad_bias"),
        ("grad_x", "grad_weight", "grad_bias"),
        ("grad_bias", "grad_residual"),
        ("grad_x", "grad_residual", "grad_weight"),
    ],
)
def test_unwanted_gradients(training, skip, path):
    """What is None is skipped and changes nothing in the rest."""
    case = tensors((4, 2, 4, 8), torch.float32, residual=True)
    options = {"training": training, "activation": "relu", "saved": "mask"}
    full, part = fill(case, **options), fill(case, skip=skip, **options)
    assert set(full) - set(part) == set(skip)
    for name, value in part.items():
        assert torch.equal(value, full[name]), name


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_three_ways_back_through_relu(channels_last, dtype, path):
    """Mask, output and recomputed pre-activation give the same gradients, bit for bit."""
    case = tensors((4, 3, 5, 5), dtype, channels_last)
    ways = [
        fill(case, training=True, activation="relu", saved=saved) for saved in ("mask", "out", "recompute")
    ]
    for name in ("out", "grad_x", "grad_weight", "grad_bias"):
        for way in ways[1:]:
            assert torch.equal(way[name], ways[0][name]), name


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "elu"])
def test_kinks_as_the_output_has_them(activation, path, monkeypatch):
    """float16 rounds 1e-8 to 0, where relu's gradient is 0: whichever way back, and in torch."""
    monkeypatch.setitem(PARAMS, "elu", 2.0)  # with 1 it has no kink
    case = tensors((4, 3, 5, 4), torch.float16)
    case["x"].zero_()
    case["running_mean"].zero_()
    case["bias"].copy_(torch.tensor([1e-8, -1e-8, 1e-7]))
    options = {"training": False, "activation": activation}
    theirs = torch_says(case, None, **options)
    for saved in ("recompute", "out", *(["mask"] if activation == "relu" else [])):
        ours = fill(case, saved=saved, **options)
        for name in ("out", "grad_x", "grad_bias"):
            torch.testing.assert_close(ours[name], theirs[name], rtol=2e-3, atol=1e-5, msg=f"{saved} {name}")


@pytest.mark.parametrize(("shape", "channels_last"), [((2, 3, 4, 4), False), ((2, 3, 3, 3), True)])
def test_mask_bits(shape, channels_last, kernels):
    """Bit i % 8 of byte i // 8 is element i in memory order; NaN passes, zero does not; spare bits are 0."""
    case = tensors(shape, torch.float32, channels_last, residual=True, affine=False)
    case["running_mean"].zero_()
    case["running_var"].fill_(1 - EPS)
    case["residual"].zero_()
    flat = case["x"].as_strided((case["x"].numel(),), (1,))
    flat[5], flat[6], flat[7], flat[8] = math.nan, 0.0, -0.0, math.inf
    mask = fill(case, training=False, activation="relu", saved="mask")["mask"]
    bits = (mask[:, None] >> torch.arange(8, device=DEVICE, dtype=torch.uint8)) & 1
    bits = bits.flatten().bool()
    assert torch.equal(bits[: flat.numel()], ~(flat <= 0))
    assert not bits[flat.numel() :].any()


@pytest.mark.parametrize("channels_last", [False, True])
def test_large_mean_small_deviation(channels_last, path):
    case = tensors((4, 3, 8, 8), torch.float32, channels_last)
    case["x"] = 1e4 + 0.05 * case["x"]
    hold(fill(case, training=True), case, training=True)


def test_drifting_mean(path):
    """Splits with very different means: the combination, not only the sums, must keep its digits."""
    case = tensors((16, 2, 8, 8), torch.float32)
    case["x"] += 100 * (torch.arange(16.0, device=DEVICE) % 4)[:, None, None, None]
    result = fill(case, training=True)
    del result["running_var"]  # good to three roundings rather than one: torch sums in float64 on a CPU
    hold(result, case, training=True)


@pytest.mark.parametrize("channels_last", [False, True])
def test_constant_channel(channels_last, path):
    """The variance of a constant is 0, not merely small, and never negative."""
    case = tensors((4, 3, 7, 5), torch.float32, channels_last)
    case["x"].copy_(torch.tensor([0.1, 12345.678, -3e-6])[None, :, None, None].expand(4, 3, 7, 5))
    result = fill(case, training=True)
    assert torch.equal(result["mean"], case["x"][0, :, 0, 0])
    torch.testing.assert_close(result["invstd"], torch.full_like(result["invstd"], EPS**-0.5))
    assert torch.equal(result["out"], case["bias"][None, :, None, None].expand(4, 3, 7, 5))
    torch.testing.assert_close(result["running_var"], (1 - MOMENTUM) * case["running_var"])


def test_huge_values(path):
    """Squares overflow float32: infinite variance, hence the bias, as torch has it on a CPU; no NaN.

    Not in the float64 sums of csrc/cpu, which normalise all the same.
    """
    case = tensors((4, 3, 4, 5), torch.float32)
    case["x"] *= 1e30
    result, theirs = fill(case, training=True), torch_says(case, None, training=True, device="cpu")
    if path.startswith("cpu"):
        x = case["x"].double()
        scale = case["weight"].double() * (x.var((0, 2, 3), correction=0) + EPS).rsqrt()
        out = (x - x.mean((0, 2, 3), keepdim=True)) * scale.view(3, 1, 1) + case["bias"].view(3, 1, 1)
        theirs["out"] = out.float()
    for name in ("out", "running_mean", "running_var"):
        torch.testing.assert_close(result[name].cpu(), theirs[name])
    assert result["grad_x"].isfinite().all()


def test_nan_and_infinity_stay_in_their_channel(path):
    case = tensors((4, 4, 4, 5), torch.float32)
    case["x"][1, 0, 2, 2] = math.nan
    case["x"][3, 1, 1, 1] = math.inf
    case["x"][0, 2, 0, 0] = -math.inf
    options = {"training": True, "activation": "relu"}
    result, theirs = fill(case, **options), torch_says(case, None, **options, device="cpu")
    for name in ("out", "grad_x", "grad_weight", "running_mean", "running_var"):
        assert torch.equal(result[name].isnan().cpu(), theirs[name].isnan()), name
        assert torch.equal(result[name].isinf().cpu(), theirs[name].isinf()), name


@pytest.mark.parametrize("channels_last", [False, True])
def test_gradients_that_cancel(channels_last, path):
    """The gradient of a sum of normalised values is 0: what is left is rounding, no more than torch's."""
    case = tensors((4, 3, 6, 8), torch.float32, channels_last)
    case["grad_out"] = torch.ones_like(case["x"])
    hold(fill(case, training=True), case, training=True)


def test_no_running_statistics(path):
    case = tensors((4, 3, 5, 4), torch.float32)
    full = fill(case, training=True)
    out, mean, invstd = torch.empty_like(case["x"]), full["mean"].clone(), full["invstd"].clone()
    batch_norm.forward(
        case["x"], case["weight"], case["bias"], None, None, None, out, mean, invstd, None,
        training=True, momentum=0.0, eps=EPS, activation="", activation_param=0.0,
    )  # fmt: skip
    assert torch.equal(out, full["out"])
    assert torch.equal(mean, full["mean"]) and torch.equal(invstd, full["invstd"])


def test_empty_batch(kernels):
    case = tensors((0, 3, 4, 4), torch.float32)
    result = fill(case, training=True)
    assert torch.equal(result["running_mean"], case["running_mean"])
    assert torch.equal(result["running_var"], case["running_var"])
    assert not result["mean"].any() and not result["invstd"].any()
    assert not result["grad_weight"].any() and not result["grad_bias"].any()
    result = fill(case, training=False)
    assert torch.equal(result["mean"], case["running_mean"])


# ------------------------------------------------------------------------------------ the kernels of csrc/cpu


@pytest.fixture(params=CPU_KERNELS)
def cpu(request, monkeypatch):
    """Each capability in turn."""
    monkeypatch.setattr(sys.modules[__name__], "batch_norm", KERNELS[request.param])
    return request.param


CPU_WAYS = [*((name, 3) for name in CPU_KERNELS), *((name, n) for name in CPU_KERNELS[-1:] for n in (1, 2))]


@pytest.fixture(params=CPU_WAYS, ids=lambda way: f"{way[0]} {way[1]} threads")
def cpu_threads(request, monkeypatch):
    """Each capability with three threads, the best also with one and two."""
    name, threads = request.param
    monkeypatch.setattr(sys.modules[__name__], "batch_norm", KERNELS[name])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    yield request.param
    torch.set_num_threads(before)


CPU_SHAPES = [  # large enough for threads; each leads to another part of csrc/cpu/batch_norm_layout.h
    ((9, 16, 18, 21), False),  # groups of channels; the mask's bytes lie across rows of 378 values
    ((40, 24, 7, 7), False),  # groups whose slab is a page
    ((3, 7, 51, 51), False),  # no group has whole bytes of the mask: the second pass goes by ranges
    ((3, 1, 130, 130), False),  # one channel, one run, cut in pieces
    ((2, 2, 300, 64), False),  # two channels among three threads: pieces of runs
    ((1, 5, 300, 41), False),  # pieces within a run
    ((600, 40, 3), False),  # short planes: rows of 120 columns
    ((4000, 3, 5), False),  # short planes, joined
    ((2, 6000, 2, 2), False),  # few rows, long
    ((5, 3, 71, 73), True),  # rows of 3, joined into whole vectors, the last one shorter
    ((4, 20, 31, 31), True),
    ((2, 64, 27, 27), True),
    ((3, 100, 17, 19), True),  # rows that no number of whole vectors fills
    ((67, 515), False),
    ((20001, 1), False),
    ((3, 4096), False),
]


@pytest.mark.parametrize(("shape", "channels_last"), CPU_SHAPES)
def test_cpu_paths(shape, channels_last, cpu_threads):
    """Training and evaluation, with and without the mask, whichever way the tensor is cut."""
    for residual, saved in ((False, "recompute"), (True, "mask")):
        case = tensors(shape, torch.float32, channels_last, residual=residual)
        for training in (True, False):
            options = {"training": training, "activation": "relu"}
            hold(fill(case, saved=saved, **options), case, **options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("shape", "channels_last"), CPU_SHAPES[::3])
def test_cpu_paths_half_precision(shape, channels_last, dtype, cpu):
    case = tensors(shape, dtype, channels_last, residual=True)
    hold(fill(case, training=True, activation="relu", saved="mask"), case, training=True, activation="relu")


@pytest.mark.parametrize("activation", [a for a in ACTIVATIONS if a != "relu"])
@pytest.mark.parametrize(("shape", "channels_last"), [((2, 3, 30, 31), False), ((3, 700, 3, 3), True)])
def test_cpu_staged_activations(shape, channels_last, activation, cpu):
    """Derivatives are staged 512 values at a time: runs and rows of more than a tile, and of part of one."""
    for residual, saved in ((False, "recompute"), (True, "out")):
        case = tensors(shape, torch.float32, channels_last, residual=residual)
        for training in (True, False):
            options = {"training": training, "activation": activation}
            hold(fill(case, saved=saved, **options), case, **options)


@pytest.mark.parametrize(("shape", "channels_last"), CPU_SHAPES)
def test_cpu_mask_changes_nothing_else(shape, channels_last, cpu_threads):
    """Asking for the mask may change the path, never a bit; and a second run gives the bits of the first."""
    case = tensors(shape, torch.float32, channels_last)
    options = {"training": True, "activation": "relu"}
    ways = [fill(case, saved=saved, **options) for saved in ("mask", "recompute", "recompute")]
    for name in set(ways[1]):
        for way in ways[1:]:
            assert torch.equal(way[name], ways[0][name]), name


@pytest.mark.parametrize(
    ("channels_last", "offset", "dtype"),
    [(False, 0, torch.float32), (True, 1, torch.float32), (True, 0, torch.bfloat16)],
)
def test_cpu_large_outputs(channels_last, offset, dtype, cpu):
    """Outputs that are stored past the caches, and those not aligned for it."""

    def shifted(t):
        flat = torch.empty(t.numel() + offset, dtype=t.dtype)[offset:]
        return torch.as_strided(flat, t.shape, t.stride(), flat.storage_offset()).copy_(t)

    shape = (5, 64, 117, 120) if dtype == torch.float32 else (9, 64, 123, 120)
    case = tensors(shape, dtype, channels_last, residual=True)
    like = torch.full_like
    with pytest.MonkeyPatch.context() as patch:  # the outputs that `fill` makes lie like this too
        patch.setattr(torch, "full_like", lambda t, v: shifted(like(t, v)) if t.dim() > 1 else like(t, v))
        ours = fill(case, training=True, activation="relu", saved="mask")
    assert ours["out"].storage_offset() == ours["grad_x"].storage_offset() == offset
    hold(ours, case, training=True, activation="relu")


@pytest.mark.parametrize(
    ("shape", "channels_last"), [((3, 5, 5, 7), False), ((3, 5, 4, 3), True), ((9, 33), False)]
)
def test_cpu_stays_within_its_tensors(shape, channels_last, cpu):
    """Guard values around every tensor: none is written, and NaN there changes nothing (so none counts)."""
    case = tensors(shape, torch.float32, channels_last, residual=True)
    options = {"training": True, "activation": "relu", "saved": "mask"}
    expected = fill(case, **options)

    def guarded(t):
        flat = torch.full((t.numel() + 64,), math.nan)
        return torch.as_strided(flat, t.shape, t.stride(), 33).copy_(t)

    like = torch.full_like
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "full_like", lambda t, value: guarded(like(t, value)))
        result = fill({name: guarded(t) for name, t in case.items()}, **options)
    for name, value in expected.items():
        assert torch.equal(result[name], value), name
        if name not in ("mean", "invstd", "mask", "running_mean", "running_var"):
            whole = result[name].as_strided((value.numel() + 64,), (1,), 0)
            assert whole[:33].isnan().all() and whole[33 + value.numel() :].isnan().all(), name


# ------------------------------------------------------------------------------------ the kernels of Triton


@pytest.mark.parametrize(("shape", "channels_last"), [((3, 2, 4, 8), False), ((3, 3, 3, 3), True)])
@pytest.mark.skipif("triton" not in KERNELS, reason="needs Triton")
def test_wide_offsets_change_nothing(shape, channels_last, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "batch_norm", triton_batch_norm)
    case = tensors(shape, torch.float32, channels_last, residual=True)
    narrow = fill(case, training=True, activation="relu", saved="mask")
    with _runtime.force_wide():
        wide = fill(case, training=True, activation="relu", saved="mask")
    for name, value in narrow.items():
        assert torch.equal(value, wide[name]), name


@pytest.mark.parametrize(
    ("shape", "channels_last", "training", "launches"),
    [
        ((32, 64, 56, 56), False, True, 3),
        ((32, 64, 56, 56), True, True, 3),
        ((32, 512, 7, 7), True, True, 1),
        ((32, 512, 7, 7), False, True, 1),
        ((128, 1024), False, True, 1),
        ((32, 64, 56, 56), True, False, 1),
    ],
)
@pytest.mark.skipif("triton" not in KERNELS, reason="needs Triton")
def test_launches(shape, channels_last, training, launches):
    """How many launches a forward takes, and that planning one needs no data."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.empty(shape, device="meta", memory_format=memory_format)
    vector = torch.empty(shape[1], device="meta")
    statistics = (vector, vector) if training else (None, None)
    with _runtime.record() as recorded:
        triton_batch_norm.forward(
            x, vector, vector, None, vector, vector, x, *statistics, None, training=training,
            momentum=0.1, eps=EPS, activation="relu", activation_param=0.0,
        )  # fmt: skip
    assert len(recorded) == launches
