"""measured.json: what an export measured on its machine, for people.

It differs from run to run, so the manifest does not hash it: exporting a checkpoint again
gives the same manifest. Instead the file carries its own hash, so that damage shows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmf_deploy.errors import BundleError

NAME = "measured.json"
TABLES = ("latency", "pytorch", "forms", "int8")


def render(content: Mapping[str, Any]) -> bytes:
    """The bytes of the file: the content and its SHA-256."""
    inner = json.dumps(content, sort_keys=True).encode()
    whole = {"sha256": hashlib.sha256(inner).hexdigest(), "measured": content}
    return (json.dumps(whole, indent=1, sort_keys=True) + "\n").encode()


def read(directory: Path) -> dict[str, Any]:
    """The content; empty if there is no such file.

    Raises:
        BundleError: the file is not what ``render`` wrote.
    """
    path = directory / NAME
    if not path.exists():
        return {}
    try:
        raw = path.read_bytes()
        content = dict(json.loads(raw)["measured"])
        if raw == render(content) and all(isinstance(content.get(k, {}), dict) for k in TABLES):
            return content
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        pass
    raise BundleError(
        f"{path}: corrupt: it does not match the hash it carries; copy the bundle again, or delete "
        "this file, which serving does not need"
    )
