"""The lottery ticket (Frankle and Carbin, 2018, arXiv:1803.03635): prune, go back, train again."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from .. import data, models, train
from ..train import figures
from ..train.loop import Trainer
from ..train.tasks import evaluate
from .common import Report, Setting

ROUNDS = 7
Masks = dict[str, Tensor]


def lottery(setting: Setting) -> Report:
    """784-300-100-10: each round trains, then takes the smaller half of every layer's weights away (of the
    last's a quarter). What is left begins again from its first values, or from others."""
    dataset = data.load("mnist5k")
    epochs = setting.scaled(10)
    recipe = train.recipe("mlp").changed(
        options={"hidden": (300, 100)}, optimizer="adam", lr=1.2e-3, batch=100, epochs=epochs, validation=0.0
    )
    torch.manual_seed(setting.seed)
    start = models.create("mlp", **recipe.options)
    masks = {n: torch.ones_like(p) for n, p in start.named_parameters() if p.dim() == 2}
    total = sum(m.numel() for m in masks.values())
    rows = []
    for number in range(ROUNDS + 1):
        left = sum(int(m.sum()) for m in masks.values()) / total
        rewound, accuracy = _train(start, masks, recipe, dataset, setting)
        row = {"weights left": round(left, 4), "rewound": accuracy}
        if number:
            torch.manual_seed(setting.seed + 100 + number)
            row["re-initialised"] = _train(
                models.create("mlp", **recipe.options), masks, recipe, dataset, setting
            )[1]
        rows.append(row)
        setting.console.print(f"round {number}: {row}")
        masks = _pruned(rewound, masks)
    figure, axis = figures.pyplot().subplots(figsize=(6, 3.4))
    for key in ("rewound", "re-initialised"):
        shown = [row for row in rows if key in row]
        axis.plot([100 * row["weights left"] for row in shown], [row[key] for row in shown], "o-", label=key)
    axis.axhline(rows[0]["rewound"], color="grey", linewidth=0.8, label="dense")
    axis.set(xscale="log", xlabel="% of weights left", ylabel="test accuracy")
    axis.invert_xaxis()
    axis.legend()
    figures.save(figure, setting.output / "lottery.png")
    return {"rounds": rows}


def _train(
    start: nn.Module, masks: Masks, recipe: train.Recipe, dataset: data.Data, setting: Setting
) -> tuple[nn.Module, float]:
    """A copy of ``start`` trained with the weights outside of ``masks`` held at zero; its test accuracy."""
    trainer = Trainer("mlp", recipe, train.How(setting.device), None, dataset)
    run = trainer.runs[0]
    run.model.load_state_dict(copy.deepcopy(start.state_dict()))
    masks = {name: mask.to(setting.device) for name, mask in masks.items()}
    _mask(run.model, masks)
    for epoch in range(1, recipe.epochs + 1):
        for batch in trainer.batches(epoch):
            run.step(*batch)
            _mask(run.model, masks)
    _, accuracy, _ = evaluate(run.model, run.loss, recipe.task, dataset.test, setting.device)
    return run.model, round(accuracy, 4)


@torch.no_grad()
def _mask(model: nn.Module, masks: Masks) -> None:
    for name, parameter in model.named_parameters():
        if name in masks:
            parameter.mul_(masks[name])


def _pruned(model: nn.Module, masks: Masks) -> Masks:
    """The masks without the smaller part of what is left in each layer."""
    new = {}
    for name, mask in masks.items():
        weights = model.get_parameter(name).detach().cpu().abs()[mask.bool()]
        part = 0.25 if name == list(masks)[-1] else 0.5
        threshold = weights.kthvalue(max(1, int(part * len(weights)))).values
        new[name] = mask * (model.get_parameter(name).detach().cpu().abs() > threshold)
    return new
