"""Writes docs/experiments.md from the JSON files beside this one: python docs/experiments/page.py"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from fastdl.experiments import EXPERIMENTS

HERE = Path(__file__).parent
HOW = {
    "baselines": "scikit-learn on the same 4,000 and 1,000 digits; clusters by purity on those of training. "
    "Expected: the nearest neighbours at 93, the linear machines at 90, the RBF SVM at 95 %; purities of 56, "
    "84 and 67 %.",
    "optimizers": "`net`, batches of 100, at the rates that stand behind the names.",
    "activations": "Eight linear layers of 64, torch's initialisation, SGD at 0.01 with momentum. Expected: "
    "tanh and ELU learn, ReLU and its leaky kind barely do, sigmoid, softplus and swish do not.",
    "initialisation": 'The same eight layers with ReLU. "he" is normal with deviation sqrt(2 / inputs), '
    '"normal" has deviation 1: its loss leaves the range of float32, which ends the run. Expected: only "he" '
    "learns.",
    "batch_norm": "`vgg_mini` by plain SGD, two epochs. Expected: with it 91, 96 and 68 % at the three "
    "rates, without it chance at each.",
    "depth": "`highway` with layers of 64 of each kind, Adam, gradients clipped to 1.",
    "overfitting": "784-512-512-10 on 200 digits, 100 epochs of SGD at 0.01 with momentum.",
    "lottery": "784-300-100-10 with Adam at 1.2e-3, 10 epochs a round; each round takes half of every "
    "layer's weights away, of the last's a quarter. \"rewound\" begins again from the first weights, "
    '"re-initialised" from fresh ones under the same mask.',
    "stn": "`stn` on distorted42.",
    "backbone": "`resnet8` trained on digits 0 to 4; its body with a fresh head learns 5 to 9 from 20 each.",
    "vae": "784-400-20-400-784, 30 epochs. Above the digits, below what 20 numbers keep of them; the plane "
    "of two numbers is [vae_plane.png](experiments/vae_plane.png).",
    "features": "`net`: a digit, the ten 5x5 filters, and the maps behind the first and the second pool.",
    "critical_points": "`pointnet_cls` at a quarter width; the red points win the maximum of some feature.",
    "geomatch": "200 pairs of views of photographs, B being A through an affine map and a spline. The affine "
    "stage of `geomatch` is trained on such pairs, the spline stage on what the first leaves of them.",
    "zero_shot": "Ten pairs of digit and colour were never trained. Each test digit comes in the colour "
    "never seen with it and is given the nearest of 50 captions.",
}


def _after(results: dict[str, Any], name: str, epoch: int = 0) -> float:
    """The accuracy of a curve after an epoch, without one after the last."""
    return results["accuracy by epoch"][name][epoch - 1]


def _overfitting(results: dict[str, Any], way: str, what: str = "test accuracy") -> float:
    rows = results["after the last epoch"]
    return rows[way][what] - rows["as it is"][what]


#: What the course accepts, and whether the results are so.
ACCEPTED: dict[str, list[tuple[str, Callable[[dict[str, Any]], bool]]]] = {
    "optimizers": [
        (
            "plain SGD 15 points behind every other after five epochs",
            lambda r: all(
                _after(r, name, 5) >= _after(r, "sgd 0.01", 5) + 0.15
                for name in r["accuracy by epoch"]
                if name != "sgd 0.01"
            ),
        )
    ],
    "depth": [
        ("30 highway layers at 90 %", lambda r: _after(r, "highway, 30") >= 0.9),
        ("30 residual layers at 90 %", lambda r: _after(r, "residual, 30") >= 0.9),
        ("30 plain layers below 30 %", lambda r: _after(r, "plain, 30") < 0.3),
    ],
    "overfitting": [
        ("augmentation gains five points of accuracy", lambda r: _overfitting(r, "augmentation") >= 0.05),
        ("decay lowers the test loss", lambda r: _overfitting(r, "weight decay 0.01", "test loss") < 0),
    ],
    "lottery": [
        (
            "somewhere below a tenth of the weights, rewound at most half a point below all weights and 1.5 "
            "points above re-initialised",
            lambda r: any(
                row["rewound"] >= max(r["rounds"][0]["rewound"] - 0.005, row["re-initialised"] + 0.015)
                for row in r["rounds"]
                if row["weights left"] <= 0.1
            ),
        )
    ],
    "stn": [
        ("93 % with the transformer", lambda r: _after(r, "with transformer") >= 0.93),
        (
            "five points above the plain CNN",
            lambda r: _after(r, "with transformer") >= _after(r, "plain CNN") + 0.05,
        ),
    ],
    "backbone": [
        (
            "five points above learning from scratch",
            lambda r: _after(r, "body of digits 0 to 4") >= _after(r, "from scratch") + 0.05,
        )
    ],
    "vae": [
        ("122 nats with 20 numbers", lambda r: r["20 latent variables"]["test -ELBO in nats"] <= 122),
        ("171 nats with two", lambda r: r["2 latent variables"]["test -ELBO in nats"] <= 171),
    ],
    "critical_points": [
        (
            "logits that stay the same without the other points, the transforms held",
            lambda r: r["largest change of a logit without the others"] <= 1e-5 * r["largest logit"],
        )
    ],
    "geomatch": [("a tenth nearer than by affine alone", lambda r: r["less than by affine alone"] >= 0.1)],
    "zero_shot": [
        ("80 % of the pairs never seen", lambda r: r["pairs never seen"] >= 0.8),
        ("91 % of random pairs", lambda r: r["random pairs"] >= 0.91),
    ],
}
INTRODUCTION = """# Experiments of the course

    fastdl experiments                         # the list
    fastdl experiment NAME --output FOLDER     # a figure and NAME.json

Each but `baselines` trains converted networks on the data sets of [models](models.md#data), by one seed.
Accuracy is that of the 1,000 test digits; in `backbone` of the 500 of its five classes, in `critical_points`
of 400 solids. At 95 % a thousand samples tell it to about 0.7 points; nothing is chosen by it. The figures
and numbers here are of runs on a CPU, whose JSON files lie [beside the figures](experiments/);
`python docs/experiments/page.py` writes this page from them.
"""


def table(heads: Iterable[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    heads = list(heads)
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    return lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows]


def percent(part: float) -> str:
    return f"{100 * part:.1f} %"


def numbers(results: dict[str, Any]) -> list[str]:
    """The results of an experiment as a table."""
    if "accuracy by epoch" in results:
        curves = results["accuracy by epoch"]
        last = max(map(len, curves.values()))
        epochs = sorted({min(5, last), last})
        rows = [
            (name, *(percent(curve[e - 1]) if len(curve) >= e else "ended" for e in epochs))
            for name, curve in curves.items()
        ]
        return table(["", *(f"after epoch {e}" for e in epochs)], rows)
    if "rounds" in results:
        rows = [
            (
                percent(r["weights left"]),
                percent(r["rewound"]),
                percent(r.get("re-initialised", r["rewound"])),
            )
            for r in results["rounds"]
        ]
        return table(["weights left", "rewound", "re-initialised"], rows)
    if all(isinstance(value, dict) for value in results.values()):
        results = next(iter(results.values())) if len(results) == 1 else results
        if all(isinstance(value, dict) for value in results.values()):
            heads = list(next(iter(results.values())))
            if all(list(value) == heads for value in results.values()):
                rows = ((name, *map(shown, heads, r.values())) for name, r in results.items())
                return table(["", *heads], rows)
            results = {f"{k}, {name}": v for name, r in results.items() for k, v in r.items()}
    return table(["", ""], ((name, shown(name, value)) for name, value in results.items()))


def shown(name: str, value: Any) -> str:
    """A part as a percentage, whatever else as it is."""
    if not isinstance(value, float):
        return str(value)
    if any(word in name for word in ("loss", "nats", "pixels", "logit")):
        return f"{value:.3g}" if value < 100 else f"{value:.1f}"
    return percent(value)


def accepted(name: str, results: dict[str, Any]) -> list[str]:
    """The course's criteria as a line."""
    said = [f"{text} ({'met' if met(results) else 'missed'})" for text, met in ACCEPTED.get(name, ())]
    return [f"Accepted: {'; '.join(said)}.", ""] if said else []


def text() -> str:
    """The page."""
    lines, missing = [INTRODUCTION], []
    for name, experiment in EXPERIMENTS.items():
        if not (HERE / f"{name}.json").exists():
            missing.append(f"`{name}`")
            continue
        results = json.loads((HERE / f"{name}.json").read_text())["results"]
        lines += [f"## {name}", "", f"{experiment.question} {HOW[name]}", "", *numbers(results)]
        lines += ["", *accepted(name, results), f"![{name}](experiments/{name}.png)", ""]
    if missing:
        lines += ["## Without a committed run", "", f"{', '.join(missing)}: run them by name.", ""]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    (HERE.parent / "experiments.md").write_text(text())
