"""Where a benchmark leaves its report: a directory with JSON and a plot."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmf_deploy import files
from mmf_deploy.errors import ConfigError, require


def prepare(out: Path) -> None:
    """Make the directory: what would fail after the measurement shall fail before it.

    Raises:
        ConfigError: it is a file.
        DependencyError: there is nothing to draw the plot with.
    """
    require("matplotlib", "bench")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out}: is a file; expected a directory")
    out.mkdir(parents=True, exist_ok=True)


def write(out: Path, name: str, report: dict[str, Any], plot: Callable[[Path], None]) -> str:
    """Write ``name``.json and, by ``plot``, ``name``.png; says where they are."""
    data, picture = out / f"{name}.json", out / f"{name}.png"
    files.write_atomic(data, (json.dumps(report, indent=1) + "\n").encode())
    plot(picture)
    return f"written: {data}, {picture}"
