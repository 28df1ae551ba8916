"""The IDX files of MNIST and FashionMNIST, from a folder of the user's."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import torch
from torch import Tensor

PARTS = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def read_folder(root: str | Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Images ``[N, 1, 28, 28]``, 0 to 1, and labels of both parts of the data set in ``root``.

    Raises:
        FileNotFoundError: if a file is missing, plain or gzipped.
        ValueError: if one is not what its name says, is cut short, or does not fit the other.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"fastdl.data: expected a folder of IDX files, got {root}, which is none")
    read = {}
    for part, (image_name, label_name) in PARTS.items():
        images, labels = _read(root, image_name, 3), _read(root, label_name, 1)
        if len(images) != len(labels):
            raise ValueError(
                f"fastdl.data: expected as many images as labels, got {len(images)} in {image_name} and "
                f"{len(labels)} in {label_name} of {root}"
            )
        if len(labels) and int(labels.max()) > 9:
            raise ValueError(f"fastdl.data: expected labels 0 to 9 in {label_name}, got {int(labels.max())}")
        read[part] = images.unsqueeze(1).float() / 255, labels.long()
    return read


def _read(root: Path, name: str, dimensions: int) -> Tensor:
    """One file: two zeros, the type (8: bytes), the number of dimensions, big-endian sizes, the bytes."""
    path = next((p for p in (root / name, root / f"{name}.gz") if p.is_file()), None)
    if path is None:
        found = ", ".join(sorted(p.name for p in root.iterdir())[:8]) or "nothing"
        raise FileNotFoundError(
            f"fastdl.data: expected {name} or {name}.gz in {root}, found {found}; put the four IDX files of "
            "MNIST or FashionMNIST there"
        )
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"fastdl.data: cannot read {path}: {error}; copy it again") from None
    header = 4 + 4 * dimensions
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) < header:
        raise ValueError(
            f"fastdl.data: expected {path} to begin as an IDX file of {dimensions} dimensions, got "
            f"{content[:4].hex(' ') or 'nothing'}; copy it again"
        )
    sizes = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions)]
    if len(content) - header != math.prod(sizes):
        raise ValueError(
            f"fastdl.data: expected {math.prod(sizes)} bytes behind the header of {path}, got "
            f"{len(content) - header}; copy it again"
        )
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header).view(sizes)
