"""Gradients as autograd asks for them: any layout, any subset, twice, and of second order."""

import pytest
import torch
from calls import CALLS, leaves
from support import KERNEL_BACKENDS

from fastdl import backends, parity
from fastdl.ops import affine_grid_sample, batch_norm, conv2d, cross_entropy, max_pool2d, tps_grid_sample

OPS = {
    "conv2d": conv2d,
    "batch_norm": batch_norm,
    "cross_entropy": cross_entropy,
    "max_pool2d": max_pool2d,
    "affine_grid_sample": affine_grid_sample,
    "tps_grid_sample": tps_grid_sample,
}
every_call = pytest.mark.parametrize("name", CALLS)
every_kernel = pytest.mark.parametrize("kernel", KERNEL_BACKENDS)


def gradients(name, inputs, backend, loss):
    """The gradients of ``loss(output)`` for the inputs of call ``name`` that take one."""
    call = CALLS[name]
    with backends.use_backend(backend):
        out = call.function(*inputs)
    return out, torch.autograd.grad(loss(out), [inputs[i] for i in call.grads])


def double(inputs):
    return [
        t.detach().double().requires_grad_(t.requires_grad) if t.is_floating_point() else t for t in inputs
    ]


def agree(name, inputs, backend, loss):
    ours = gradients(name, inputs, backend, loss)[1]
    torchs = gradients(name, inputs, "reference", loss)[1]
    oracle = gradients(name, double(inputs), "reference", loss)[1]
    for a, b, c in zip(ours, torchs, oracle, strict=True):
        assert parity.judge(a, b, c).failure == ""


def weigh(out):
    """A sum in which every element has a weight of its own, the same for every backend and dtype."""
    weights = torch.linspace(-1.5, 1, max(out.numel(), 1), device=out.device).to(out.dtype)
    return (out * weights.view(out.shape)).sum()


# the gradients that come in: of stride 0, a slice of cat's, transposed, with holes, in another memory format
INCOMING = {
    "sum": lambda out: out.sum(),
    "cat": lambda out: weigh(torch.cat([out, out.detach()], -1)),
    "transpose": lambda out: weigh(out.movedim(0, -1).contiguous()) if out.dim() else out,
    "every second": lambda out: weigh(out[..., ::2]) if out.dim() else out,
    "channels_last": lambda out: (
        weigh(out.contiguous(memory_format=torch.channels_last)) if out.dim() == 4 else weigh(out)
    ),
}


@every_call
@every_kernel
@pytest.mark.parametrize("incoming", INCOMING)
def test_incoming_gradient_of_any_layout(name, kernel, incoming, device):
    if incoming == "cat" and not CALLS[name].out:
        pytest.skip("a scalar cannot be concatenated")
    agree(name, leaves(CALLS[name], device), kernel, INCOMING[incoming])


@every_call
@every_kernel
def test_expanded_input(name, kernel, device):
    inputs = leaves(CALLS[name], device)
    inputs[0] = inputs[0].detach()[:1].expand_as(inputs[0]).requires_grad_()
    agree(name, inputs, kernel, weigh)


@every_call
@every_kernel
def test_inputs_are_never_modified(name, kernel, device):
    inputs = leaves(CALLS[name], device)
    before = [t.detach().clone() for t in inputs]
    gradients(name, inputs, kernel, lambda out: out.square().sum())
    assert all(torch.equal(a, b) for a, b in zip(before, inputs, strict=True))


@every_call
@every_kernel
def test_backward_twice_gives_the_same(name, kernel, device):
    call, inputs = CALLS[name], leaves(CALLS[name], device)
    with backends.use_backend(kernel):
        loss = call.function(*inputs).square().sum()
    asked = [inputs[i] for i in call.grads]
    first = torch.autograd.grad(loss, asked, retain_graph=True)
    second = torch.autograd.grad(loss, asked)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@every_call
@every_kernel
def test_output_comes_from_our_function(name, kernel, device):
    """No silent fallback: the graph holds our autograd.Function."""
    out, _ = gradients(name, leaves(CALLS[name], device), kernel, lambda out: out.sum())
    nodes, found = [out.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in found:
            found.add(node)
            nodes += [n for n, _ in node.next_functions]
    prefixes = ("_Conv2d", "_BatchNorm", "_CrossEntropy", "_MaxPool2d", "_AffineGridSample", "_TPSGridSample")
    names = [node.name() for node in found]  # C++ nodes, of the short way, have their namespace in it
    assert any(name.startswith(prefixes) or "fastdl::" in name for name in names), names


@every_call
@every_kernel
def test_unneeded_gradients_are_not_computed(name, kernel, device, monkeypatch):
    """For each single input: the kernel is handed None for every other gradient."""
    call, op = CALLS[name], name.split()[0]
    if op in ("cross_entropy", "max_pool2d"):
        pytest.skip("one gradient only")
    module = backends.kernel(kernel, op)
    seen = []
    original = module.backward

    def spy(*args, **options):
        first, last = {
            "conv2d": (4, 7), "batch_norm": (8, 12), "affine_grid_sample": (3, 5), "tps_grid_sample": (4, 6)
        }[op]  # fmt: skip
        seen.append([t is not None for t in args[first:last]])
        original(*args, **options)

    monkeypatch.setattr(module, "backward", spy)
    monkeypatch.setattr(backends, "short_way", lambda *_: (None, None))
    for wanted in call.grads:
        inputs = [t.detach() for t in leaves(call, device)]
        inputs[wanted].requires_grad_()
        with backends.use_backend(kernel):
            torch.autograd.grad(call.function(*inputs).sum(), inputs[wanted])
        assert sum(seen[-1]) == 1


@every_call
@every_kernel
def test_no_grad_saves_nothing(name, kernel, device):
    inputs = leaves(CALLS[name], device)
    with torch.no_grad(), backends.use_backend(kernel):
        assert CALLS[name].function(*inputs).grad_fn is None


@every_call
def test_gradcheck_in_float64(name, device):
    """float64 is served by the reference under auto: first and second order by finite differences."""
    call, inputs = CALLS[name], leaves(CALLS[name], device, torch.float64)
    assert torch.autograd.gradcheck(call.function, inputs)
    if name != "batch_norm elu":  # the same graph as batch_norm's, and slow
        assert torch.autograd.gradgradcheck(call.function, inputs, gen_non_contig_grad_outputs=True)


@every_call
@every_kernel
def test_second_derivative(name, kernel, device):
    """The gradient of a penalty on the gradient, against the same through plain torch."""

    def second(inputs, backend):
        call = CALLS[name]
        with backends.use_backend(backend):
            out = call.function(*inputs)
            asked = [inputs[i] for i in call.grads]
            first = torch.autograd.grad(out.square().sum(), asked, create_graph=True)
            penalty = sum(g.square().sum() for g in first)
            return torch.autograd.grad(penalty, asked, allow_unused=True)

    inputs = leaves(CALLS[name], device)
    ours, torchs = second(inputs, kernel), second(inputs, "reference")
    oracle = second(double(inputs), "reference")
    for a, b, c in zip(ours, torchs, oracle, strict=True):
        # our first derivative was rounded by a kernel, torch's by its own op: compare by magnitude
        scale = float(c.abs().max())
        assert float((a.double() - c).abs().max()) <= 2 * float((b.double() - c).abs().max()) + 1e-5 * scale
