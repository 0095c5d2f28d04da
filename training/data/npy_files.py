"""NumPy files, read without ever unpickling: headers first, large ones mapped, not copied."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmf_deploy.errors import ConfigError

IMAGE_KEYS = ("images", "data", "x", "arr_0")
LABEL_KEYS = ("labels", "label", "y", "arr_1")
_DAMAGED = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)


class Header(NamedTuple):
    """An array before it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Bytes of the array in memory."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def header_of(path: Path) -> Header:
    """Shape and dtype of the array of samples in a .npy or .npz file.

    Raises:
        ConfigError: not such a file, or one of Python objects.
    """
    try:
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                names = [name.removesuffix(".npy") for name in archive.namelist()]
                with archive.open(f"{_key(names, IMAGE_KEYS, path)}.npy") as member:
                    return _checked(_header(member), path)
        with path.open("rb") as file:
            return _checked(_header(file), path)
    except _DAMAGED as e:
        raise _unreadable(path, e) from None


def read_samples(path: Path, mapped: bool) -> NDArray[Any]:
    """The array of samples; ``mapped`` leaves a .npy file on the disk.

    Raises:
        ConfigError: a damaged file.
    """
    try:
        if path.suffix == ".npz":
            return _from_archive(path, IMAGE_KEYS)
        array: NDArray[Any] = np.load(path, mmap_mode="c" if mapped else None, allow_pickle=False)
        return array
    except _DAMAGED as e:
        raise _unreadable(path, e) from None


def read_labels(path: Path, required: bool) -> NDArray[Any] | None:
    """The labels [N] in a file of labels, or beside the samples in an .npz; None without.

    Raises:
        ConfigError: a damaged file, or one without labels although they are required.
    """
    try:
        if path.suffix != ".npz":
            array: NDArray[Any] = np.load(path, allow_pickle=False)
            return array
        with np.load(path, allow_pickle=False) as archive:
            if not required and not set(LABEL_KEYS) & set(archive.files):
                return None
        return _from_archive(path, LABEL_KEYS)
    except _DAMAGED as e:
        raise _unreadable(path, e) from None


def _from_archive(path: Path, keys: tuple[str, ...]) -> NDArray[Any]:
    with np.load(path, allow_pickle=False) as archive:
        array: NDArray[Any] = archive[_key(archive.files, keys, path)]
        return array


def _key(names: Iterable[str], wanted: tuple[str, ...], path: Path) -> str:
    names = list(names)
    for key in wanted:
        if key in names:
            return key
    raise ConfigError(
        f"{path}: holds {', '.join(names) or 'nothing'}, expected one of {', '.join(wanted)}; "
        "save it again with np.savez(path, images=…, labels=…)"
    )


def _header(file: Any) -> Header:
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise ValueError(f"version {version} of the format")
    shape, _, dtype = read(file)
    return Header(shape, dtype)


def _checked(header: Header, path: Path) -> Header:
    if header.dtype.hasobject:
        raise ConfigError(
            f"{path}: holds Python objects, which are never unpickled here; "
            "save one array of numbers (images of one size) with np.save"
        )
    return header


def _unreadable(path: Path, error: Exception) -> ConfigError:
    reason = " ".join(str(error).split())
    return ConfigError(f"{path}: not a readable NumPy file ({reason}); save it again with np.save")
