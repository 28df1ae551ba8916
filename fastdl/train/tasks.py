"""What a network is to do: what its loss takes as targets, and the one score that tells how good it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.digits import all_captions
from ..data.sets import Split

Tensors = tuple[Tensor, ...]


class Task(NamedTuple):
    """``score(outputs, targets)`` of a whole split; more is better, ``sign`` -1 where less is. ``further``
    scores are reported and nothing is chosen by them; ``targets`` is what the loss makes of the data's."""

    label: str
    score: Callable[[Tensors, Tensors], float]
    sign: int = 1
    targets: Callable[[Tensors], Tensors] = lambda targets: targets
    further: Mapping[str, Callable[[Tensors, Tensors], float]] = MappingProxyType({})


def _accuracy(outputs: Tensors, targets: Tensors) -> float:
    return float((outputs[0].argmax(1) == targets[0]).float().mean())


def mean_iou(outputs: Tensors, targets: Tensors) -> float:
    """The mean over the classes, but for the background (class 0 of images), of intersection over union."""
    predicted, target, classes = outputs[0].argmax(1), targets[0], outputs[0].shape[1]
    confusion = torch.bincount((target * classes + predicted).flatten(), minlength=classes**2)
    confusion = confusion.view(classes, classes).double()
    hits = confusion.diagonal()
    iou = hits / (confusion.sum(0) + confusion.sum(1) - hits).clamp(min=1)
    return float(iou[1 if target.dim() == 3 else 0 :].mean())


def _pairs(outputs: Tensors, targets: Tensors) -> float:
    near = F.pairwise_distance(*outputs) < 0.5
    return float((near == (targets[0] > 0.5)).float().mean())


def _pairs_auc(outputs: Tensors, targets: Tensors) -> float:
    """The chance that a pair of one class is nearer than a pair of two."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(targets[0], -F.pairwise_distance(*outputs)))


def _pixels(outputs: Tensors, targets: Tensors) -> float:
    """The mean distance in pixels of a 48x48 image of the 9x9 points from where they should be."""
    from ..models.geomatch import grid_points, map_points

    warp = outputs[0]
    return 24 * float((map_points(warp, grid_points(9).to(warp)) - targets[0]).norm(dim=2).mean())


def _same(targets: Tensors) -> Tensors:
    (pair,) = targets
    return ((pair.unsqueeze(1) == pair.unsqueeze(0)).float(),)


TASKS = {
    "classify": Task("accuracy", _accuracy),
    "segment": Task("mean IoU", mean_iou),
    "pairs": Task("pairs right", _pairs, further={"AUC": _pairs_auc}),
    "match": Task("pixels off", _pixels, sign=-1),
    "likelihood": Task("-ELBO in nats", lambda outputs, targets: float("nan"), sign=-1),
    "caption": Task("right of 50 captions", _accuracy, targets=_same),
}


@torch.no_grad()
def evaluate(
    model: nn.Module, loss: nn.Module, task_name: str, split: Split, device: torch.device, batch: int = 200
) -> tuple[float, float, Tensors]:
    """Mean loss, score and all outputs (on the CPU) of ``model`` on ``split``, in evaluation mode.

    A likelihood is bounded by samples of the latent variables, which an autoencoder draws in training only:
    it is evaluated so, with the same numbers every time.
    """
    task = TASKS[task_name]
    if task_name == "likelihood":
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            return _evaluate(model.train(), loss, task, split, device, batch, None)
    captions = all_captions().to(device) if task_name == "caption" else None
    return _evaluate(model.eval(), loss, task, split, device, batch, captions)


def _evaluate(
    model: nn.Module,
    loss: nn.Module,
    task: Task,
    split: Split,
    device: torch.device,
    batch: int,
    captions: Tensor | None,
) -> tuple[float, float, Tensors]:
    outputs, total, number = [], 0.0, len(split.targets[0])
    for start in range(0, number, batch):
        inputs = tuple(x[start : start + batch].to(device) for x in split.inputs)
        targets = tuple(y[start : start + batch].to(device) for y in split.targets)
        out = model(*inputs)
        out = out if isinstance(out, tuple) else (out,)
        total += float(loss(*out, *task.targets(targets))) * len(targets[0])
        if captions is not None:  # of all there are, not of those in the batch
            out = (model(inputs[0], captions),)
        outputs.append(tuple(o.float().cpu() for o in out))
    whole = tuple(torch.cat(parts) for parts in zip(*outputs, strict=True) if parts[0].dim())
    mean = total / number
    score = mean if task is TASKS["likelihood"] else task.score(whole, tuple(y.cpu() for y in split.targets))
    return mean, score, whole
