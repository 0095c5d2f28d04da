"""Weight files, .safetensors or of torch.save: their tensors, and how they fit a network."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmf_deploy.checkpoint import Tensors
from mmf_deploy.errors import CheckpointError, require

from . import torch_file

Shape = tuple[int, ...]
SHOWN = 3


@dataclass(frozen=True)
class Fit:
    """How the entries of a file fit those of a network.

    Attributes:
        missing: entries of the network that the file lacks, with their shapes.
        unused: entries of the file that the network lacks, with their shapes.
        shapes: shape found and shape expected, where they differ.
    """

    missing: dict[str, Shape]
    unused: dict[str, Shape]
    shapes: dict[str, tuple[Shape, Shape]]

    @property
    def perfect(self) -> bool:
        """True if nothing differs."""
        return not (self.missing or self.unused or self.shapes)

    def differences(self) -> list[str]:
        """One line an entry: found what, expected what."""
        return [
            *(f"{k}: found {list(a)}, expected {list(b)}" for k, (a, b) in self.shapes.items()),
            *(f"{k}: found nothing, expected {list(b)}" for k, b in self.missing.items()),
            *(f"{k}: found {list(a)}, expected nothing" for k, a in self.unused.items()),
        ]

    def summary(self) -> str:
        """One line: what is missing, unused or of another shape, how many and the first few."""
        parts = []
        if self.missing:
            parts.append(f"{len(self.missing)} missing ({few(list(self.missing))})")
        if self.unused:
            parts.append(f"{len(self.unused)} unused ({few(list(self.unused))})")
        if self.shapes:
            lines = Fit({}, {}, self.shapes).differences()
            parts.append(f"{len(lines)} of another shape ({few(lines, '; ')})")
        return ", ".join(parts) or "every entry fits"


def fit(
    expected: Mapping[str, Shape], found: Mapping[str, Shape], optional: Collection[str] = ()
) -> Fit:
    """Compare the entries of a network with those of a file.

    Args:
        optional: entries that may be missing.
    """
    return Fit(
        missing={k: s for k, s in expected.items() if k not in found and k not in optional},
        unused={k: s for k, s in found.items() if k not in expected},
        shapes={k: (found[k], s) for k, s in expected.items() if found.get(k, s) != s},
    )


def few(items: list[str], separator: str = ", ") -> str:
    """The first few, and how many more there are."""
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return separator.join(torch_file.printable(item) for item in items[:SHOWN]) + more


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, Shape]:
    """The shape of every tensor."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a file, on the CPU.

    Nested dictionaries, as in {"model": {"weight": …}}, give dotted names: ``model.weight``.

    Raises:
        CheckpointError: no such file, unreadable, refused, or without tensors.
    """
    if path.suffix == ".safetensors":
        tensors = _read_safetensors(path)
    else:
        tensors = dict(_flat(torch_file.read(path)))
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors; expected the weights of a network")
    return tensors


def as_arrays(path: Path, tensors: Mapping[str, Tensor], prefix: str = "") -> Tensors:
    """Weights as float32 arrays.

    Args:
        path, prefix: where they are from and what comes before their names, for messages.
    Raises:
        CheckpointError: a tensor that is sparse, without data, not of floating-point
            numbers, or not finite.
    """
    arrays = {}
    for name, tensor in tensors.items():
        where = f"{path}: {prefix}{name}"
        usual = tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not usual or not tensor.is_floating_point():
            raise CheckpointError(
                f"{where}: found {tensor.dtype}, {tensor.layout} on {tensor.device}, expected "
                "dense floating-point numbers"
            )
        arrays[name] = tensor.detach().to(torch.float32).numpy()
        if not np.isfinite(arrays[name]).all():
            raise CheckpointError(
                f"{where}: found numbers that are not finite; the run that wrote them had broken "
                "down, take an earlier file"
            )
    return arrays


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    safetensors = require("safetensors", "export")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected weights in .safetensors")
    try:
        return dict(require("safetensors.torch", "export").load_file(path))
    except safetensors.SafetensorError as e:
        raise CheckpointError(f"{path}: not a readable .safetensors file ({e})") from e


def _flat(tree: Any, prefix: str = "", depth: int = 4) -> list[tuple[str, Tensor]]:
    if isinstance(tree, Tensor):
        return [(prefix.removesuffix("."), tree)]
    # the depth ends a dictionary that contains itself
    if not isinstance(tree, dict) or not depth:
        return []
    return [pair for k, v in tree.items() for pair in _flat(v, f"{prefix}{k}.", depth - 1)]
