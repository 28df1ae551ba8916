"""Every network of the course, converted, against its stock twin: numbers, gradients, what serves calls."""

from __future__ import annotations

import copy

import pytest
import torch
from support import DEVICE
from torch import Tensor, nn

from fastdl import convert, explain, models
from fastdl.parity import Verdict, judge

#: Networks too large for a quick test, by what makes them small: fewer channels or pixels, the same layers.
SMALL = {
    "alexnet": ({"widths": (8, 16, 24, 24, 16), "hidden": 32, "size": 67}, (2, 3, 67, 67)),
    "vgg16": ({"width": 8, "size": 32, "batch_norm": True}, (8, 3, 32, 32)),
    "pointnet_cls": ({"width": 0.125}, (16, 3, 64, 1)),
    "pointnet_seg": ({"width": 0.125}, (16, 3, 64, 1)),
}
#: As they are, seconds each.
LARGE = ("inception_v3", "googlenet", "resnet18", "resnet50", "densenet")
VARIANTS = {
    "highway, convolutions": ("highway", {"conv": True, "width": 16}),
    "vae, convolutions": ("vae", {"conv": True}),
    "vgg_mini, no batch norm": ("vgg_mini", {"batch_norm": False}),
    "stn, no transformer": ("stn", {"transform": False}),
}
CASES = [
    *(pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in models.names()),
    *VARIANTS,
]
#: Each tensor is judged over that many batches at once: a bias of four numbers alone hangs on torch's luck.
BATCHES = 4


Tensors = tuple[Tensor, ...]
Batch = tuple[Tensors, Tensors]


class Trained(nn.Module):
    """A network with its loss, converted as one."""

    def __init__(self, name: str, options: dict) -> None:
        super().__init__()
        self.model = models.create(name, **options)
        self.loss = models.create_loss(name)

    def forward(self, inputs: Tensors, targets: Tensors) -> Tensors:
        out = self.model(*inputs)
        out = out if isinstance(out, tuple) else (out,)
        return self.loss(*out, *targets), *out


def make(case: str) -> tuple[Trained, list[Batch]]:
    """The network in float32 on the device, and batches for it."""
    name, options = VARIANTS.get(case, (case, {}))
    inputs, targets = models.example_inputs(name), models.example_targets(name)
    if name in SMALL:
        options, shape = SMALL[name]
        inputs, targets = _resized(inputs, targets, shape)
    if name in LARGE:  # two images of 2x2 pixels in the last stage would make batch norms ill-conditioned
        side = 107 if name == "inception_v3" else 64
        inputs, targets = _resized(inputs, targets, (4, 3, side, side))
    torch.manual_seed(0)
    trained = Trained(name, options)
    for module in trained.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0  # the oracle would drop others
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.Linear) and not module.weight.any():
            nn.init.normal_(
                module.weight, std=1e-3
            )  # a warp at the identity falls on pixels, on corners of its slope
    trained.train(name != "vae")  # which samples in training
    generator = torch.Generator().manual_seed(3)
    batches = [(inputs, targets)]
    for _ in range(BATCHES - 1 if name not in LARGE else 1):
        other = tuple(_shaken(x, name, generator) for x in inputs)
        batches.append((other, targets))
    return trained.to(DEVICE), batches


def _resized(inputs: Tensors, targets: Tensors, shape: tuple[int, ...]) -> Batch:
    (x,), (y,) = inputs, targets
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return (x,), (
        y[:1].expand(shape[0], *y.shape[1:])[..., : shape[2]] if y.dim() > 1 else y[:1].expand(shape[0]),
    )


def _shaken(x: Tensor, name: str, generator: torch.Generator) -> Tensor:
    """Another input of the kind."""
    if not x.is_floating_point():
        return x
    return (
        torch.rand(x.shape, generator=generator)
        if name == "vae"
        else torch.randn(x.shape, generator=generator)
    )


def results(trained: Trained, batches: list[Batch], dtype: torch.dtype) -> dict[str, Tensor]:
    """Loss, outputs and gradients of all parameters, over all batches."""
    found: dict[str, list[Tensor]] = {}
    for inputs, targets in batches:
        loss, *out = trained(_cast(inputs, dtype), _cast(targets, dtype))
        names, parameters = zip(*trained.named_parameters(), strict=True)
        for i, tensor in enumerate(out):
            found.setdefault(f"output {i}", []).append(tensor.detach())
        # with the logits: one number alone hangs on torch's luck
        found["output 0"][-1] = torch.cat([loss.detach().view(1), out[0].detach().flatten()])
        for name, grad in zip(names, torch.autograd.grad(loss, parameters), strict=True):
            found.setdefault(f"gradient of {name}", []).append(grad)
    return {name: torch.stack(tensors) for name, tensors in found.items()}


def _cast(tensors: Tensors, dtype: torch.dtype) -> Tensors:
    return tuple(t.to(DEVICE, dtype if t.is_floating_point() else t.dtype) for t in tensors)


def _whole(ours: dict[str, Tensor], torchs: dict[str, Tensor], exact: dict[str, Tensor]) -> Verdict:
    """The rule for all gradients as one vector, with lengths in the place of largest errors."""

    def length(tensors: list[Tensor]) -> float:
        return float(torch.stack([t.cpu().double().norm() for t in tensors]).norm())

    error, torch_error = (length([which[n] - exact[n] for n in exact]) for which in (ours, torchs))
    allowed = 2 * torch_error + torch.finfo(torch.float32).eps * length(list(exact.values()))
    return Verdict(error, torch_error, "too far from the oracle" if error > allowed else "")


def failures(case: str) -> dict[str, Verdict]:
    stock, batches = make(case)
    fast = convert(copy.deepcopy(stock))
    oracle = copy.deepcopy(stock).double()
    ours, torchs = results(fast, batches, torch.float32), results(stock, batches, torch.float32)
    exact = results(oracle, batches, torch.float64)
    verdicts = {name: judge(tensor, torchs[name], exact[name]) for name, tensor in ours.items()}
    if case in LARGE or case.startswith("pointnet") or case == "unet":
        # Of a million activations one may lie within rounding of 0, where relu has a corner; PointNet's
        # transforms pass one rounding on to everything. So all gradients are held to the rule as one vector,
        # and one batch without a corner is enough: what a kernel gets wrong it gets wrong in every batch.
        gradients = [name for name in ours if name.startswith("gradient")]
        verdicts = {name: verdict for name, verdict in verdicts.items() if name not in gradients}
        tried = [
            _whole(*({n: of[n][i] for n in gradients} for of in (ours, torchs, exact)))
            for i in range(len(exact["output 0"]))
        ]
        verdicts["gradients"] = min(tried, key=lambda verdict: verdict.failure != "")
    return {name: verdict for name, verdict in verdicts.items() if verdict.failure}


@pytest.mark.parametrize("case", CASES)
def test_forward_and_gradients(case):
    failed = failures(case)
    assert not failed, "\n".join(f"{name}: {verdict}" for name, verdict in failed.items())


#: Calls of networks on small inputs whose curves are followed; the same start, the same batches.
CURVES = ("linear", "mlp", "net", "lenet5", "siamese", "stn", "vgg_mini", "resnet8", "vae", "clip")


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.slow
def test_the_loss_goes_the_same_way(name):
    """200 steps: within a thousandth of stock's at every one, or as near as stock stays to itself.

    Training carries rounding on, in an STN to 2 % of the loss. How far is seen from stock networks whose
    weights differ by one rounding at the start: ours may stray at most twice as far as they have until then.
    """
    stock, batches = make(name)
    curve = losses(copy.deepcopy(stock), batches, 200)

    def strays(other: Trained) -> Tensor:
        return ((losses(other, batches, 200) - curve) / curve).abs().cummax(0).values

    fast = strays(convert(copy.deepcopy(stock)))
    if float(fast[-1]) > 1e-3:
        noise = torch.stack([strays(rounded(stock, seed)) for seed in range(4)]).amax(0)
        assert torch.all(fast <= torch.clamp_min(2 * noise, 1e-3)), (fast, noise)


def rounded(model: Trained, seed: int) -> Trained:
    """A copy whose weights are off by one rounding, up, down or not at all."""
    generator = torch.Generator().manual_seed(seed)
    model = copy.deepcopy(model)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1 + torch.finfo(p.dtype).eps * torch.randint(-1, 2, p.shape, generator=generator).to(p))
    return model


def losses(trained: Trained, batches: list[Batch], steps: int) -> Tensor:
    optimizer = torch.optim.SGD(trained.parameters(), 0.01)
    batches = [(_cast(x, torch.float32), _cast(y, torch.float32)) for x, y in batches]
    seen = []
    for step in range(steps):
        loss = trained(*batches[step % len(batches)])[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(loss.detach())
    return torch.stack(seen)


def asked_for(call: str, note: str) -> bool:
    """Whether a row of explain is about a call that our ops are for: an activation behind a linear layer, or
    around a transformer, is not; there is no kernel of ours to take it."""
    return not any(word in note for word in ("(Linear)", "follows fc", "follows gate", "follows transform"))


@pytest.mark.parametrize("name", models.names())
def test_nine_of_ten_calls_are_served(name):
    """Convolutions, batch norms, pools, sampling, losses, the activations behind them; the rest says why."""
    if name in LARGE:
        with torch.device("meta"):
            trained = Trained(name, {})
    else:
        trained, _ = make(name)
    rows = explain(convert(trained.cpu() if name not in LARGE else trained)).rows
    # a row of several calls counts as that many
    served = sum(1 + row.call.count(" + ") for row in rows if row.op)
    ops = ("conv", "norm", "pool", "relu", "ReLU", "sigmoid", "sample", "cross_entropy", "nll")
    left = [row for row in rows if not row.op and any(op in row.call for op in ops)]
    left = [row for row in left if "LayerNorm" not in row.call and "ResponseNorm" not in row.call]
    assert all(row.note for row in left)
    ours = [row for row in left if asked_for(row.call, row.note)]
    assert served >= 9 * len(ours), [(row.path, row.call, row.note) for row in ours]
