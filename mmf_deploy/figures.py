"""One look for the pictures of every benchmark."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

from mmf_deploy import files
from mmf_deploy.errors import require

GREY = "#8c8c8c"
COLOURS = (
    "#1f6fb2", "#d1652a", "#2a8a57", "#8a4fb5", "#b8860b", "#c2417f", "#3aa0a8", "#6b6b2a",
    "#16265c", "#7a2e12", "#7cc244", "#f0917f",
)  # fmt: skip
MARKERS = "osD^vPX*"
"""Taken in turn beside the colours: more tells series apart than the colour alone."""
STEPS = (
    (1,),
    (1, 2, 5),
    (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8),
    tuple(k / 10 for k in range(10, 100)),
)
"""Of ticks in a decade, coarse to fine."""
FEWEST_TICKS, MOST_TICKS = 3, 12


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


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between two others, for an axis whose own ticks are decades.

    A few of them, however near to each other the ends are.
    """
    for steps in STEPS:
        ticks = [round(m * 10.0**e, 12) for e in range(-6, 9) for m in steps]
        found = [t for t in ticks if low <= t <= high]
        if len(found) >= FEWEST_TICKS:
            break
    return found[:: max(1, math.ceil(len(found) / MOST_TICKS))]
