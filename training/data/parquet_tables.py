"""Parquet files on disk as one Arrow table, with what ``datasets`` wrote about its columns."""

from __future__ import annotations

import json
import re
from glob import glob, has_magic
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmf_deploy.errors import ConfigError, require

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]

KNOWN_SPLITS = ("train", "test", "validation", "valid", "val", "dev")


def local_files(path: str | list[str], split: str) -> list[Path] | None:
    """The parquet files that ``path`` names, or None when it names nothing on this disk.

    Args:
        path: a file, a folder, a glob, or a list of these. Of a folder, the files whose name
            or sub-folder has the split in it, if any has.
    Raises:
        ConfigError: a folder or glob without parquet files, or with those of other splits only.
    """
    if isinstance(path, list):
        parts = [local_files(p, split) for p in path]
        if not parts or None in parts:
            came = path[parts.index(None)] if parts else "an empty list"
            raise ConfigError(f"data.path: {came}: expected parquet files that are here")
        return [file for part in parts for file in part or []]
    here = Path(path).expanduser()
    if here.is_file():
        if here.suffix != ".parquet":
            raise ConfigError(f"data.path {path}: expected a .parquet file")
        return [here]
    if here.is_dir():
        found = _of_split(sorted(here.rglob("*.parquet")), here, split)
    elif has_magic(path):
        found = sorted(Path(p) for p in glob(str(here), recursive=True))
    elif path.endswith(".parquet"):
        raise ConfigError(f"data.path {path}: no such file (from {Path.cwd()})")
    else:
        return None
    if not found:
        raise ConfigError(f"data.path {path}: no .parquet files there")
    return found


def _of_split(files: list[Path], base: Path, split: str) -> list[Path]:
    def named(name: str) -> list[Path]:
        pattern = re.compile(rf"(^|[-_./]){re.escape(name)}($|[-_./])")
        return [f for f in files if pattern.search(f.relative_to(base).with_suffix("").as_posix())]

    if of_split := named(split):
        return of_split
    others = [name for name in KNOWN_SPLITS if named(name)]
    if others:
        raise ConfigError(
            f"data.split {split!r}: no parquet file of that name; there are {', '.join(others)}"
        )
    return files


def read_header(files: list[Path]) -> tuple[pa.Schema, int, int]:
    """(schema, rows, uncompressed bytes) of all files; only their footers are read.

    Raises:
        ConfigError: one of them is not a parquet file, or has other columns than the first.
    """
    parquet = require("pyarrow.parquet", "train")
    schema, rows, size = None, 0, 0
    for file in files:
        try:
            with parquet.ParquetFile(file) as opened:
                meta, found = opened.metadata, opened.schema_arrow
        except (OSError, ValueError) as e:
            raise ConfigError(f"{file}: not a readable parquet file ({_line(e)})") from None
        schema = schema or found
        if found.names != schema.names:
            raise ConfigError(f"{file}: columns {found.names}, but {files[0]} has {schema.names}")
        rows += meta.num_rows
        size += sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
    return schema, rows, size


def read_table(files: list[Path], columns: list[str], limit: int | None) -> pa.Table:
    """These columns of all files, at most ``limit`` rows.

    Raises:
        ConfigError: a file is damaged.
    """
    arrow, parquet = require("pyarrow", "train"), require("pyarrow.parquet", "train")
    parts, rows = [], 0
    for file in files:
        if limit is not None and rows >= limit:
            break
        try:
            parts.append(parquet.ParquetFile(file).read(columns=columns))
        except (OSError, ValueError) as e:
            raise ConfigError(f"{file}: damaged ({_line(e)})") from None
        rows += len(parts[-1])
    table = arrow.concat_tables([part.replace_schema_metadata() for part in parts])
    return table if limit is None else table.slice(0, limit)


def features_of(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """What ``datasets`` noted of each column: ``{"label": {"_type": "ClassLabel", ...}}``.

    Empty for files that it did not write.
    """
    try:
        noted = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return {k: v for k, v in noted.items() if isinstance(v, dict)} if noted else {}


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
