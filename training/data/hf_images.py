"""Images of a Hugging Face data set: parquet files on disk, or a data set of the hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from mmf_deploy.errors import ConfigError, MMFError, require

from . import parquet_tables
from .base import Source
from .hf_columns import (
    ArrowImages,
    Features,
    class_names_of,
    image_column,
    label_column,
    labels_of,
)  # fmt: skip
from .image_samples import MIB, ImageOptions, Sample
from .image_sets import load_images, load_resident

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]


class HuggingFaceConfig(ImageOptions):
    """``data:`` with ``source: huggingface``; the other keys are those of ``ImageOptions``.

    Attributes:
        path: a data set of the hub (``owner/name``), or parquet on disk: a file, a folder,
            a glob, or a list of these.
        name: the configuration of a data set that has several.
        split: which part.
        image: the column of images; None looks for it.
        label: the column of labels; auto looks for it, None takes none.
        classes: number of classes where neither the data nor the labels at hand tell.
        limit: only the first so many.
        streaming: read from the hub one by one instead of downloading the whole set first.
    """

    path: str | list[str]
    name: str | None = None
    split: str = "train"
    image: str | None = None
    label: str | None = "auto"
    classes: int | None = Field(None, ge=1)
    limit: int | None = Field(None, ge=1)
    streaming: bool = False


def load(config: HuggingFaceConfig) -> Source:
    """The images of one split.

    Raises:
        ConfigError: no such file, data set, split or column; labels or images that will not do.
    """
    files = parquet_tables.local_files(config.path, config.split)
    if files is not None:
        return _from_files(files, config)
    where = str(config.path)
    with _hub_errors(config):
        data = open_hub(config)
        if config.streaming:
            return _from_stream(data, config, where)
    return _from_dataset(data, config, where)


def open_hub(config: HuggingFaceConfig) -> Any:
    """The data set of the hub, a ``datasets.Dataset`` or, to stream, ``IterableDataset``."""
    return require("datasets", "train").load_dataset(
        config.path, config.name, split=config.split, streaming=config.streaming
    )


def _from_files(files: list[Path], config: HuggingFaceConfig) -> Source:
    where = str(files[0]) if len(files) == 1 else f"{files[0].parent} ({len(files)} files)"
    schema, rows, size = parquet_tables.read_header(files)
    if not rows:
        raise ConfigError(f"{where}: no rows")
    if size > config.resident_mb * MIB:
        # too large even encoded: datasets makes a file of it that can be read at any place
        names = [str(file) for file in files]
        data = require("datasets", "train").load_dataset("parquet", data_files=names, split="train")
        return _from_dataset(data, config, where, read_paths=False)
    features = parquet_tables.features_of(schema)
    image, label = _columns(config, schema, features, where)
    columns = [image] if label is None else [image, label]
    table = parquet_tables.read_table(files, columns, config.limit)
    return _from_table(table, image, label, features, config, where, read_paths=False)


def _from_dataset(
    data: Any, config: HuggingFaceConfig, where: str, read_paths: bool = True
) -> Source:
    features = parquet_tables.features_of(data.features.arrow_schema)
    image, label = _columns(config, data.features.arrow_schema, features, where)
    count = min(len(data), config.limit or len(data))
    # memory-mapped: rows come from the disk when they are asked for
    table = data.with_format("arrow")[:count]
    return _from_table(table, image, label, features, config, where, read_paths)


def _from_table(
    table: pa.Table,
    image: str,
    label: str | None,
    features: Features,
    config: HuggingFaceConfig,
    where: str,
    read_paths: bool,
) -> Source:
    if not len(table):
        raise ConfigError(f"{where}: no rows")
    labels, names = (None, ()) if label is None else labels_of(table.column(label), where)
    samples = ArrowImages(table.column(image), labels, read_paths)
    names = class_names_of(label, features) or names
    return load_images(samples, config, where, config.classes, names)


def _from_stream(data: Any, config: HuggingFaceConfig, where: str) -> Source:
    if data.features is None:  # known only from the rows, which then come undecoded
        schema = require("pyarrow", "train").Table.from_pylist(list(data.take(1))).schema
    else:
        schema = data.features.arrow_schema
    features = parquet_tables.features_of(schema)
    image, label = _columns(config, schema, features, where)
    if features.get(image, {}).get("_type") == "Image":
        data = data.cast_column(image, require("datasets", "train").Image(decode=False))

    def samples() -> Iterator[Sample]:
        for number, row in enumerate(islice(data, config.limit)):
            known = None if label is None else _whole(row[label], where)
            yield Sample(f"row {number}", _content(row[image]), known)

    names = class_names_of(label, features)
    return load_resident(samples(), config.limit, config, where, config.classes, names)


def _whole(label: Any, where: str) -> int:
    if not isinstance(label, int):
        raise ConfigError(
            f"{where}: label {label!r} is no whole number, as streaming needs it; "
            "set data.streaming=false, or data.label=null to train without"
        )
    return label


def _content(value: Any) -> bytes:
    """The encoded image of a streamed row, fetched where the row only says where it lies."""
    if isinstance(value, dict) and value["bytes"] is None and value["path"]:
        with require("fsspec", "train").open(value["path"], "rb") as file:
            return bytes(file.read())
    return (value["bytes"] if isinstance(value, dict) else value) or b""


def _columns(
    config: HuggingFaceConfig, schema: pa.Schema, features: Features, where: str
) -> tuple[str, str | None]:
    image = image_column(config.image, schema, features, where)
    return image, label_column(config.label, schema, features, where)


@contextmanager
def _hub_errors(config: HuggingFaceConfig) -> Iterator[None]:
    """What reading from the hub may raise, as one line that says what to do."""
    try:
        yield
    except MMFError:
        raise
    except Exception as e:  # datasets, huggingface_hub, fsspec and httpx each have their own
        reason = " ".join(f"{type(e).__name__}: {e}".split())
        reason = reason if len(reason) <= 300 else f"{reason[:300]}…"
        raise ConfigError(
            f"data.path {config.path!r}, split {config.split!r}: no file here, and not to be read "
            f"from the hub ({reason}); check the name and the network, or download its "
            ".parquet files and give their path"
        ) from e


Config = HuggingFaceConfig
