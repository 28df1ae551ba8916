"""The training loop: one network, or a stock and a converted one side by side on the same batches.

Whatever is random in a step is drawn from the seed and the number of the step: batches in every process the
same, what a network draws itself (dropout) in each its own. So a run that was interrupted continues to the
same weights, and twins drop the same units.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader

from .. import convert, data, models
from . import checkpoint, distributed
from .augment import TRANSFORMS
from .graphs import GraphedStep
from .optimizers import make_optimizer, set_rate
from .recipes import Recipe
from .tasks import TASKS, evaluate


class How(NamedTuple):
    """How a run computes: but for ``amp``, whose precision is another, the same up to rounding."""

    device: torch.device = torch.device("cpu")
    runs: tuple[str, ...] = ("converted",)  # of "stock" and "converted"
    amp: bool = False
    compile: bool = False
    cuda_graphs: bool = False
    workers: int = 0  # processes that fetch batches


class Run:
    """A network on its way, with its loss and optimiser."""

    def __init__(self, kind: str, name: str, model: nn.Module, recipe: Recipe, how: How) -> None:
        self.kind = kind
        self.model = model.to(how.device)
        self.loss = models.create_loss(name).to(how.device)
        if kind == "converted":
            convert(self.model)
            convert(self.loss)
        self.called = self.model
        if distributed.rank_and_size()[1] > 1:
            self.called = distributed.wrap(self.model, how.device)
        if how.compile:
            self.called = torch.compile(self.called)
        self.optimizer = make_optimizer(
            self.model, recipe.optimizer, recipe.lr, recipe.weight_decay, recipe.slow
        )
        half = torch.bfloat16
        if how.device.type == "cuda" and not torch.cuda.is_bf16_supported():
            half = torch.float16
        self.autocast = torch.autocast(how.device.type, half, enabled=how.amp)
        self.scaler = torch.amp.GradScaler(how.device.type, enabled=how.amp and half is torch.float16)
        self.clip = recipe.clip
        self.targets = TASKS[recipe.task].targets
        self.graphed = GraphedStep(self.backward, self.model) if how.cuda_graphs else None
        self.best: dict[str, Any] = {"score": None, "epoch": 0, "weights": None}
        self.losses: list[Tensor] = []  # of each step of this process
        self.seconds: list[float] = []

    def backward(self, inputs: tuple[Tensor, ...], targets: tuple[Tensor, ...]) -> Tensor:
        """The loss, with its gradients left in the parameters."""
        with self.autocast:
            out = self.called(*inputs)
            out = out if isinstance(out, tuple) else (out,)
            loss = self.loss(*out, *self.targets(targets))
        self.scaler.scale(loss).backward()
        return loss.detach()

    def step(self, inputs: tuple[Tensor, ...], targets: tuple[Tensor, ...]) -> Tensor:
        """One step of training; the loss before it."""
        self.model.train()
        if self.graphed is not None:
            loss = self.graphed(inputs, targets)
        else:
            self.optimizer.zero_grad()
            loss = self.backward(inputs, targets)
        if self.clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss

    def state(self) -> dict[str, Any]:
        return {
            "weights": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "best": self.best,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.best = state["best"]


def fresh(name: str, recipe: Recipe) -> nn.Module:
    """The network ``name`` with the first weights of its run."""
    torch.manual_seed(recipe.seed)
    return models.create(name, **recipe.options)


class Trainer:
    """Trains ``name`` by ``recipe``, keeping ``last.pt`` and ``best.pt`` in ``output`` if that is given."""

    def __init__(
        self,
        name: str,
        recipe: Recipe,
        how: How,
        output: Path | None,
        dataset: data.Data,
        model: nn.Module | None = None,
    ) -> None:
        """``model``: the network ``name`` as ``fresh`` builds it, where it is built already."""
        self.name, self.recipe, self.how, self.output, self.data = name, recipe, how, output, dataset
        self.held = None
        if recipe.validation:
            self.data, self.held = data.hold_out(dataset, recipe.validation, recipe.seed)
        self.batch = min(recipe.batch, len(self.data.train.targets[0]))
        self.rank, self.size = distributed.rank_and_size()
        if self.batch % self.size:
            raise ValueError(
                f"fastdl.train: expected a batch that {self.size} processes can share, got {self.batch}"
            )
        model = fresh(name, recipe) if model is None else model
        twins = [model, *(copy.deepcopy(model) for _ in how.runs[1:])]
        self.runs = [Run(kind, name, twin, recipe, how) for kind, twin in zip(how.runs, twins, strict=True)]
        self.history: list[dict[str, Any]] = []
        self.epoch = 0
        self.stopped = False

    # -- batches --------------------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """Of one epoch: an incomplete last batch is left out."""
        return len(self.data.train.targets[0]) // self.batch

    def batches(self, epoch: int) -> Iterator[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]:
        """What this process gets of every batch of the epoch."""
        generator = torch.Generator().manual_seed(self._seed(epoch, 0))
        order = torch.randperm(len(self.data.train.targets[0]), generator=generator)
        picked = [part for part in order.split(self.batch) if len(part) == self.batch]
        loader = DataLoader(
            data.Samples(self.data.train),
            sampler=picked,
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=self.how.workers,
            persistent_workers=False,
        )
        for number, (inputs, targets) in enumerate(loader):
            generator = torch.Generator().manual_seed(self._seed(epoch, number + 1))
            if self.data.draw is not None:
                inputs, targets = self.data.draw(inputs, targets, generator)
            for transform in self.recipe.augment:
                inputs = (TRANSFORMS[transform](inputs[0], generator), *inputs[1:])
            share = slice(self.rank, None, self.size)
            device = self.how.device
            yield tuple(x[share].to(device) for x in inputs), tuple(y[share].to(device) for y in targets)

    def _seed(self, epoch: int, number: int) -> int:
        """Of the order of an epoch (number 0) or of its batches, the same in every process."""
        return (self.recipe.seed * 1_000_003 + epoch) * 1_000_003 + number

    # -- training -------------------------------------------------------------------------------------------

    def train(self, console: Console) -> None:
        """All epochs that are still to come, with a checkpoint behind each."""
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=console, disable=self.rank > 0) as progress:
            bar = progress.add_task(self.name, total=self.recipe.epochs * self.steps)
            progress.update(bar, completed=self.epoch * self.steps)
            while self.epoch < self.recipe.epochs and not self.stopped:
                self._epoch(progress, bar)

    def _epoch(self, progress: Progress, bar: Any) -> None:
        epoch = self.epoch + 1
        for number, (inputs, targets) in enumerate(self.batches(epoch)):
            done = ((epoch - 1) * self.steps + number) / (self.recipe.epochs * self.steps)
            # taking turns in going first, so that neither always finds the caches warm
            for run in self.runs if number % 2 else reversed(self.runs):
                torch.manual_seed(self._seed(epoch, number + 1) * self.size + self.rank)
                set_rate(run.optimizer, self.recipe.schedule, done)
                start = self._now()
                run.losses.append(run.step(inputs, targets))
                run.seconds.append(self._now() - start)
            shown = f"{self.name} epoch {epoch}/{self.recipe.epochs}"
            if number % 10 == 0:
                shown += "".join(f" {run.kind} {float(run.losses[-1]):.3f}" for run in self.runs)
                progress.update(bar, description=shown)
            progress.advance(bar)
        self.epoch = epoch
        for run in self.runs:
            loss = float(torch.stack(run.losses[-self.steps :]).mean())
            loss = distributed.mean(loss, self.how.device)
            self._judge(run, loss, sum(run.seconds[-self.steps :]) / max(self.steps, 1))
        if self.rank == 0 and self.output is not None:
            self.save()

    def _judge(self, run: Run, loss: float, seconds: float) -> None:
        """Validate ``run``, keep it if it is the best so far, stop if it has long not been."""
        if not math.isfinite(loss):
            self.stopped = True  # nothing can come of it
        row = {"epoch": self.epoch, "run": run.kind, "train_loss": loss}
        row |= {"validation_loss": None, "score": None, "lr": run.optimizer.param_groups[0]["lr"]}
        if self.held is not None:
            held_loss, score, _ = evaluate(run.model, run.loss, self.recipe.task, self.held, self.how.device)
            row |= {"validation_loss": held_loss, "score": score}
            better = TASKS[self.recipe.task].sign * score
        else:
            better = float(self.epoch)  # the last one
        if run.best["score"] is None or better > run.best["score"]:
            weights = {k: v.detach().cpu().clone() for k, v in run.model.state_dict().items()}
            run.best = {"score": better, "epoch": self.epoch, "weights": weights}
        elif self.recipe.patience and self.epoch - run.best["epoch"] >= self.recipe.patience:
            self.stopped = True
        self.history.append(row | {"milliseconds_per_step": 1e3 * seconds})

    def _now(self) -> float:
        if self.how.device.type == "cuda":
            torch.cuda.synchronize(self.how.device)
        return time.perf_counter()

    # -- checkpoints ----------------------------------------------------------------------------------------

    def save(self) -> None:
        """All there is to go on from to last.pt; the best weights of the last of the runs to best.pt."""
        state = {
            "recipe": self.recipe.plain(),
            "epoch": self.epoch,
            "stopped": self.stopped,
            "history": self.history,
            "runs": {run.kind: run.state() for run in self.runs},
        }
        checkpoint.save(self.output / "last.pt", self.name, state)
        best = {"options": dict(self.recipe.options), **self.runs[-1].best}
        checkpoint.save(self.output / "best.pt", self.name, best)

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from what ``save`` wrote.

        Raises:
            ValueError: if it is of other runs (stock, converted) than these.
        """
        if set(state["runs"]) != {run.kind for run in self.runs}:
            wanted = " and ".join(run.kind for run in self.runs)
            found = " and ".join(state["runs"])
            raise ValueError(f"fastdl.train: expected a checkpoint of {wanted} networks, got one of {found}")
        for run in self.runs:
            run.load(state["runs"][run.kind])
        self.epoch, self.history = state["epoch"], state["history"]
        self.stopped = state["stopped"] and self.recipe.patience > 0


def _as_it_is(batch: Any) -> Any:
    return batch
