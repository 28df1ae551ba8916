"""How each network of the course is trained unless the user says otherwise, as one table of data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from .. import models


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a run computes."""

    data: str = "mnist5k"
    task: str = "classify"  # a key of tasks.TASKS
    options: dict[str, Any] = field(default_factory=dict)  # of the network
    optimizer: str = "sgd"  # a key of optimizers.OPTIMIZERS
    lr: float = 0.01
    weight_decay: float = 0.0
    clip: float = 0.0  # largest norm of all gradients; 0 for none
    schedule: str = "constant"  # a key of optimizers.SCHEDULES
    slow: tuple[str, float] = ("", 1.0)  # parameters whose names begin so learn at that part of the rate
    batch: int = 100
    epochs: int = 15
    validation: float = 0.1  # of the training samples, held out to choose by
    patience: int = 0  # epochs without a better validation score before stopping; 0 for never
    augment: tuple[str, ...] = ()  # keys of augment.TRANSFORMS
    seed: int = 0

    def changed(self, **changes: Any) -> Recipe:
        """A recipe with these in place of its own; None leaves what there is."""
        return replace(self, **{k: v for k, v in changes.items() if v is not None})

    def plain(self) -> dict[str, Any]:
        """As lists, numbers and strings, for JSON and checkpoints."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @staticmethod
    def from_plain(values: dict[str, Any]) -> Recipe:
        """The recipe that ``plain`` told."""
        known = {f.name for f in fields(Recipe)}
        return Recipe(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known})


_ADAM = Recipe(optimizer="adam", lr=1e-3)
RECIPES = {
    "linear": Recipe(epochs=30),
    "mlp": Recipe(optimizer="momentum", lr=0.05, batch=64, epochs=30),
    "net": Recipe(options={"dropout": 0.0}, epochs=30),
    "lenet5": Recipe(optimizer="momentum"),
    "alexnet_mini": _ADAM.changed(data="mnist5k_67", epochs=10),
    "vgg_mini": _ADAM.changed(epochs=5),
    "inception_mini": _ADAM.changed(epochs=5),
    "resnet8": _ADAM.changed(epochs=5),
    "densenet_mini": _ADAM.changed(epochs=5),
    "highway": _ADAM.changed(clip=1.0, epochs=20),
    "unet": _ADAM.changed(data="shapes64", task="segment", lr=2e-3, batch=20, epochs=25),
    "siamese": _ADAM.changed(data="digit_pairs", task="pairs", epochs=5),
    "stn": _ADAM.changed(data="distorted42", schedule="cosine", slow=("localisation", 0.5), epochs=20),
    "geomatch": _ADAM.changed(data="warps48", task="match", batch=16, epochs=33),
    "geomatch_tps": _ADAM.changed(data="warps48_tps", task="match", batch=16, epochs=14),
    "pointnet_cls": _ADAM.changed(data="solids8", options={"width": 0.25, "classes": 8}, batch=32, epochs=10),
    "pointnet_seg": _ADAM.changed(
        data="parts10", task="segment", options={"width": 0.25, "parts": 10}, batch=32, epochs=10
    ),
    "vae": _ADAM.changed(data="pixels", task="likelihood", epochs=30),
    "vit": Recipe(optimizer="adamw", lr=2e-3, schedule="one_cycle", epochs=20),
    "clip": Recipe(data="captions", task="caption", optimizer="adamw", lr=1e-3, epochs=8),
}


def recipe(name: str) -> Recipe:
    """The recipe of the network ``name``.

    Raises:
        ValueError: if there is no such network, or nothing here for it to learn from.
    """
    if name not in models.names():
        raise ValueError(f"fastdl.train: expected one of {', '.join(RECIPES)}, got {name!r}")
    if name not in RECIPES:
        small = ", ".join(n for n in RECIPES if "mini" in n or n == "resnet8")
        raise ValueError(
            f"fastdl.train: expected a network with a data set here, got {name!r}, which wants ImageNet; "
            f"the small ones are {small}"
        )
    return RECIPES[name]
