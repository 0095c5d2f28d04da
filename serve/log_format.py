"""How a record becomes one line on stderr: text for people, JSON for machines."""

from __future__ import annotations

import contextvars
import functools
import json
import logging
import sys
import time
from typing import Any

request_id: contextvars.ContextVar[str | None] = contextvars.ContextVar("request_id", default=None)
"""The request that is being served, for every record that is logged meanwhile."""

UVICORN = ("uvicorn", "uvicorn.error", "uvicorn.asgi", "uvicorn.access")


def configure(level: str = "warning", log_format: str = "text") -> None:
    """Log the whole process to stderr in one format, uvicorn and Python's warnings included.

    Uvicorn's access lines are left out, because RequestLog writes better ones.

    Args:
        level: error, warning, info or debug; access lines are info.
        log_format: text or json.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in UVICORN:
        theirs = logging.getLogger(name)
        theirs.handlers.clear()
        theirs.propagate = True
        theirs.setLevel(logging.NOTSET)
    logging.getLogger("uvicorn.access").setLevel(logging.WARNING)
    logging.captureWarnings(True)


def rfc3339(seconds: float) -> str:
    """``2026-01-31T12:00:00.123Z`` of a Unix time."""
    whole = int(seconds)
    return f"{_second(whole)}.{int((seconds - whole) * 1000):03d}Z"


@functools.lru_cache(maxsize=2)
def _second(whole: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))


class JsonFormatter(logging.Formatter):
    """One JSON object a record, in ASCII on one line.

    ``extra={"fields": {...}}`` adds fields; an exception is the field ``exception``.
    """

    _encode = json.JSONEncoder(
        allow_nan=False, check_circular=False, default=str, separators=(",", ":")
    ).encode

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        line: dict[str, Any] = {
            "time": rfc3339(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        if record.msg:
            line["message"] = record.getMessage()
        if (current := request_id.get()) is not None:
            line["request_id"] = current
        for name, value in getattr(record, "fields", {}).items():
            line.setdefault(name, value)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = record.stack_info
        try:
            return self._encode(line)
        except (TypeError, ValueError, RecursionError):  # a key or a number JSON does not have
            return self._encode({str(k): v if isinstance(v, str) else repr(v)
                                 for k, v in line.items()})  # fmt: skip


class TextFormatter(logging.Formatter):
    """``TIME LEVEL logger message name=value …``; a traceback follows, indented.

    Whatever a client sent, it cannot begin a line or send a terminal a command.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        parts = [rfc3339(record.created), record.levelname, record.name]
        if record.msg:
            parts.append(printable(record.getMessage()))
        fields: dict[str, Any] = getattr(record, "fields", {})
        if "request_id" not in fields and (current := request_id.get()) is not None:
            parts.append(f"request_id={current}")
        parts += [f"{name}={_value(value)}" for name, value in fields.items() if value is not None]
        below = self.formatException(record.exc_info) if record.exc_info else ""
        below += "\n" + record.stack_info if record.stack_info else ""
        lines = [" ".join(parts), *below.strip("\n").splitlines()]
        return "\n    ".join([lines[0], *map(printable, lines[1:])]) if below else lines[0]


def printable(text: str) -> str:
    """The text with escapes for everything that moves a cursor."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _value(value: object) -> str:
    text = str(value)
    if text.isprintable() and text and not set(' "=') & set(text):
        return text
    return '"' + printable(text).replace('"', r"\"") + '"'
