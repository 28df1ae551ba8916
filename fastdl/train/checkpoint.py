"""Checkpoints: written whole or not at all, read without running anything that is in them."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

FORMAT = "fastdl checkpoint 1"


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` make the file beside ``path``, then put it in place at once."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(beside)
        with open(beside, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def save(path: Path, name: str, state: dict[str, Any]) -> None:
    """``state`` (tensors, numbers, strings, lists, dicts) of the network ``name``."""
    write_atomically(path, lambda p: torch.save({"format": FORMAT, "model": name, **state}, p))


def load(path: Path, name: str | None, device: torch.device | str = "cpu") -> dict[str, Any]:
    """What ``save`` wrote.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is cut short, something else, or of another network than ``name``.
    """
    if not path.is_file():
        raise FileNotFoundError(f"fastdl.train: expected a checkpoint at {path}, found none")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError, ValueError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"fastdl.train: cannot read the checkpoint {path}: it is cut short or something else ({reason})"
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"fastdl.train: expected {path} to be a checkpoint of `fastdl train`; it is not")
    if name is not None and state["model"] != name:
        raise ValueError(f"fastdl.train: expected a checkpoint of {name}, got {path} of {state['model']}")
    return state
