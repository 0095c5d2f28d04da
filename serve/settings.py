"""Everything that can be set about a server: by flag, by environment variable, or in a file.

A flag wins over its variable, a variable over the file. ``--port`` is MMF_SERVE_PORT, and
``port:`` in a YAML file given by --config.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mmf_deploy.errors import ConfigError, nearest

PREFIX = "MMF_SERVE_"
ORIGIN = re.compile(r"\*|https?://[^\s,/]+")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class LogLevel(enum.StrEnum):
    """How much goes to stderr."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"
    DEBUG = "debug"


class LogFormat(enum.StrEnum):
    """What a line of the log is."""

    TEXT = "text"
    JSON = "json"


class Settings(BaseModel):
    """What a server is told.

    Attributes:
        bundle: the one bundle to serve, under its own name; the embedded digits if nothing is.
        models: bundles by name, instead; the first is the default model.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    bundle: Path | None = None
    models: dict[str, Path] = {}
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    engine: str | None = None
    variant: str | None = None
    device: str | None = None
    mode: str | None = None
    threads: int | None = Field(None, ge=1)
    checkpoint: Path | None = None
    max_queue: int = Field(1024, ge=1)
    max_images: int = Field(256, ge=1)
    max_body: int = Field(1 << 20, ge=1024)
    encoders: int = Field(2, ge=1)
    api_keys: Path | None = None
    cors: list[str] = []
    watch: float | None = Field(None, gt=0)
    drain_delay: float = Field(0.5, ge=0)
    log_level: LogLevel = LogLevel.WARNING
    log_format: LogFormat = LogFormat.TEXT
    otel: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.bundle is not None and self.models:
            raise ValueError("give either one bundle or named models, not both")
        for name in self.models:
            if not NAME.fullmatch(name):
                raise ValueError(
                    f"model name {name!r}: expected letters, digits, dots, dashes and underscores"
                )
        for origin in self.cors:
            if not ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"origin {origin!r}: expected one like https://example.org by itself, or *"
                )
        if (self.checkpoint is not None) != (self.engine == "pytorch"):
            raise ValueError("--checkpoint DIR goes with --engine pytorch, and only with it")
        return self


def read(file: Path | None, given: Mapping[str, Any]) -> Settings:
    """The settings of a file, with what was given by flag or variable over them.

    Args:
        given: by field; None is not given.
    Raises:
        ConfigError: the file is missing or wrong, or a value is; one line.
    """
    found = {} if file is None else _read_file(file)
    over = {name: value for name, value in given.items() if value is not None}
    # naming the other one of the two replaces what the file says
    if "bundle" in over:
        found.pop("models", None)
    if "models" in over:
        found.pop("bundle", None)
    try:
        return Settings.model_validate({**found, **over})
    except ValidationError as e:
        raise ConfigError(_explain(e, file, over)) from None


def named_models(texts: list[str]) -> dict[str, Path]:
    """``name=path`` of each model.

    Raises:
        ConfigError: one has no name, or a name comes twice.
    """
    models: dict[str, Path] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or not path:
            raise ConfigError(
                f"--model {text!r}: expected NAME=BUNDLE, for example faces=runs/faces"
            )
        if name in models:
            raise ConfigError(f"--model {name!r} comes twice; give each model a name of its own")
        models[name] = Path(path)
    return models


def _read_file(file: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{file}: cannot be read ({getattr(e, 'strerror', None) or e})") from None
    except yaml.YAMLError as e:
        place = getattr(e, "problem_mark", None)
        where = f" at line {place.line + 1}" if place else ""
        raise ConfigError(f"{file}: not YAML{where}; expected lines like 'port: 8000'") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ConfigError(
            f"{file}: expected lines like 'port: 8000', found a {type(found).__name__}"
        )
    here = file.parent
    # paths in a file are relative to the file
    for name in ("bundle", "api_keys", "checkpoint"):
        if isinstance(found.get(name), str):
            found[name] = here / found[name]
    if isinstance(found.get("models"), dict):
        found["models"] = {str(k): here / str(v) for k, v in found["models"].items()}
    return found


def _explain(error: ValidationError, file: Path | None, over: Mapping[str, Any]) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    name = ".".join(str(part) for part in first["loc"])
    where = f"--{name.replace('_', '-')}" if name in over or file is None else f"{file}: {name}"
    if first["type"] == "extra_forbidden":
        return f"{where}: no such setting{nearest(name, Settings.model_fields)}"
    text = first["msg"].removeprefix("Value error, ")
    if not name:
        return text if file is None else f"{file}: {text}"
    return f"{where}: {text[:1].lower() + text[1:]}, got {str(first['input'])[:60]!r}"
