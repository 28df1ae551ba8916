"""Memory formats, offsets and index widths."""

import pytest
import torch
from calls import CALLS, leaves
from support import KERNEL_BACKENDS

import fastdl.functional as F
from fastdl import backends, parity
from fastdl.backends import OPS
from fastdl.ops.tps_grid_sample import regular_points

every_call = pytest.mark.parametrize("name", CALLS)
every_kernel = pytest.mark.parametrize("kernel", KERNEL_BACKENDS)
ON_4D = [name for name in CALLS if len(CALLS[name].out) == 4]


@pytest.mark.parametrize("name", ON_4D)
@every_kernel
@pytest.mark.parametrize("layout", parity.LAYOUTS)
def test_output_and_gradient_have_torchs_strides(name, kernel, layout, device):
    call = CALLS[name]

    def strides(backend):
        inputs = [t.detach() for t in leaves(call, device)]
        inputs[0] = parity.lay_out(inputs[0], layout).requires_grad_()
        with backends.use_backend(backend):
            out = call.function(*inputs)
        return out.stride(), torch.autograd.grad(out.sum(), inputs[0])[0].stride()

    ours, torchs = strides(kernel), strides("reference")
    assert ours[0] == torchs[0]
    if layout != "strided":  # torch's own ops do not agree on the layout of that gradient
        assert ours[1] == torchs[1]


@every_call
@every_kernel
@pytest.mark.parametrize("how", ["strided", "expanded"])
def test_every_input_of_any_strides(name, kernel, how, device):
    """Each tensor in turn, parameters and targets too, with holes between its elements or of stride 0."""
    call = CALLS[name]
    for position, tensor in enumerate(leaves(call, device)):
        inputs = [t.detach() for t in leaves(call, device)]
        if how == "strided":
            inputs[position] = parity.lay_out(tensor.detach(), "strided")
        else:
            inputs[position] = tensor.detach().flatten()[:1].expand(tensor.numel()).view(tensor.shape)
        dense = [t.contiguous() for t in inputs]
        with backends.use_backend(kernel):
            got, expected = call.function(*inputs), call.function(*dense)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@every_call
@every_kernel
def test_surroundings_of_views_are_untouched(name, kernel, device):
    """Inputs cut out of larger buffers at odd offsets: nothing outside is read into the result or written."""
    call = CALLS[name]
    plain = leaves(call, device)
    cut, frames = [], []
    for tensor in plain:
        frame = tensor.detach().new_full(
            (tensor.numel() + 7,), float("nan") if tensor.is_floating_point() else 99
        )
        view = frame[3 : 3 + tensor.numel()].view(tensor.shape)
        view.copy_(tensor.detach())
        frames.append(frame)
        cut.append(view.requires_grad_(tensor.requires_grad))
    with backends.use_backend(kernel):
        expected, got = call.function(*plain), call.function(*cut)
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
        grads = torch.autograd.grad(got.sum(), [cut[i] for i in call.grads])
    assert all(not g.isnan().any() for g in grads)
    for frame, tensor in zip(frames, plain, strict=True):
        rim = torch.cat([frame[:3], frame[3 + tensor.numel() :]])
        assert bool(rim.isnan().all() if frame.is_floating_point() else (rim == 99).all())


@every_call
@every_kernel
def test_64_bit_offsets_give_the_same(name, kernel, device):
    if kernel != "triton":
        pytest.skip("Triton's launchers have two index widths")
    from fastdl.kernels._runtime import force_wide

    def run():
        torch.manual_seed(0)
        call = CALLS[name]
        inputs = leaves(call, device)
        with backends.use_backend(kernel):
            out = call.function(*inputs)
            return [out, *torch.autograd.grad(out.square().sum(), [inputs[i] for i in call.grads])]

    narrow = run()
    with force_wide():
        wide = run()
    assert all(torch.equal(a, b) for a, b in zip(narrow, wide, strict=True))


@every_call
@every_kernel
def test_no_element_stays_uninitialised(name, kernel, device):
    """Under deterministic algorithms torch.empty is NaN: whatever a kernel forgot to write shows."""
    call = CALLS[name]
    torch.use_deterministic_algorithms(True)
    try:
        inputs = leaves(call, device)
        with backends.use_backend(kernel):
            out = call.function(*inputs)
            grads = torch.autograd.grad(out.sum(), [inputs[i] for i in call.grads])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(not t.isnan().any() for t in [out, *grads])


@pytest.mark.slow_interpreted
@every_kernel
def test_deterministic(kernel, device):
    """Twenty runs, bit for bit; where kernels are slow three, of what peers compute with atomics."""
    fast = device.type == "cuda" or kernel == "cpu"
    for name in CALLS if fast else ("max_pool2d", "affine_grid_sample", "tps_grid_sample", "batch_norm"):
        call = CALLS[name]
        inputs = leaves(call, device)
        with backends.use_backend(kernel):
            runs = [
                torch.autograd.grad(call.function(*inputs).square().sum(), [inputs[i] for i in call.grads])
                for _ in range(20 if fast else 3)
            ]
        assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


@pytest.mark.parametrize("shape", [(0, 4, 6, 6), (2, 0, 6, 6), (2, 4, 0, 6)])
@pytest.mark.parametrize("op", OPS)
def test_empty_dimensions_as_torch(op, shape, on, device):
    """The same result or the same type of exception, on every backend."""
    import torch.nn.functional as T

    x = torch.randn(shape, device=device)
    theta = torch.eye(2, 3, device=device).expand(shape[0], 2, 3)
    points = regular_points(4).to(device, torch.float32).expand(shape[0], 4, 2)  # the identity, too
    weight = torch.randn(8, shape[1], 3, 3, device=device)
    target = torch.zeros(shape[0], *shape[2:], dtype=torch.long, device=device)
    pairs = {
        "conv2d": (lambda: F.conv2d(x, weight), lambda: T.conv2d(x, weight)),
        "batch_norm": (
            lambda: F.batch_norm(x, None, None, training=True),
            lambda: T.batch_norm(x, None, None, training=True),
        ),
        "max_pool2d": (lambda: F.max_pool2d(x, 2), lambda: T.max_pool2d(x, 2)),
        "cross_entropy": (lambda: F.cross_entropy(x, target), lambda: T.cross_entropy(x, target)),
        "affine_grid_sample": (
            lambda: F.affine_grid_sample(x, theta, (shape[0], 1, 3, 3)),
            lambda: T.grid_sample(x, T.affine_grid(theta, [shape[0], 1, 3, 3], False), align_corners=False),
        ),
        "tps_grid_sample": (
            lambda: F.tps_grid_sample(x, points, (shape[0], 1, 3, 3)),
            lambda: T.grid_sample(x, T.affine_grid(theta, [shape[0], 1, 3, 3], False), align_corners=False),
        ),
    }
    ours, torchs = pairs[op]
    try:
        expected = torchs()
    except Exception as error:
        with pytest.raises(type(error)):
            ours()
    else:
        torch.testing.assert_close(ours(), expected, equal_nan=True)
