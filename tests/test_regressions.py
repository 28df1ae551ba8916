"""Bugs that were found once, each with the smallest call that showed it."""

import numpy as np
import pytest
import torch
import torch.nn.functional as T
from support import KERNEL_BACKENDS
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import fastdl
import fastdl.functional as F
from fastdl import backends


@pytest.mark.parametrize("kernel", KERNEL_BACKENDS)
@pytest.mark.parametrize(
    ("size", "window"),
    [
        ((5, 5), {"kernel_size": 5}),
        ((3, 3), {"kernel_size": 3, "stride": (1, 3), "padding": (0, 1)}),
        ((2, 2), {"kernel_size": 2, "padding": 1, "dilation": 2}),
        ((8, 3), {"kernel_size": (7, 3), "stride": 1}),
    ],
)
def test_max_pool2d_gradient_with_fewer_windows_than_cover_a_pixel(size, window, kernel, device):
    """Backward looked at as many windows as there are, counted back from the pixel's own position, which may
    lie behind the last window: a winner there got no gradient."""
    x = torch.randn(2, 3, *size, device=device)
    grads = []
    for pool, backend in ((T.max_pool2d, "reference"), (F.max_pool2d, kernel)):
        leaf = x.clone().requires_grad_()
        with backends.use_backend(backend):
            pool(leaf, **window).sum().backward()
        grads.append(leaf.grad)
    assert torch.equal(*grads)


@pytest.mark.parametrize("reentrant", [True, False])
def test_batch_norm_counts_a_checkpoints_second_run(reentrant, on, device):
    """The counter came after the call, which a checkpoint's recomputation leaves as soon as it has all that
    backward needs: the statistics were updated twice and the batch counted once, where torch counts two."""
    x = torch.randn(4, 3, 5, 5, device=device)
    states = []
    for module in (torch.nn.BatchNorm2d(3, momentum=None), fastdl.nn.BatchNorm2d(3, momentum=None)):
        module.to(device)
        for step in (1, 2):
            leaf = (x * step).requires_grad_()
            checkpoint(module, leaf, use_reentrant=reentrant).square().sum().backward()
        states.append(module.state_dict())
    torchs, ours = states
    assert ours["num_batches_tracked"] == torchs["num_batches_tracked"] == 4
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(ours[name], torchs[name])


@pytest.mark.parametrize("name", ["conv2d", "batch_norm", "cross_entropy", "max_pool2d"])
def test_forward_mode_derivatives_are_not_dropped(name, device):
    """Kernels know no tangents: a dual tensor that required no gradient came out without its tangent."""
    x = torch.randn(2, 4, 6, 6, device=device)
    arguments = {
        "conv2d": (torch.randn(3, 4, 3, 3, device=device),),
        "batch_norm": (None, None, None, None, True),
        "cross_entropy": (torch.zeros(2, 6, 6, dtype=torch.long, device=device),),
        "max_pool2d": (2,),
    }[name]
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.sin(x))
        tangents = [forward_ad.unpack_dual(getattr(f, name)(dual, *arguments)).tangent for f in (T, F)]
        torch.testing.assert_close(*tangents)
        with backends.use_backend("triton"), pytest.raises(RuntimeError, match="forward-mode"):
            getattr(F, name)(dual, *arguments)


@pytest.mark.parametrize("wrap", [np.int64, lambda i: (np.int64(i), i)], ids=["alone", "in a tuple"])
def test_numpy_integers_count_as_integers(wrap, on, device):
    """Strides and the like computed with NumPy were refused, where torch takes them."""
    x, w = torch.randn(1, 4, 9, 9, device=device), torch.randn(4, 2, 3, 3, device=device)
    one, two = wrap(1), wrap(2)
    assert torch.equal(F.max_pool2d(x, two, one, one, two), T.max_pool2d(x, 2, 1, 1, 2))
    ours = F.conv2d(x, w, None, two, one, two, np.int64(2))
    torch.testing.assert_close(ours, T.conv2d(x, w, None, 2, 1, 2, 2), atol=1e-4, rtol=1e-4)


def test_a_missing_required_tensor_is_a_type_error(on, device):
    """None was let through as if it were optional and ended in an AttributeError."""
    x = torch.randn(2, 4, 6, 6, device=device)
    for function, arguments in (
        (F.conv2d, (None, x)),
        (F.conv2d, (x, None)),
        (F.batch_norm, (None, None, None)),
        (F.cross_entropy, (x, None)),
        (F.max_pool2d, (None, 2)),
        (F.affine_grid_sample, (x, None, (2, 4, 6, 6))),
        (F.tps_grid_sample, (x, None, (2, 4, 6, 6))),
    ):
        with pytest.raises(TypeError, match="to be a Tensor, got NoneType"):
            function(*arguments)


def test_batch_norm_refuses_eps_of_zero_in_training_as_torch(on, device):
    """Only a negative eps was refused."""
    x = torch.randn(4, 3, device=device)
    for function in (T.batch_norm, F.batch_norm):
        with pytest.raises(ValueError, match=r"eps (to|must) be positive"):
            function(x, None, None, training=True, eps=0.0)


@pytest.mark.parametrize("rows", [4, 3000])
def test_cross_entropy_of_targets_without_weight_is_nan(rows, on, device):
    """With label smoothing the mean over a total weight of 0 was infinite, where torch's is NaN."""
    x, target = torch.randn(rows, 3, device=device), torch.full((rows,), 2, device=device)
    weight = torch.tensor([1.0, 1.0, 0.0], device=device)
    for function in (T.cross_entropy, F.cross_entropy):
        assert function(x, target, weight, label_smoothing=0.1).isnan()
