"""The experiments: what each leaves, and the claims that hold whatever was learnt."""

import io
import json
import runpy
from pathlib import Path

import pytest
import torch
from rich.console import Console

from fastdl import data, experiments, models
from fastdl.experiments import matching, seeing
from fastdl.experiments.lottery import _pruned
from fastdl.models import geomatch

pytest.importorskip("matplotlib")
pytest.importorskip("mlxtend")
pytest.importorskip("sklearn")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [n for n in experiments.EXPERIMENTS if n not in ("stn", "backbone", "batch_norm")]
)
def test_an_experiment_leaves_a_figure_and_numbers(tmp_path, name):
    """With as few epochs as there can be: that it runs, not what it shows."""
    report = experiments.run(name, tmp_path, Console(file=io.StringIO()), epochs=0.01)
    assert json.loads((tmp_path / f"{name}.json").read_text())["results"] == report["results"]
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_unknown_experiment(tmp_path):
    with pytest.raises(ValueError, match=r"expected one of baselines, .*, got 'gan'"):
        experiments.run("gan", tmp_path, Console())


def test_pruning_takes_the_smaller_half():
    model = models.create("mlp", inputs=8, hidden=(16,), classes=4)
    names = [n for n, p in model.named_parameters() if p.dim() == 2]
    masks = {n: torch.ones_like(model.get_parameter(n)) for n in names}
    masks = _pruned(model, masks)
    assert [int(masks[n].sum()) for n in names] == [64, 48]  # half of 128, three quarters of the last 64
    weights = model.get_parameter(names[0]).detach().abs()
    kept = masks[names[0]].bool()
    assert float(weights[kept].min()) > float(weights[~kept].max())
    assert int(_pruned(model, masks)[names[0]].sum()) == 32


@torch.no_grad()
def test_critical_points_decide_alone():
    """With the transforms held, leaving out whatever does not win the maximum changes nothing."""
    model = models.create("pointnet_cls", width=0.25, classes=8).eval()
    x = models.example_inputs("pointnet_cls")[0][:1]
    transforms = seeing.held(model, x)
    competing, logits = seeing.with_transforms(model, x, transforms)
    torch.testing.assert_close(logits, model(x)[0])
    kept = competing[0, :, :, 0].argmax(1).unique()
    assert 1 < len(kept) < x.shape[2]
    torch.testing.assert_close(seeing.with_transforms(model, x[:, :, kept], transforms)[1], logits)


def test_what_an_affine_stage_leaves_is_for_the_next():
    """Where it took the grid and where the next stage is to take it from there end where they should."""
    theta = torch.tensor([0.9, 0.2, 0.1, -0.3, 1.1, 0.2]).repeat(3, 1)
    a, b, wanted = torch.rand(3, 1, 48, 48), torch.rand(3, 1, 48, 48), torch.rand(3, 81, 2) - 0.5
    split = data.Split((a, b), (wanted,))
    rest = matching.remaining(data.Data(split, split, lambda *batch: batch[:2]), lambda a, b: theta)
    for (aligned, kept), (target,) in (rest.test, rest.draw(*split, torch.Generator())):
        torch.testing.assert_close(geomatch.map_points(theta, target), wanted)
        torch.testing.assert_close(aligned, geomatch.Warp("affine", 48, "reflection")(a, theta))
        assert kept is b


def test_the_page_says_what_the_runs_said():
    root = Path(__file__).parent.parent / "docs"
    page = runpy.run_path(str(root / "experiments" / "page.py"), run_name="page")
    assert (root / "experiments.md").read_text() == page["text"]()
