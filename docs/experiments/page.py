"""Writes docs/experiments.md from the JSON files beside this one: python docs/experiments/page.py"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastdl.experiments import EXPERIMENTS

HERE = Path(__file__).parent
HOW = {
    "baselines": "scikit-learn on the same 4,000 and 1,000 digits; clusters by purity on those of training. "
    "Expected: the nearest neighbours at 93, the linear machines at 90, the RBF SVM at 95 %; purities of 56, "
    "84 and 67 %.",
    "optimizers": "`net`, batches of 100, at the rates that stand behind the names. Accepted: plain SGD at "
    "least 15 points behind the others after five epochs.",
    "activations": "Eight linear layers of 64, torch's initialisation, SGD at 0.01 with momentum. Expected: "
    "tanh and ELU learn, ReLU and its leaky kind barely do, sigmoid, softplus and swish do not.",
    "initialisation": 'The same eight layers with ReLU. "he" is normal with deviation sqrt(2 / inputs), '
    '"normal" has deviation 1: its loss leaves the range of float32, which ends the run. Expected: only "he" '
    "learns.",
    "batch_norm": "`vgg_mini` by plain SGD, two epochs. Expected: with it 91, 96 and 68 % at the three "
    "rates, without it chance at each.",
    "depth": "`highway` with layers of 64 of each kind, Adam, gradients clipped to 1. Accepted: highway and "
    "residual layers at 90 % and more when 30 deep, plain ones below 30 %.",
    "overfitting": "784-512-512-10 on 200 digits, 100 epochs of SGD at 0.01 with momentum. Expected: dropout "
    "and decay do not raise accuracy, augmentation does by five points, decay lowers the test loss.",
    "lottery": "784-300-100-10 with Adam at 1.2e-3, 10 epochs a round; each round takes half of every "
    "layer's weights away, of the last's a quarter. \"rewound\" begins again from the first weights, "
    '"re-initialised" from fresh ones under the same mask. Accepted: with a tenth of the weights or fewer, '
    "rewound no more than half a point below all of them and 1.5 points above re-initialised.",
    "stn": "`stn` on distorted42. Accepted: 93 % and more with the transformer, and five points above the "
    "plain CNN.",
    "backbone": "`resnet8` trained on digits 0 to 4; its body with a fresh head learns 5 to 9 from 20 each. "
    "Accepted: five points above learning from scratch.",
    "vae": "784-400-20-400-784, 30 epochs. Above the digits, below what 20 numbers keep of them; the plane "
    "of two numbers is [vae_plane.png](experiments/vae_plane.png). Accepted: at most 122 nats with 20 "
    "numbers, 171 with two.",
    "features": "`net`: a digit, the ten 5x5 filters, and the maps behind the first and the second pool.",
    "critical_points": "`pointnet_cls` at a quarter width; the red points win the maximum of some feature. "
    "Expected: without the others, the transforms held, the logits stay the same.",
    "geomatch": "`geomatch` on affine pairs and `geomatch_tps` on pairs by splines, trained apart; then one "
    "behind the other on 200 pairs that both maps were applied to. Accepted: a tenth nearer than affine "
    "alone.",
    "zero_shot": "Ten pairs of digit and colour were never trained. Each test digit comes in the colour "
    "never seen with it and is given the nearest of 50 captions. Accepted: 80 % on these, 91 % on "
    "random pairs.",
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
                return table(["", *heads], ((name, *map(shown, r.values())) for name, r in results.items()))
            results = {f"{k}, {name}": v for name, r in results.items() for k, v in r.items()}
    return table(["", ""], ((name, shown(value)) for name, value in results.items()))


def shown(value: Any) -> str:
    """A part as a percentage, whatever else as it is."""
    if isinstance(value, float) and 0.005 < value < 1:
        return percent(value)
    return f"{value:.2g}" if isinstance(value, float) and value < 0.005 else str(value)


def text() -> str:
    """The page."""
    lines, missing = [INTRODUCTION], []
    for name, experiment in EXPERIMENTS.items():
        if not (HERE / f"{name}.json").exists():
            missing.append(f"`{name}`")
            continue
        results = json.loads((HERE / f"{name}.json").read_text())["results"]
        lines += [f"## {name}", "", f"{experiment.question} {HOW[name]}", "", *numbers(results)]
        lines += ["", f"![{name}](experiments/{name}.png)", ""]
    if missing:
        lines += ["## Without a committed run", "", f"{', '.join(missing)}: run them by name.", ""]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    (HERE.parent / "experiments.md").write_text(text())
