"""CIFAR-10 and CIFAR-100 as published: pickles, read so that no code in them can run."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from .decode import Pixels

ALLOWED = {
    ("_codecs", "encode"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.numeric", "_frombuffer"),
}


class _ArraysOnly(pickle.Unpickler):
    """Unpickles arrays, texts, numbers and containers of these."""

    def find_class(self, module: str, name: str) -> Any:
        """A function that the pickle calls, if it makes an array."""
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it would call {module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def read_cifar(folder: Path, names: tuple[str, ...]) -> tuple[Pixels, list[int], tuple[str, ...]]:
    """Images, labels and class names.

    Args:
        folder: ``cifar-10-batches-py`` or ``cifar-100-python``.
        names: its files of images, and last the one with the names of the classes.
    Returns:
        uint8 [N, 32, 32, 3], whole numbers [N], names.
    Raises:
        UnpicklingError, KeyError, ValueError, EOFError: a file that is damaged or something else.
    """
    blocks: list[Pixels] = []
    labels: list[int] = []
    for name in names[:-1]:
        content = _unpickled(folder / name)
        blocks.append(content["data"].reshape(-1, 3, 32, 32))
        labels += content["labels"] if "labels" in content else content["fine_labels"]
    meta = _unpickled(folder / names[-1])
    class_names = meta.get("label_names") or meta["fine_label_names"]
    return np.concatenate(blocks).transpose(0, 2, 3, 1), labels, tuple(class_names)


def _unpickled(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        content = _ArraysOnly(file, encoding="latin1").load()
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds no dictionary")
    return content
