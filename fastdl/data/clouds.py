"""Point clouds drawn from the surfaces of solids and of objects made of parts."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy import ndarray as Array

from .sets import Data, Split

POINTS = 256
SOLIDS = ("sphere", "cube", "cylinder", "cone", "torus", "tetrahedron", "hemisphere", "pyramid")
PARTS = (
    "table top", "table leg", "lamp base", "lamp pole", "lamp shade", "rocket body", "rocket nose",
    "rocket fin", "dumbbell sphere", "dumbbell bar",
)  # fmt: skip
Random = np.random.RandomState

_CUBE = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, 8).T
_FACES = [(0, 1, 2), (1, 2, 3), (4, 5, 6), (5, 6, 7), (0, 1, 4), (1, 4, 5), (2, 3, 6), (3, 6, 7)]
_FACES += [(0, 2, 4), (2, 4, 6), (1, 3, 5), (3, 5, 7)]
_TETRAHEDRON = np.array([(1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)], float)
_PYRAMID = np.array([(-1, -1, 0), (1, -1, 0), (1, 1, 0), (-1, 1, 0), (0, 0, 2)], float)
_PYRAMID_FACES = [(0, 1, 2), (0, 2, 3), (0, 1, 4), (1, 2, 4), (2, 3, 4), (3, 0, 4)]


def solids8(hard: bool = False) -> Data:
    """Eight solids, stretched, turned about z (``hard``: anyhow), with noise: 2,000 to train, 400 to test.

    Inputs ``[N, 3, 256, 1]`` in the unit ball, targets ``[N]``.
    """

    def split(number: int, seed: int) -> Split:
        random = Random(seed)
        labels = np.arange(number) % len(SOLIDS)
        clouds = np.stack([_cloud(_solid(SOLIDS[k], random), random, hard) for k in labels])
        return Split((_tensor(clouds),), (torch.from_numpy(labels),))

    return Data(split(2000, 1), split(400, 2), names=SOLIDS)


def parts10() -> Data:
    """Four objects made of ten kinds of parts: 1,600 to train, 400 to test.

    Inputs ``[N, 3, 256, 1]``, targets ``[N, 256]``: which part each point is of.
    """

    def split(number: int, seed: int) -> Split:
        random, clouds, labels = Random(seed), [], []
        for i in range(number):
            points, parts = (_table, _lamp, _rocket, _dumbbell)[i % 4](random)
            order = random.permutation(len(parts))
            clouds.append(_cloud(points, random, hard=False, stretch=False)[order])
            labels.append(parts[order])
        return Split((_tensor(np.stack(clouds)),), (torch.from_numpy(np.stack(labels)).long(),))

    return Data(split(1600, 1), split(400, 2), names=PARTS)


def _tensor(clouds: Array) -> torch.Tensor:
    return torch.from_numpy(clouds).float().transpose(1, 2).unsqueeze(3).contiguous()


def _cloud(points: Array, random: Random, hard: bool, stretch: bool = True) -> Array:
    """Stretched along the axes, centred, in the unit ball, turned, with noise."""
    if stretch:
        points = points * random.uniform(0.7, 1.3, 3)
    points = points - points.mean(0)
    points = points / np.linalg.norm(points, axis=1).max()
    if hard:
        turn, upper = np.linalg.qr(random.normal(size=(3, 3)))
        turn = turn * np.sign(np.diag(upper))  # uniform
        turn[:, 0] *= np.sign(np.linalg.det(turn))
    else:
        angle = random.uniform(0, 2 * math.pi)
        turn = np.eye(3)
        turn[:2, :2] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    return points @ turn.T + 0.01 * random.normal(size=points.shape)


# -- surfaces: points uniform in area ---------------------------------------------------------------------


def _solid(kind: str, random: Random) -> Array:
    if kind == "sphere":
        return _sphere(random, POINTS)
    if kind == "hemisphere":
        points = _sphere(random, POINTS)
        return np.column_stack([points[:, :2], abs(points[:, 2])])
    if kind == "cube":
        return _triangles(random, _CUBE[np.array(_FACES)], POINTS)
    if kind == "tetrahedron":
        return _triangles(
            random, _TETRAHEDRON[np.array([(0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3)])], POINTS
        )
    if kind == "pyramid":
        return _triangles(random, _PYRAMID[np.array(_PYRAMID_FACES)], POINTS)
    if kind == "torus":
        return _torus(random, 0.7, 0.3, POINTS)
    if kind == "cylinder":  # side 4 pi, caps 2 pi
        side = random.binomial(POINTS, 2 / 3)
        caps = _disc(random, 1.0, POINTS - side)
        caps[:, 2] = random.choice([-1.0, 1.0], POINTS - side)
        return np.concatenate([_frustum(random, 1.0, 1.0, -1.0, 1.0, side), caps])
    side = random.binomial(POINTS, math.sqrt(5) / (1 + math.sqrt(5)))  # a cone
    return np.concatenate([_frustum(random, 1.0, 0.0, 0.0, 2.0, side), _disc(random, 1.0, POINTS - side)])


def _sphere(random: Random, number: int, radius: float = 1.0) -> Array:
    points = random.normal(size=(number, 3))
    return radius * points / np.linalg.norm(points, axis=1, keepdims=True)


def _disc(random: Random, radius: float, number: int) -> Array:
    angle, r = random.uniform(0, 2 * math.pi, number), radius * np.sqrt(random.uniform(size=number))
    return np.column_stack([r * np.cos(angle), r * np.sin(angle), np.zeros(number)])


def _frustum(random: Random, bottom: float, top: float, low: float, high: float, number: int) -> Array:
    """The side of a truncated cone about z; of a cylinder where both radii are equal."""
    u = random.uniform(size=number)
    if bottom != top:  # the area up to height t grows as the square of the radius
        u = (bottom - np.sqrt(bottom**2 + u * (top**2 - bottom**2))) / (bottom - top)
    r, angle = bottom + u * (top - bottom), random.uniform(0, 2 * math.pi, number)
    return np.column_stack([r * np.cos(angle), r * np.sin(angle), low + u * (high - low)])


def _torus(random: Random, large: float, small: float, number: int) -> Array:
    """The outer half has more area: angles are kept in proportion to their distance from the axis."""
    tube = random.uniform(0, 2 * math.pi, 6 * number)
    kept = random.uniform(size=6 * number) * (large + small) < large + small * np.cos(tube)
    tube = tube[kept][:number]
    angle, r = random.uniform(0, 2 * math.pi, number), large + small * np.cos(tube)
    return np.column_stack([r * np.cos(angle), r * np.sin(angle), small * np.sin(tube)])


def _triangles(random: Random, corners: Array, number: int) -> Array:
    """On triangles ``[T, 3, 3]``."""
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    which = random.choice(len(corners), number, p=area / area.sum())
    u, v = np.sort(random.uniform(size=(2, number)), axis=0)[..., None]
    return u * a[which] + (v - u) * b[which] + (1 - v) * c[which]


def _box(random: Random, half: tuple[float, float, float], number: int) -> Array:
    return _triangles(random, (_CUBE * np.array(half))[np.array(_FACES)], number)


# -- objects ----------------------------------------------------------------------------------------------


def _labelled(*parts: tuple[int, Array]) -> tuple[Array, Array]:
    labels = np.concatenate([np.full(len(points), label) for label, points in parts])
    return np.concatenate([points for _, points in parts]), labels


def _table(random: Random) -> tuple[Array, Array]:
    x, y, length = random.uniform(0.6, 1), random.uniform(0.5, 0.9), random.uniform(0.5, 1)
    legs = _box(random, (0.05, 0.05, length / 2), POINTS // 2)
    legs[:, 0] += 0.9 * x * random.choice([-1, 1], POINTS // 2)
    legs[:, 1] += 0.9 * y * random.choice([-1, 1], POINTS // 2)
    legs[:, 2] -= 0.05 + length / 2
    return _labelled((0, _box(random, (x, y, 0.05), POINTS // 2)), (1, legs))


def _lamp(random: Random) -> tuple[Array, Array]:
    foot, height = random.uniform(0.3, 0.5), random.uniform(0.8, 1.4)
    wide, narrow, tall = random.uniform(0.4, 0.6), random.uniform(0.15, 0.3), random.uniform(0.3, 0.5)
    return _labelled(
        (2, _frustum(random, foot, 0.05, 0, 0.08, POINTS // 4)),
        (3, _frustum(random, 0.04, 0.04, 0.08, 0.08 + height, POINTS // 4)),
        (4, _frustum(random, wide, narrow, 0.08 + height - tall / 2, 0.08 + height + tall / 2, POINTS // 2)),
    )


def _rocket(random: Random) -> tuple[Array, Array]:
    r, half, nose = random.uniform(0.2, 0.3), random.uniform(0.6, 1), random.uniform(0.3, 0.6)
    fin = np.array([(r, 0, -half), (r + 0.35, 0, -half), (r, 0, -half + 0.4)])
    turns = [np.array([(c, -s, 0), (s, c, 0), (0, 0, 1)]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
    return _labelled(
        (5, _frustum(random, r, r, -half, half, POINTS // 2)),
        (6, _frustum(random, r, 0.0, half, half + nose, POINTS // 4)),
        (7, _triangles(random, np.stack([fin @ turn.T for turn in turns]), POINTS // 4)),
    )


def _dumbbell(random: Random) -> tuple[Array, Array]:
    radius, at = random.uniform(0.25, 0.4), random.uniform(0.5, 0.8)
    number = 2 * POINTS // 3
    spheres = _sphere(random, number, radius)
    spheres[:, 2] += at * random.choice([-1, 1], number)
    return _labelled((8, spheres), (9, _frustum(random, 0.07, 0.07, -at, at, POINTS - number)))
