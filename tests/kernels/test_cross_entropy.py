"""cross_entropy's kernels fill what they are handed, within the rule against torch and a float64 oracle.

The Triton kernels (interpreted where there is no GPU) and, where they were built, those of csrc/cpu in each
capability that this CPU has, and of csrc/cuda.
"""

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
    from fastdl.kernels import cross_entropy as triton_cross_entropy
except ImportError:
    triton_cross_entropy = None


def _fills(library):
    return SimpleNamespace(forward=library.cross_entropy_forward, backward=library.cross_entropy_backward)


def _kernels():
    """Every implementation that this machine can run, by name."""
    found = {}
    if triton_cross_entropy is not None and (DEVICE == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"):
        found["triton"] = triton_cross_entropy
    if "cpu" in NATIVE_BACKENDS:
        best = native.CAPABILITIES.index(torch.backends.cpu.get_cpu_capability().lower())
        for name in native.CAPABILITIES[: best + 1]:
            path = native.HERE / f"libfastdl_cpu_{name}.so"
            if path.exists():
                found[f"cpu {name}"] = _fills(native._bindings()[0].Library(str(path)))
    if "cuda" in NATIVE_BACKENDS:
        found["cuda"] = native.kernel("cuda", "cross_entropy")
    return found


KERNELS = _kernels()
NATIVE_KERNELS = [name for name in KERNELS if name != "triton"]
op = None  # the implementation under test: see `kernels`

if not KERNELS:
    pytest.skip("no kernel of cross_entropy runs here", allow_module_level=True)


@pytest.fixture(autouse=True, params=KERNELS)
def kernels(request, monkeypatch):
    """Each implementation in turn."""
    monkeypatch.setattr(sys.modules[__name__], "op", KERNELS[request.param])
    return request.param


only_triton = pytest.mark.parametrize("kernels", [k for k in KERNELS if k == "triton"], indirect=True)
only_native = pytest.mark.parametrize("kernels", NATIVE_KERNELS, indirect=True)

NAN, INF = float("nan"), float("inf")


def ours(x, target, weight=None, grad_loss=None, grad_x=None, **opts):
    """(loss, gradient) by the kernels, from outputs that start as NaN."""
    opts = {"ignore_index": -100, "label_smoothing": 0.0, "reduction": "mean", **opts}
    n, _, d = x.shape
    rows = (n, d) if opts["reduction"] == "none" else ()
    loss = torch.full(rows, NAN, dtype=x.dtype, device=x.device)
    lse = torch.full((n, d), NAN, device=x.device)
    total_weight = torch.full((), NAN, device=x.device)
    op.forward(x, target, weight, loss, lse, total_weight, **opts)
    grad_loss = torch.ones_like(loss) if grad_loss is None else grad_loss
    grad_x = torch.full_like(x, NAN) if grad_x is None else grad_x
    op.backward(grad_loss, x, target, weight, lse, total_weight, grad_x, **opts)
    return loss, grad_x


def torchs(dtype, x, target, weight=None, grad_loss=None, **opts):
    """(loss, gradient) by torch in ``dtype`` on the CPU."""
    x = x.detach().cpu().to(dtype).contiguous().requires_grad_()
    target = target.cpu().to(dtype) if target.is_floating_point() else target.cpu().long()
    weight = None if weight is None else weight.cpu().to(dtype)
    loss = F.cross_entropy(x, target, weight, **opts)
    grad_loss = torch.ones_like(loss) if grad_loss is None else grad_loss.cpu().to(dtype)
    return loss.detach(), torch.autograd.grad(loss, x, grad_loss)[0]


def check(x, target, weight=None, grad_loss=None, grad_x=None, **opts):
    got = ours(x, target, weight, grad_loss, grad_x, **opts)
    same = torchs(x.dtype, x, target, weight, grad_loss, **opts)
    oracle = torchs(torch.float64, x, target, weight, grad_loss, **opts)
    for what, *values in zip(("loss", "gradient"), got, same, oracle, strict=True):
        failure = judge(*values).failure
        assert not failure, f"{what}: {failure}"


def logits(*shape, dtype=torch.float32):
    torch.manual_seed(0)
    return (3 * torch.randn(shape)).to(dtype).to(DEVICE)


def classes(x, ignore_index=-100, dtype=torch.int64):
    """Targets for x, a third of them ignored."""
    n, c, d = x.shape
    target = torch.randint(0, c, (n, d))
    return target.masked_fill(torch.rand(n, d) < 0.3, ignore_index).to(dtype).to(x.device)


def probabilities(x):
    return torch.softmax(torch.randn(x.shape), 1).to(x.dtype).to(x.device)


SHAPES = {
    "one logit": (1, 1, 1),
    "one program, one launch": (64, 10, 1),
    "many programs and a reduction": (700, 10, 1),
    "odd rows": (5, 33, 1),
    "one row per program, aligned to 8": (9, 1000, 1),
    "several blocks of classes": (3, 5000, 1),
    "segmentation": (2, 5, 300),
    "segmentation, several blocks of classes": (1, 300, 40),
}
TARGETS = {
    "classes": (classes, {}),
    "smoothed": (classes, {"label_smoothing": 0.1}),
    "probabilities": (probabilities, {}),
    "smoothed probabilities": (probabilities, {"label_smoothing": 0.2}),
}


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weight"])
@pytest.mark.parametrize("targets, opts", TARGETS.values(), ids=TARGETS.keys())
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_shapes_and_targets(shape, targets, opts, weighted):
    x = logits(*shape)
    target = targets(x)
    weight = torch.rand(shape[1]).to(DEVICE) if weighted else None
    check(x, target, weight, reduction="mean", **opts)
    grad_loss = torch.randn(shape[0], shape[2]).to(DEVICE)
    check(x, target, weight, grad_loss, reduction="none", **opts)


@pytest.mark.parametrize("shape", [(64, 10, 1), (700, 10, 1)])
def test_sum(shape):
    x = logits(*shape)
    check(x, classes(x), grad_loss=torch.tensor(-2.5, device=DEVICE), reduction="sum")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("shape", [(40, 10, 1), (3, 1000, 1), (2, 4100, 1), (2, 5, 40)])
def test_half_precision(shape, reduction, dtype):
    x = logits(*shape, dtype=dtype)
    weight = torch.rand(shape[1]).to(dtype).to(DEVICE)
    check(x, classes(x), weight, reduction=reduction, label_smoothing=0.1)


@pytest.mark.parametrize("ignore_index", [-100, 255, 3, -1, 2**40])
def test_ignore_index(ignore_index):
    x = logits(20, 7, 1)
    check(x, classes(x, ignore_index), ignore_index=ignore_index)


def test_uint8_targets():
    x = logits(20, 7, 3)
    check(x, classes(x, 255, torch.uint8), ignore_index=255)


@pytest.mark.parametrize("offset", [-1000.0, 1000.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_logits_far_from_zero_do_not_cancel(offset, smoothing):
    opts = {"label_smoothing": smoothing, "reduction": "none"}
    for shape in ((6, 10, 1), (2, 4100, 1)):
        x = logits(*shape) + offset
        target = classes(x)
        wanted = (torchs(dtype, x, target, **opts)[0] for dtype in (torch.float32, torch.float64))
        assert not judge(ours(x, target, **opts)[0], *wanted).failure
    x = logits(6, 10, 1) + offset
    check(x, classes(x), label_smoothing=smoothing)
    x = 2 * logits(3, 9001, 1) + offset  # too long for registers: the rounding of lse would show
    check(x, torch.tensor([[5], [0], [9000]], device=DEVICE), label_smoothing=smoothing, reduction="sum")


LAYOUTS = {
    "classes innermost": lambda t: t.transpose(1, -1).contiguous().transpose(1, -1),
    "every second": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "batch innermost": lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0),
    "odd offset": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("shape", [(6, 16, 1), (3, 8, 20)])
def test_strides(shape, layout):
    x = logits(*shape)
    target, soft = classes(x), probabilities(x)
    grad_loss = torch.randn(shape[0], shape[2]).to(DEVICE)
    grad_x = layout(torch.full_like(x, NAN))
    check(layout(x), layout(target), None, layout(grad_loss), grad_x, reduction="none")
    check(layout(x), layout(soft), grad_x=layout(torch.full_like(x, NAN)), reduction="mean")


def test_expanded_tensors():
    x = logits(1, 6, 9).expand(4, 6, 9)
    grad_loss = torch.tensor(0.5, device=DEVICE).expand(4, 9)
    grad_x = torch.full((4, 6, 9), NAN, device=DEVICE)
    check(x, torch.tensor(2, device=DEVICE).expand(4, 9), None, grad_loss, grad_x, reduction="none")


@only_triton
@pytest.mark.parametrize("shape", [(9, 33, 1), (2, 4100, 1), (2, 5, 20)])
def test_wide_offsets_agree(shape):
    x = logits(*shape)
    with _runtime.force_wide():
        check(x, classes(x), label_smoothing=0.1)
        check(x, probabilities(x), reduction="none")


@only_triton
def test_mnist_is_one_launch():
    x = torch.empty(64, 10, 1, device="meta")
    scalar, lse, target = x.new_empty(()), x.new_empty(64, 1), x.new_empty(64, 1, dtype=torch.int64)
    opts = {"ignore_index": -100, "label_smoothing": 0.0, "reduction": "mean"}
    with _runtime.record() as launches:
        op.forward(x, target, None, scalar, lse, scalar, **opts)
    assert len(launches) == 1


# What torch gives at the edges: every row one of these, with every reduction.

EDGES = {
    "-inf beside the target": [1.0, -INF, 2.0],
    "-inf on the target": [-INF, 1.0, 2.0],
    "nothing but -inf": [-INF, -INF, -INF],
    "+inf": [1.0, INF, 2.0],
    "+inf on the target": [INF, 1.0, 2.0],
    "NaN": [1.0, NAN, 2.0],
    "huge": [3e38, -3e38, 0.0],
}


@pytest.mark.parametrize("row", EDGES.values(), ids=EDGES.keys())
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weight", [None, [1.0, 2.0, 0.5], [0.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
def test_infinities_and_nan(row, smoothing, weight):
    x = torch.tensor([[0.5, 1.0, -1.0], row], device=DEVICE)[:, :, None]
    target = torch.tensor([[1], [0]], device=DEVICE)
    weight = None if weight is None else torch.tensor(weight, device=DEVICE)
    for reduction in ("none", "mean"):
        check(x, target, weight, reduction=reduction, label_smoothing=smoothing)
    hard = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]], device=DEVICE)[:, :, None]
    check(x, hard, weight, reduction="none", label_smoothing=smoothing)


def test_edges_in_a_row_of_several_blocks():
    for row in EDGES.values():
        x = torch.full((1, 4100, 1), -INF, device=DEVICE)
        x[0, [0, 4097, 4098], 0] = torch.tensor(row, device=DEVICE)
        for target in (0, 4097):
            check(x, torch.tensor([[target]], device=DEVICE), reduction="none")


def test_literals():
    x = torch.tensor([[1.0, -INF, 2.0], [-INF, 1.0, 2.0]], device=DEVICE)[:, :, None]
    target = torch.zeros(2, 1, dtype=torch.int64, device=DEVICE)
    loss, grad = ours(x, target, reduction="none")
    assert loss[0, 0].isfinite() and grad[0, 1, 0] == 0
    assert loss[1, 0] == INF and grad[1, 0, 0] == -1
    assert ours(x, target, reduction="none", label_smoothing=0.1)[0].tolist() == [[INF], [INF]]


@pytest.mark.parametrize("shape", [(4, 5, 1), (2, 3000, 1), (700, 10, 1)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_all_ignored(shape, smoothing):
    x = logits(*shape)
    target = torch.full((shape[0], 1), -100, device=DEVICE)
    loss, grad = ours(x, target, label_smoothing=smoothing)
    assert loss.isnan() and bool((grad == 0).all())
    loss, grad = ours(x, target, reduction="sum", label_smoothing=smoothing)
    assert loss == 0 and bool((grad == 0).all())


@pytest.mark.parametrize("c", [5, 1000])
def test_ignored_rows_are_not_looked_at(c):
    """Unlike torch, whose gradient is NaN in an ignored row that holds NaN."""
    x = logits(6, c, 1)
    x[2] = NAN
    target = torch.tensor([[0], [1], [-100], [2], [3], [4]], device=DEVICE)
    loss, grad = ours(x, target)
    x[2] = 0.0
    same, clean = ours(x, target)
    assert loss == same and torch.equal(grad, clean) and bool((grad[2] == 0).all())


@pytest.mark.parametrize("c", [5, 1000])
@pytest.mark.parametrize("bad", [-1, "C", 2**40, -(2**62)])
def test_bad_target_gives_nan_in_its_own_row(c, bad):
    x = logits(4, c, 1)
    weight = torch.rand(c).to(DEVICE)
    target = torch.tensor([[0], [1], [c if bad == "C" else bad], [2]], device=DEVICE)
    loss, grad = ours(x, target, weight, reduction="none", label_smoothing=0.1)
    assert loss.isnan().flatten().tolist() == [False, False, True, False]
    assert bool(grad[2].isnan().all()) and not bool(grad[[0, 1, 3]].isnan().any())
    loss, grad = ours(x, target, weight)
    assert loss.isnan() and bool(grad[2].isnan().all()) and not bool(grad[[0, 1, 3]].isnan().any())


def test_weights_that_sum_to_zero():
    x = logits(3, 4, 1)
    check(x, classes(x, 0), torch.zeros(4, device=DEVICE))


@only_triton
def test_empty_batch():
    x, target = torch.empty(0, 4, 1, device=DEVICE), torch.empty(0, 1, dtype=torch.int64, device=DEVICE)
    assert ours(x, target)[0].isnan() and ours(x, target, reduction="sum")[0] == 0
    assert ours(x, target, reduction="none")[0].shape == (0, 1)
    assert ours(x, x, reduction="mean")[0].isnan()


def test_inference_needs_no_lse():
    x = logits(5, 6, 1)
    target, loss, total_weight = classes(x), torch.empty((), device=DEVICE), torch.empty((), device=DEVICE)
    opts = {"ignore_index": -100, "label_smoothing": 0.0, "reduction": "mean"}
    op.forward(x, target, None, loss, None, total_weight, **opts)
    assert torch.equal(loss, ours(x, target)[0])


def test_repeats_bit_for_bit():
    x = logits(700, 10, 1)
    target = classes(x)
    first = ours(x, target)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, ours(x, target), strict=True))


# ------------------------------------------------------------- the paths of the native kernels


def shifted(t):
    """The same values, contiguous, one element past an aligned address."""
    return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)


@only_native
@pytest.mark.parametrize(
    "c",
    [2, 3, 8, 9, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 100, 255, 1023, 1024, 1025, 2047, 2048, 2049, 4101],
)
def test_every_end_of_a_row(c):
    """Vectors and what is left of them, aligned rows and others, each side of what a path takes."""
    x = logits(5, c, 1)
    check(x, classes(x), grad_loss=torch.randn(5, 1).to(DEVICE), reduction="none")
    grad_x = shifted(torch.full_like(x, NAN))
    check(shifted(x), classes(x), torch.rand(c).to(DEVICE), grad_x=grad_x, label_smoothing=0.1)
    check(shifted(x), shifted(probabilities(x)), grad_x=x.new_full(x.shape, NAN), label_smoothing=0.1)


@only_native
@pytest.mark.parametrize("d", [2, 7, 8, 15, 17, 31, 33, 64, 65, 129, 257, 511, 512, 513, 1030])
@pytest.mark.parametrize("c", [3, 19, 70, 150])
def test_every_end_of_a_plane(c, d):
    x = logits(2, c, d)
    check(x, classes(x), torch.rand(c).to(DEVICE))
    x, grad_x = shifted(x), shifted(torch.full_like(x, NAN))
    check(x, classes(x), grad_x=grad_x, label_smoothing=0.1, reduction="sum")
    check(x, probabilities(x), reduction="sum")


@only_native
@pytest.mark.parametrize("n", [1, 15, 17, 31, 33, 63, 64, 65, 129, 513])
@pytest.mark.parametrize("c", [10, 40])
def test_rows_in_the_innermost_axis(n, c):
    """[N, C] logits that lie as [C, N], forward and backward; then a gradient that does not."""
    x = logits(c, n, 1).transpose(0, 1)
    grad_x = torch.full((c, n, 1), NAN, device=x.device).transpose(0, 1)
    check(x, classes(x), grad_x=grad_x, label_smoothing=0.1)
    check(x, classes(x), grad_x=x.new_full((n, c, 1), NAN))


@only_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("c", [8192, 8193, 9001, 40000, 70001])
def test_large_vocabularies(c, dtype):
    """Rows that registers do not hold; where there are clusters of blocks, several of them share one."""
    x = logits(2, c, 1, dtype=dtype)
    target = torch.tensor([[c - 1], [5]], device=DEVICE)
    check(x, target, grad_loss=torch.randn(2, 1).to(DEVICE), reduction="none")
    check(x, target, torch.rand(c).to(DEVICE, dtype), label_smoothing=0.1, reduction="sum")
    check(x, probabilities(x), reduction="none")
    x[0, : c - 3] = -INF  # all of a block but the last
    check(x, target, reduction="none")


@only_native
def test_one_row_of_a_cluster_after_another():
    x = logits(300, 32768, 1)[:, ::8].repeat(1, 8, 1)
    target = classes(x)
    loss, grad = ours(x, target, reduction="none")
    for r in (0, 7, 299):
        one, one_grad = ours(x[r : r + 1], target[r : r + 1], reduction="none")
        torch.testing.assert_close(loss[r], one[0])
        torch.testing.assert_close(grad[r], one_grad[0])


@pytest.mark.parametrize("kernels", [k for k in KERNELS if k.startswith("cpu")], indirect=True)
@pytest.mark.parametrize("shape", [(130, 32771, 1), (3, 22, 70001)])
def test_outputs_larger_than_the_cache(shape):
    """These are written past it, from the first aligned address on."""
    x = logits(*shape)
    check(x, classes(x), grad_x=shifted(torch.full_like(x, NAN)))


@pytest.mark.parametrize("kernels", [k for k in KERNELS if k.startswith("cpu")], indirect=True)
@pytest.mark.parametrize("shape", [(300, 1000, 1), (20000, 10, 1), (4, 7, 5003)])
def test_any_number_of_threads_gives_the_same_bits(shape):
    x = logits(*shape)
    target, soft, before = classes(x), probabilities(x), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            found.append([*ours(x, target, label_smoothing=0.1), *ours(x, soft)])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@only_native
@pytest.mark.parametrize("shape", [(6, 10, 1), (4, 500, 1), (2, 20, 30)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(shape, dtype):
    """A float32 loss of half-precision logits, weights of either."""
    x = logits(*shape, dtype=dtype)
    target, weight = classes(x), torch.randint(1, 5, (shape[1],)).to(DEVICE)
    lse, total_weight = torch.empty(shape[0], shape[2], device=DEVICE), torch.empty((), device=DEVICE)
    opts = {"ignore_index": -100, "label_smoothing": 0.1, "reduction": "mean"}
    losses, grads = [], []
    for weights in (weight.to(dtype), weight.float()):
        loss, grad_x = torch.empty((), device=DEVICE), torch.empty_like(x)
        op.forward(x, target, weights, loss, lse, total_weight, **opts)
        op.backward(torch.ones_like(loss), x, target, weights, lse, total_weight, grad_x, **opts)
        losses.append(loss)
        grads.append(grad_x)
    assert torch.equal(losses[0], losses[1]) and torch.equal(grads[0], grads[1])
    wide = F.cross_entropy(x.float(), target, weight.float(), label_smoothing=0.1)
    torch.testing.assert_close(losses[0], wide)


@only_native
@pytest.mark.parametrize("c", [5, 300, 9000])
def test_a_softmax_of_1_has_gradient_0(c):
    """Exactly, as torch's: nothing is left over of what was rounded on the way."""
    x = torch.full((2, c, 1), -INF, device=DEVICE)
    x[:, 1] = 1000.3
    target = torch.ones(2, 1, dtype=torch.int64, device=DEVICE)
    loss, grad = ours(x, target)
    assert loss == 0 and bool((grad == 0).all())
