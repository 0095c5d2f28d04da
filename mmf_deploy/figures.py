"""One look for the pictures of every benchmark."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from mmf_deploy import files
from mmf_deploy.errors import require

GREY = "#8c8c8c"
COLOURS = ("#1f6fb2", "#d1652a", "#2a8a57", "#8a4fb5", "#b8860b", "#c2417f", "#3aa0a8", "#6b6b2a")


def figure(width: float, height: float) -> Any:
    """An empty matplotlib figure of so many inches, which belongs to no window.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    return require("matplotlib.figure", "bench").Figure(
        figsize=(width, height), layout="constrained"
    )


def save(drawn: Any, path: Path) -> None:
    """Write a figure as a PNG, whole or not at all."""
    data = io.BytesIO()
    drawn.savefig(data, format="png", dpi=130, bbox_inches="tight")
    files.write_atomic(path, data.getvalue())


def bare(axis: Any) -> None:
    """No frame above and on the right, and a grid that stays in the background."""
    axis.grid(alpha=0.3)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
