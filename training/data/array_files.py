"""NumPy files of images or vectors: .npy, .npz, and the batches of downsampled ImageNet."""

from __future__ import annotations

import math
from glob import glob
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from mmf_deploy.errors import ConfigError
from mmf_deploy.spec import SampleSpec

from .array_layouts import Layout, describe, understood
from .base import Batch, Resident, images_to_x0
from .loading import class_labels
from .npy_files import header_of, read_labels, read_samples

MIB = 2**20


class ArrayFilesConfig(BaseModel):
    """``data:`` with ``source: arrays``.

    Attributes:
        path: a .npy or .npz file, a glob, or a list of these; one array after the other.
        labels: auto: those in an .npz, if there are any; None: without; or a file (or several)
            that holds them.
        layout: of uint8 arrays with four axes; auto takes the axis of 1 or 3 for the channels.
        classes: number of classes where some have no sample.
        resident_mb: larger .npy files stay on the disk and are read sample by sample.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str | list[str]
    labels: str | list[str] | None = "auto"
    layout: Literal["auto", "NHWC", "NCHW"] = "auto"
    classes: int | None = Field(None, ge=1)
    resident_mb: float = Field(2048, ge=0.0)


class Arrays(Resident):
    """Samples in several arrays, in memory or mapped from the disk.

    Args:
        parts: arrays [N_i, ...] of one layout.
        labels: int64 [N] or None.
        notes: lines for whoever trains on this.
    """

    def __init__(
        self,
        parts: list[NDArray[Any]],
        layout: Layout,
        labels: Tensor | None,
        spec: SampleSpec,
        notes: tuple[str, ...],
    ) -> None:
        self._parts, self._layout, self.labels = parts, layout, labels
        self._ends = np.cumsum([len(part) for part in parts])
        self.spec = spec
        self.notes = notes

    def __len__(self) -> int:
        return int(self._ends[-1])

    def batch(self, indices: Tensor) -> Batch:
        """The samples of int64 [B] indices."""
        wanted = indices.numpy()
        part_of = np.searchsorted(self._ends, wanted, side="right")
        rows = np.empty((len(wanted), *self._parts[0].shape[1:]), self._parts[0].dtype)
        for number in np.unique(part_of):
            chosen = part_of == number
            first = self._ends[number] - len(self._parts[number])
            rows[chosen] = self._parts[number][wanted[chosen] - first]
        label = None if self.labels is None else self.labels[indices]
        if self._layout == "vectors":
            return Batch(torch.from_numpy(rows.astype(np.float32, copy=False)), label)
        return Batch(images_to_x0(torch.from_numpy(self._as_nhwc(rows))), label)

    def _as_nhwc(self, rows: NDArray[Any]) -> NDArray[Any]:
        if self._layout in ("NCHW", "CHW-flat"):
            return rows.reshape(len(rows), *self.spec.shape).transpose(0, 2, 3, 1)
        return rows.reshape(len(rows), *self.spec.shape[1:], self.spec.shape[0])


def load(config: ArrayFilesConfig) -> Arrays:
    """The arrays of all files.

    Raises:
        ConfigError: a missing or damaged file, an array that is neither images nor vectors,
            values that are not finite, labels that do not fit.
    """
    files = _files(config.path, "data.path")
    headers = [header_of(file) for file in files]
    layout, shape = understood(headers[0], config.layout, files[0])
    for file, header in zip(files, headers, strict=True):
        if header.shape[1:] != headers[0].shape[1:] or header.dtype != headers[0].dtype:
            raise ConfigError(
                f"{file}: {describe(header)}, but {files[0]} is {describe(headers[0])}; "
                "expected arrays that differ in their number of samples only"
            )
    size = sum(header.nbytes for header in headers)
    mapped = size > config.resident_mb * MIB
    if mapped and any(file.suffix == ".npz" for file in files):
        raise ConfigError(
            f"{files[0]}: {size // MIB:,} MiB in .npz files, which have to be in memory; "
            f"set data.resident_mb={math.ceil(size / MIB)}, or save them as .npy"
        )
    parts = [read_samples(file, mapped) for file in files]
    notes = _check_vectors(parts, files) if layout == "vectors" else ()
    labels, classes, more = _labels(config, files, sum(len(part) for part in parts))
    return Arrays(parts, layout, labels, SampleSpec(shape=shape, classes=classes), notes + more)


def _files(path: str | list[str], key: str) -> list[Path]:
    found: list[Path] = []
    for one in [path] if isinstance(path, str) else path:
        here = Path(one).expanduser()
        matches = [here] if here.is_file() else sorted(Path(p) for p in glob(str(here)))
        if not matches:
            raise ConfigError(f"{key} {one}: no such file (from {Path.cwd()})")
        found += matches
    wrong = [file for file in found if file.suffix not in (".npy", ".npz")]
    if wrong or not found:
        came = wrong[0] if wrong else "an empty list"
        raise ConfigError(f"{key}: {came}: expected .npy or .npz files")
    return found


def _check_vectors(parts: list[NDArray[Any]], files: list[Path]) -> tuple[str, ...]:
    """Refuse vectors that are not finite; a note where they are far from order 1."""
    square = 0.0
    for part, file in zip(parts, files, strict=True):
        for start in range(0, len(part), 65536):
            block = np.asarray(part[start : start + 65536], np.float64)
            finite = np.isfinite(block).all(axis=1)
            if not finite.all():
                raise ConfigError(
                    f"{file}: row {start + int(finite.argmin())} has a value that is not finite; "
                    "remove such rows"
                )
            square += float(np.square(block).mean()) * len(block)
    size = math.sqrt(square / sum(len(part) for part in parts))
    if 0.1 <= size <= 10:
        return ()
    return (f"the vectors' root mean square is {size:.3g}; training expects about 1: scale them",)


def _labels(
    config: ArrayFilesConfig, files: list[Path], count: int
) -> tuple[Tensor | None, int, tuple[str, ...]]:
    """Labels [N], the number of classes, and notes."""
    if config.labels is None:
        return None, 0, ()
    auto = config.labels == "auto"
    where = files if auto else _files(config.labels, "data.labels")
    found = [read_labels(f, not auto) for f in where if not auto or f.suffix == ".npz"]
    arrays = [array for array in found if array is not None]
    if not arrays:
        return None, 0, ()
    raw = np.concatenate([array.reshape(-1) for array in arrays])
    if len(raw) != count or raw.dtype.kind not in "iu":
        raise ConfigError(
            f"{where[0]}: labels are {raw.dtype} [{len(raw)}], expected whole numbers, one for "
            f"each of the {count} samples; correct them, or set data.labels=null"
        )
    raw = raw.astype(np.int64)
    notes: tuple[str, ...] = ()
    present = np.unique(raw)
    if present[0] == 1 and present[-1] == (config.classes or len(present)):
        raw, notes = raw - 1, (f"labels 1 … {present[-1]} are taken as 0 … {present[-1] - 1}",)
    labels, classes = class_labels(torch.from_numpy(raw), str(where[0]), config.classes)
    return labels, classes, notes


Config = ArrayFilesConfig
