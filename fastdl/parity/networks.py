"""The networks of the course, converted, against their stock twins: numbers, gradients, calls taken."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import convert, explain, models
from ..convert.explain import Row
from .tolerance import Verdict, judge

#: Networks too large for a quick look, by what makes them small: fewer channels or pixels, the same layers.
SMALL: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "alexnet": ({"widths": (8, 16, 24, 24, 16), "hidden": 32, "size": 67}, (2, 3, 67, 67)),
    "vgg16": ({"width": 8, "size": 32, "batch_norm": True}, (8, 3, 32, 32)),
    "pointnet_cls": ({"width": 0.125}, (16, 3, 64, 1)),
    "pointnet_seg": ({"width": 0.125}, (16, 3, 64, 1)),
}
#: As they are, seconds each.
LARGE = ("inception_v3", "googlenet", "resnet18", "resnet50", "densenet")
#: Each tensor is judged over that many batches at once: a bias of four numbers alone hangs on torch's luck.
BATCHES = 4

Tensors = tuple[Tensor, ...]
Batch = tuple[Tensors, Tensors]


class Trained(nn.Module):
    """A network with its loss, converted as one."""

    def __init__(self, name: str, options: dict[str, Any]) -> None:
        super().__init__()
        self.model = models.create(name, **options)
        self.loss = models.create_loss(name)

    def forward(self, inputs: Tensors, targets: Tensors) -> Tensors:
        out = self.model(*inputs)
        out = out if isinstance(out, tuple) else (out,)
        return self.loss(*out, *targets), *out


def make(
    name: str, options: dict[str, Any] | None = None, device: torch.device | str = "cpu"
) -> tuple[Trained, list[Batch]]:
    """The network in float32 on the device, without dropout, and batches for it."""
    inputs, targets = models.example_inputs(name), models.example_targets(name)
    if options is None and name in SMALL:
        options, shape = SMALL[name]
        inputs, targets = _resized(inputs, targets, shape)
    if name in LARGE:  # two images of 2x2 pixels in the last stage would make batch norms ill-conditioned
        side = 107 if name == "inception_v3" else 64
        inputs, targets = _resized(inputs, targets, (4, 3, side, side))
    torch.manual_seed(0)
    trained = Trained(name, options or {})
    for module in trained.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0  # the oracle would drop others
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.Linear) and not module.weight.any():
            # a warp at the identity falls on pixels, on corners of its slope
            nn.init.normal_(module.weight, std=1e-3)
    trained.train(name != "vae")  # which samples in training
    generator = torch.Generator().manual_seed(3)
    batches = [(inputs, targets)]
    for _ in range(BATCHES - 1 if name not in LARGE else 1):
        other = tuple(_shaken(x, name, generator) for x in inputs)
        batches.append((other, targets))
    return trained.to(device), batches


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
    draw = torch.rand if name == "vae" else torch.randn
    return draw(x.shape, generator=generator)


def compare(
    name: str, options: dict[str, Any] | None = None, device: torch.device | str = "cpu"
) -> dict[str, Verdict]:
    """Outputs and gradients of all parameters of the converted network, each by the rule."""
    stock, batches = make(name, options, device)
    fast = convert(copy.deepcopy(stock))
    oracle = copy.deepcopy(stock).double()
    ours, torchs = results(fast, batches, torch.float32), results(stock, batches, torch.float32)
    exact = results(oracle, batches, torch.float64)
    verdicts = {key: judge(tensor, torchs[key], exact[key]) for key, tensor in ours.items()}
    if name in LARGE or name.startswith("pointnet") or name == "unet":
        # Of a million activations one may lie within rounding of 0, where relu has a corner; PointNet's
        # transforms pass one rounding on to everything. So all gradients are held to the rule as one vector,
        # and one batch without a corner is enough: what a kernel gets wrong it gets wrong in every batch.
        gradients = [key for key in ours if key.startswith("gradient")]
        verdicts = {key: verdict for key, verdict in verdicts.items() if key not in gradients}
        tried = [
            _whole(*({n: of[n][i] for n in gradients} for of in (ours, torchs, exact)))
            for i in range(len(exact["output 0"]))
        ]
        verdicts["gradients"] = min(tried, key=lambda verdict: verdict.failure != "")
    return verdicts


def results(trained: Trained, batches: list[Batch], dtype: torch.dtype) -> dict[str, Tensor]:
    """Loss, outputs and gradients of all parameters, over all batches."""
    device = next(trained.parameters()).device
    found: dict[str, list[Tensor]] = {}
    for inputs, targets in batches:
        loss, *out = trained(cast(inputs, device, dtype), cast(targets, device, dtype))
        names, parameters = zip(*trained.named_parameters(), strict=True)
        for i, tensor in enumerate(out):
            found.setdefault(f"output {i}", []).append(tensor.detach())
        # with the logits: one number alone hangs on torch's luck
        found["output 0"][-1] = torch.cat([loss.detach().view(1), out[0].detach().flatten()])
        for name, grad in zip(names, torch.autograd.grad(loss, parameters), strict=True):
            found.setdefault(f"gradient of {name}", []).append(grad)
    return {name: torch.stack(tensors) for name, tensors in found.items()}


def cast(tensors: Tensors, device: torch.device | str, dtype: torch.dtype) -> Tensors:
    """On the device, those of floating point in ``dtype``."""
    return tuple(t.to(device, dtype if t.is_floating_point() else t.dtype) for t in tensors)


def _whole(ours: dict[str, Tensor], torchs: dict[str, Tensor], exact: dict[str, Tensor]) -> Verdict:
    """The rule for all gradients as one vector, with lengths in the place of largest errors."""

    def length(tensors: list[Tensor]) -> float:
        return float(torch.stack([t.cpu().double().norm() for t in tensors]).norm())

    error, torch_error = (length([which[n] - exact[n] for n in exact]) for which in (ours, torchs))
    allowed = 2 * torch_error + torch.finfo(torch.float32).eps * length(list(exact.values()))
    return Verdict(error, torch_error, "too far from the oracle" if error > allowed else "")


class Calls(NamedTuple):
    """How many calls of a network our ops take, and those of the kind that they leave, with the reason."""

    taken: int
    left: list[Row]


def calls(name: str) -> Calls:
    """Convolutions, batch norms, pools, sampling, losses and the activations behind them."""
    if name in LARGE:
        with torch.device("meta"):
            trained = Trained(name, {})
    else:
        trained, _ = make(name)
    rows = explain(convert(trained)).rows
    # a row of several calls counts as that many
    taken = sum(1 + row.call.count(" + ") for row in rows if row.op)
    ops = ("conv", "norm", "pool", "relu", "ReLU", "sigmoid", "sample", "cross_entropy", "nll")
    left = [row for row in rows if not row.op and any(op in row.call for op in ops)]
    left = [row for row in left if "LayerNorm" not in row.call and "ResponseNorm" not in row.call]
    return Calls(taken, [row for row in left if _asked_for(row.note)])


def _asked_for(note: str) -> bool:
    """Whether a row is about a call that our ops are for: an activation behind a linear layer, or around a
    transformer, is not; there is no kernel of ours to take it."""
    return not any(word in note for word in ("(Linear)", "follows fc", "follows gate", "follows transform"))
