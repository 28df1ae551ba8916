"""What networks see: filters, maps, latent planes, critical points, captions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import data
from ..data.digits import all_captions, caption, coloured
from ..train import figures
from .common import Report, Setting, fit, grid


@torch.no_grad()
def features(setting: Setting) -> Report:
    """The filters of `net` and what they make of a digit."""
    with torch.enable_grad():
        trainer = fit(setting, "net", optimizer="momentum", epochs=15)
    model = trainer.runs[0].model.cpu()
    x = trainer.data.test.inputs[0][200:201]
    first = F.relu(F.max_pool2d(model.conv1(x), 2))
    second = F.relu(F.max_pool2d(model.conv2(first), 2))
    figure, axes = figures.pyplot().subplots(5, 10, figsize=(8, 4.2))
    shown = torch.zeros(10, 28, 28)
    shown[0] = x[0, 0]
    grid(axes[0], shown[:1], ["a digit"])
    grid(axes[1], model.conv1.weight[:, 0], [f"filter {i}" for i in range(10)])
    grid(axes[2], first[0])
    grid(axes[3:], second[0])
    figures.save(figure, setting.output / "features.png")
    return {"test accuracy": round(trainer.history[-1]["score"], 4), "digit": 2}


@torch.no_grad()
def vae(setting: Setting) -> Report:
    """Reconstructions from 20 numbers; the plane of an autoencoder with two; 5 nearest neighbours on both."""
    from sklearn.neighbors import KNeighborsClassifier

    digits, report, trained = data.mnist5k(), {}, {}
    for latents in (20, 2):
        with torch.enable_grad():
            trainer = fit(setting, "vae", options={"latents": latents})
        model = trained[latents] = trainer.runs[0].model.cpu()
        codes = [model(x)[1].numpy() for x in (digits.train_images, digits.test_images)]
        neighbours = KNeighborsClassifier(5).fit(codes[0], digits.train_labels.numpy())
        report[f"{latents} latent variables"] = {
            "test -ELBO in nats": round(trainer.history[-1]["score"], 2),
            "5 nearest neighbours": round(float(neighbours.score(codes[1], digits.test_labels.numpy())), 4),
        }
    shown = digits.test_images[::100]
    rebuilt = torch.sigmoid(trained[20](shown)[0]).view(-1, 28, 28)
    figure, axes = figures.pyplot().subplots(2, 10, figsize=(8, 1.8))
    grid(axes, torch.cat([shown[:, 0], rebuilt]))
    figures.save(figure, setting.output / "vae.png")
    line = torch.special.ndtri(torch.linspace(0.03, 0.97, 15))
    plane = torch.stack(torch.meshgrid(line, line, indexing="ij"), 2).view(-1, 2)
    images = torch.sigmoid(trained[2].decoder(plane)).view(15, 15, 28, 28)
    figure, axis = figures.pyplot().subplots(figsize=(4.5, 4.5))
    axis.imshow(images.permute(0, 2, 1, 3).reshape(420, 420), cmap="gray")
    axis.axis("off")
    figures.save(figure, setting.output / "vae_plane.png")
    return report


@torch.no_grad()
def critical_points(setting: Setting) -> Report:
    """The points that win the maximum: without the others PointNet, its transforms held, says the same."""
    with torch.enable_grad():
        trainer = fit(setting, "pointnet_cls")
    model = trainer.runs[0].model.cpu()
    clouds, labels = trainer.data.test.inputs[0][:8], trainer.data.test.targets[0][:8]
    figure = figures.pyplot().figure(figsize=(9, 4.6))
    numbers, largest, shift = [], 0.0, 0.0
    for i, cloud in enumerate(clouds):
        x = cloud.unsqueeze(0)
        transforms = held(model, x)
        competing, logits = with_transforms(model, x, transforms)
        kept = competing[0, :, :, 0].argmax(1).unique()
        _, alone = with_transforms(model, x[:, :, kept], transforms)
        numbers.append(len(kept))
        shift = max(shift, float((alone - logits).abs().max()))
        largest = max(largest, float(logits.abs().max()))
        axis = figure.add_subplot(2, 4, i + 1, projection="3d")
        points = cloud[:, :, 0].numpy()
        axis.scatter(*points, s=2, c="lightgrey", depthshade=False)
        axis.scatter(*points[:, kept.numpy()], s=6, c="crimson", depthshade=False)
        axis.set_title(f"{trainer.data.names[labels[i]]}: {len(kept)} of {points.shape[1]}", fontsize=8)
        axis.set_axis_off()
    figures.save(figure, setting.output / "critical_points.png")
    return {
        "test accuracy": round(trainer.history[-1]["score"], 4),
        "critical points of 256": numbers,
        "largest logit": round(largest, 3),
        "largest change of a logit without the others": shift,
    }


def held(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The two transforms that a PointNet gives ``x``."""
    f = model.features
    first = f.input_transform(x)
    second = f.feature_transform(f.local(torch.matmul(first, x.squeeze(3)).unsqueeze(3)))
    return first, second


def with_transforms(model: nn.Module, x: Tensor, transforms: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """What competes for the maximum, and the logits, with these transforms in place of its own."""
    f = model.features
    x = f.local(torch.matmul(transforms[0], x.squeeze(3)).unsqueeze(3))
    competing = f.points(torch.matmul(transforms[1], x.squeeze(3)).unsqueeze(3))
    return competing, model.fc(model.dense(competing.amax((2, 3))))


@torch.no_grad()
def zero_shot(setting: Setting) -> Report:
    """The small CLIP names digits in colours that it never saw them in, out of 50 captions."""
    with torch.enable_grad():
        trainer = fit(setting, "clip")
    model = trainer.runs[0].model.cpu()
    digits = data.mnist5k()
    table = all_captions()
    generator = torch.Generator().manual_seed(setting.seed + 5)
    colours = torch.randint(5, (len(digits.test_labels),), generator=generator)
    images = coloured(digits.test_images, colours)
    random = float((model(images, table).argmax(1) == 5 * digits.test_labels + colours).float().mean())
    (unseen, _), (pair,) = trainer.data.test
    logits = model(unseen, table)
    figure, axes = figures.pyplot().subplots(1, 10, figsize=(11, 1.7))
    for axis, at in zip(axes, range(0, 1000, 100), strict=True):
        axis.imshow(unseen[at].permute(1, 2, 0))
        said = caption(int(logits[at].argmax())).removeprefix("a photo of a ").replace(" digit ", "\n")
        axis.set_title(said, fontsize=8, color="black" if logits[at].argmax() == pair[at] else "red")
        axis.axis("off")
    figures.save(figure, setting.output / "zero_shot.png")
    return {
        "pairs never seen": round(float((logits.argmax(1) == pair).float().mean()), 4),
        "random pairs": round(random, 4),
        "chance": 0.02,
    }
