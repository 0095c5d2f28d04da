"""Which columns of a table hold the images and the labels, and what they say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmf_deploy.errors import ConfigError, nearest, require

from .image_samples import Sample

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]

IMAGE_NAMES = ("image", "img")
LABEL_NAMES = ("label", "labels", "fine_label", "class", "target")

Features = dict[str, dict[str, Any]]


def image_column(wanted: str | None, schema: pa.Schema, features: Features, where: str) -> str:
    """The column of encoded images.

    Args:
        wanted: its name, or None to look for it.
    Raises:
        ConfigError: no such column, or not one but none or several to choose from.
    """
    if wanted is not None:
        _check_exists(wanted, "image", schema, where)
        candidates = [wanted]
    else:
        candidates = [n for n in schema.names if features.get(n, {}).get("_type") == "Image"]
        candidates = candidates or [n for n in schema.names if _holds_bytes(schema.field(n).type)]
        named = [n for n in IMAGE_NAMES if n in candidates]
        candidates = named[:1] if len(candidates) > 1 and named else candidates
    if len(candidates) != 1 or not _holds_bytes(schema.field(candidates[0]).type):
        raise ConfigError(
            f"{where}: expected one column of encoded images (bytes), found "
            f"{', '.join(candidates) or 'none'} among {', '.join(schema.names)}; "
            "name it with data.image"
        )
    return candidates[0]


def label_column(
    wanted: str | None, schema: pa.Schema, features: Features, where: str
) -> str | None:
    """The column of labels; None without.

    Args:
        wanted: its name, "auto" to look for it, or None.
    Raises:
        ConfigError: no such column.
    """
    if wanted is None:
        return None
    if wanted != "auto" or "auto" in schema.names:
        _check_exists(wanted, "label", schema, where)
        return wanted
    found = [n for n in LABEL_NAMES if n in schema.names]
    found += [n for n in schema.names if features.get(n, {}).get("_type") == "ClassLabel"]
    return found[0] if found else None


def class_names_of(column: str | None, features: Features) -> tuple[str, ...]:
    """The names that ``datasets`` noted for the classes, or none."""
    noted = features.get(column or "", {})
    return tuple(noted.get("names") or ()) if noted.get("_type") == "ClassLabel" else ()


def labels_of(column: pa.ChunkedArray, where: str) -> tuple[list[int], tuple[str, ...]]:
    """Labels [N] and, of a column of texts, the sorted texts as class names.

    Raises:
        ConfigError: neither whole numbers nor texts, or some are missing.
    """
    types = require("pyarrow.types", "train")
    if column.null_count:
        raise ConfigError(
            f"{where}: {column.null_count:,} of {len(column):,} labels are missing; "
            "fill them in, or train without: data.label=null"
        )
    if types.is_integer(column.type):
        return column.to_numpy().astype(np.int64).tolist(), ()
    if types.is_string(column.type) or types.is_large_string(column.type):
        names, labels = np.unique(np.array(column.to_pylist()), return_inverse=True)
        return labels.tolist(), tuple(names.tolist())
    raise ConfigError(
        f"{where}: labels are {column.type}, expected whole numbers or names of classes; "
        "choose another column with data.label, or null for none"
    )


class ArrowImages:
    """Samples of an Arrow column of encoded images.

    Args:
        column: binary, or struct {bytes, path}; [N].
        labels: [N] or None.
        read_paths: read the file where a row has a path and no bytes; not for tables of
            unknown origin, which would choose the files.
    """

    def __init__(
        self, column: pa.ChunkedArray, labels: list[int] | None, read_paths: bool = False
    ) -> None:
        types = require("pyarrow.types", "train")
        self._chunks = column.chunks
        self._ends = np.cumsum([len(chunk) for chunk in self._chunks])
        self._struct = types.is_struct(column.type)
        self._labels, self._read_paths = labels, read_paths

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> Sample:
        part = int(np.searchsorted(self._ends, index, side="right"))
        value = self._chunks[part][index - int(self._ends[part]) + len(self._chunks[part])].as_py()
        label = None if self._labels is None else self._labels[index]
        return sample_of(index, value, label, self._read_paths)


def sample_of(row: int, value: Any, label: int | None, read_paths: bool) -> Sample:
    """A row's image as a sample; ``value`` is bytes, {bytes, path} or None."""
    path = value.get("path") if isinstance(value, dict) else None
    content = value.get("bytes") if isinstance(value, dict) else value
    if content is None and path and read_paths:
        return Sample(f"row {row}", Path(path), label)
    return Sample(f"row {row}", content or b"", label)


def _holds_bytes(kind: pa.DataType) -> bool:
    types = require("pyarrow.types", "train")
    if types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _check_exists(name: str, key: str, schema: pa.Schema, where: str) -> None:
    if name not in schema.names:
        raise ConfigError(
            f"{where}: data.{key} {name!r}{nearest(name, schema.names)}: no such column; "
            f"there are {', '.join(schema.names)}"
        )
