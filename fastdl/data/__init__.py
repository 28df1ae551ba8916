"""The data sets of the course: real digits and photographs that packages carry, and what is made from them.

load(name, root)    one of names(); nothing is downloaded
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from . import clouds, photos
from .digits import (
    Digits,
    captions,
    digit_pairs,
    distort,
    distorted42,
    ink16,
    mnist5k,
    pixels,
    standardised,
)
from .idx import read_folder
from .sets import Data, Samples, Split, hold_out

__all__ = ["Data", "Digits", "Samples", "Split", "distort", "hold_out", "load", "mnist5k", "names"]

FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

_SETS: dict[str, Callable[[], Data]] = {
    "mnist5k": standardised,
    "mnist5k_67": functools.partial(standardised, size=67),
    "pixels": pixels,
    "ink16": ink16,
    "distorted42": distorted42,
    "digit_pairs": digit_pairs,
    "captions": captions,
    "solids8": clouds.solids8,
    "solids8_hard": functools.partial(clouds.solids8, hard=True),
    "parts10": clouds.parts10,
    "shapes64": photos.shapes64,
    "warps48": photos.warps48,
    "warps48_tps": functools.partial(photos.warps48, "tps"),
    "warps48_both": functools.partial(photos.warps48, "both"),
}
#: From a folder of IDX files.
_FOLDERS = ("mnist", "fashion")


def names() -> tuple[str, ...]:
    """Every data set; ``mnist`` and ``fashion`` want a folder."""
    return (*_SETS, *_FOLDERS)


def load(name: str, root: str | Path | None = None) -> Data:
    """The data set ``name``, always the same; ``root`` is the folder of IDX files for "mnist" and "fashion".

    Raises:
        ValueError: if there is no such data set, no folder for one that needs it, a folder for another, or a
            file is corrupt.
        FileNotFoundError: if a file is missing.
        ModuleNotFoundError: if a package that carries the data is not installed.
    """
    if name not in names():
        raise ValueError(f"fastdl.data.load: expected one of {', '.join(names())}, got {name!r}")
    if name in _FOLDERS:
        if root is None:
            raise ValueError(f"fastdl.data.load: expected a folder with the IDX files of {name}, got none")
        parts = read_folder(root)
        data = standardised(Digits(*parts["train"], *parts["test"]))
        return data._replace(names=FASHION) if name == "fashion" else data
    if root is not None:
        raise ValueError(
            f"fastdl.data.load: expected no folder of IDX files for {name}, got {root}; only "
            f"{' and '.join(_FOLDERS)} are read from one"
        )
    try:
        return _SETS[name]()
    except ModuleNotFoundError as error:
        if "fastdl" in str(error):
            raise
        raise ModuleNotFoundError(
            f"fastdl.data.load: expected scikit-learn, which carries what {name} is made of, to be "
            f"installed, got {error}; run `pip install 'fastdl[demo]'`"
        ) from None
