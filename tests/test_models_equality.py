"""Every network of the course, converted, against its stock twin: numbers, gradients, what serves calls."""

from __future__ import annotations

import copy

import pytest
import torch
from support import DEVICE
from torch import Tensor

from fastdl import convert, models
from fastdl.parity.networks import LARGE, Trained, calls, cast, compare, make

VARIANTS = {
    "highway, convolutions": ("highway", {"conv": True, "width": 16}),
    "vae, convolutions": ("vae", {"conv": True}),
    "vgg_mini, no batch norm": ("vgg_mini", {"batch_norm": False}),
    "stn, no transformer": ("stn", {"transform": False}),
}
SLOW = (*LARGE, "vgg16")  # vgg_mini is made of the same blocks
CASES = [
    *(pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in models.names()),
    *VARIANTS,
]


@pytest.mark.parametrize("case", CASES)
def test_forward_and_gradients(case):
    name, options = VARIANTS.get(case, (case, None))
    failed = {key: verdict for key, verdict in compare(name, options, DEVICE).items() if verdict.failure}
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
    stock, batches = make(name, device=DEVICE)
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


def losses(trained: Trained, batches: list, steps: int) -> Tensor:
    optimizer = torch.optim.SGD(trained.parameters(), 0.01)
    batches = [(cast(x, DEVICE, torch.float32), cast(y, DEVICE, torch.float32)) for x, y in batches]
    seen = []
    for step in range(steps):
        loss = trained(*batches[step % len(batches)])[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(loss.detach())
    return torch.stack(seen)


@pytest.mark.parametrize("name", models.names())
def test_nine_of_ten_calls_are_taken(name):
    """Convolutions, batch norms, pools, sampling, losses, the activations behind them; the rest says why."""
    taken, left = calls(name)
    assert all(row.note for row in left)
    assert taken >= 9 * len(left), [(row.path, row.call, row.note) for row in left]
