"""The file of API keys: names, hashes, and who may do how much (docs/security.md).

    - name: ci
      sha256: '…'             # of the key, 64 hexadecimal digits
      images_per_s: 50        # optional, and so is everything below
      burst: 200              # most images at once; ten seconds' worth if not given
      expires: 2027-01-31     # the last day, UTC
      models: [digits]        # all if not given

A key is 256 random bits, so one SHA-256 without salt or stretching hides it for good:
there is nothing to guess. The file never holds a key itself.
"""

from __future__ import annotations

import datetime
import hashlib
import logging
import math
import os
import secrets
import stat
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from mmf_deploy.errors import ConfigError, RequestError, nearest

log = logging.getLogger(__name__)

PREFIX = "mmf_"
"""What every key begins with, so that scanners find one that was committed by mistake."""

BURST_S = 10
"""Seconds' worth of images that a key may ask for at once, unless its entry says ``burst``."""

HEADER = "# API keys of mmf-serve: hashes only. Written by `mmf api-keys`, which drops comments.\n"


def _date(value: object) -> object:
    """A quoted date is a date as well."""
    return datetime.date.fromisoformat(value) if isinstance(value, str) else value


class Key(BaseModel):
    """One entry of the file: whose key it is, and what it allows."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", repr=False)
    images_per_s: float | None = Field(None, gt=0, allow_inf_nan=False)
    burst: int | None = Field(None, ge=1)
    expires: Annotated[datetime.date | None, BeforeValidator(_date)] = None
    models: list[str] | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _burst_of_a_rate(self) -> Key:
        if self.burst is not None and self.images_per_s is None:
            raise ValueError("burst needs images_per_s; without it the key has no limit")
        return self

    @property
    def largest(self) -> int | None:
        """Most images this key may ask for at once; None without a limit."""
        if self.images_per_s is None:
            return None
        return self.burst or max(1, math.ceil(self.images_per_s * BURST_S))

    def expired(self, today: datetime.date | None = None) -> bool:
        """Whether its last day has passed, in UTC."""
        return self.expires is not None and (today or _today()) > self.expires

    def allow(self, model: str) -> None:
        """Pass if this key may use ``model``.

        Raises:
            RequestError: 403; names the models that it may use.
        """
        if self.models is not None and model not in self.models:
            raise RequestError(
                f"model: this key is not for {model!r}; it is for {', '.join(self.models)}",
                field="model",
                status=403,
                code="model_not_allowed",
            )


def _today() -> datetime.date:
    return datetime.datetime.now(datetime.UTC).date()


def new_key() -> str:
    """A fresh key: the prefix and 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_of(key: str) -> bytes:
    """What is stored of a key: its SHA-256, 32 bytes."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def read(path: Path) -> list[Key]:
    """The entries of a file.

    Raises:
        ConfigError: the file is missing, unreadable or wrong; one line that names the entry.
    """
    try:
        with path.open("rb") as f:
            mode = os.fstat(f.fileno()).st_mode
            found = yaml.safe_load(f)
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file; mmf api-keys add {path} --name NAME makes it"
        ) from None
    except OSError as e:
        raise ConfigError(f"{path}: cannot be read: {e.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(e).split())[:200]}") from None
    if not isinstance(found, list):
        what = "nothing" if found is None else f"a {type(found).__name__}"
        raise ConfigError(f"{path}: expected a list of keys (`[]` for none), got {what}")
    keys = [entry(f"{path}: entry {number}", row) for number, row in enumerate(found, 1)]
    _refuse_twins(path, keys)
    _warn(path, mode, keys)
    return keys


def entry(where: str, row: Any) -> Key:
    """A checked entry.

    Raises:
        ConfigError: it is wrong; begins with ``where``.
    """
    name = row.get("name") if isinstance(row, dict) else None
    where += f" ({name[:64]!r})" if isinstance(name, str) else ""
    if not isinstance(row, dict):
        raise ConfigError(f"{where}: expected name, sha256, …; got a {type(row).__name__}")
    try:
        return Key.model_validate(row)
    except ValidationError as e:
        raise ConfigError(f"{where}: {_first(e)}") from None


def _first(error: ValidationError) -> str:
    """The first thing wrong with an entry. Shows no value: somebody may have put a key there."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"])[:64]
    if first["type"] == "extra_forbidden":
        known = list(Key.model_fields)
        return f"unknown field {field!r}{nearest(field, known)}; there are {', '.join(known)}"
    if field == "sha256" and first["type"] != "missing":
        return "sha256: expected the 64 lower-case hexadecimal digits of a hash, in quotes"
    if field == "name" and first["type"] != "missing":
        return "name: expected 1 to 64 letters, digits, dots, dashes or underscores"
    if field == "expires":
        return "expires: expected a date such as 2027-01-31"
    message = first["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    return f"{field}: {message}" if field else message


def _refuse_twins(path: Path, keys: Sequence[Key]) -> None:
    for field in ("name", "sha256"):
        value, count = max(
            Counter(getattr(key, field) for key in keys).items(),
            key=lambda item: item[1],
            default=("", 0),
        )
        if count > 1:
            twins = [n for n, key in enumerate(keys, 1) if getattr(key, field) == value]
            shown = f" {value!r}" if field == "name" else ""
            raise ConfigError(
                f"{path}: entries {' and '.join(map(str, twins))} have the same {field}{shown}; "
                "remove or rename one"
            )


def _warn(path: Path, mode: int, keys: Sequence[Key]) -> None:
    if mode & (stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP):
        able = "change" if mode & (stat.S_IWOTH | stat.S_IWGRP) else "read"
        log.warning("%s: other users can %s the API keys; chmod 600 %s", path, able, path)
    if not keys:
        log.warning("%s: no API keys, so every request will be refused", path)


def write(path: Path, keys: Sequence[Key]) -> None:
    """Replace the file whole; a new one is for its owner alone, an old one keeps its mode.

    Raises:
        ConfigError: there is no directory to put it in.
    """
    path = path.resolve()  # a link stays one
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: there is no directory {path.parent}; make it, or name another")
    rows = [key.model_dump(exclude_none=True) for key in keys]
    text = HEADER + yaml.safe_dump(rows, sort_keys=False)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as f:
            if path.exists():
                os.fchmod(f.fileno(), stat.S_IMODE(path.stat().st_mode))
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
