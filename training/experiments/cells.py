"""Numbers of several seeds as cells of a table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

NOTHING = "—"


def mean_sd(values: Sequence[float], form: str = ".2f", scale: float = 1.0, unit: str = "") -> str:
    """Mean ± standard deviation over seeds; the value alone of one, a dash of none."""
    if not values:
        return NOTHING
    scaled = [scale * value for value in values]
    mean = f"{statistics.fmean(scaled):{form}}{unit}"
    if len(scaled) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(scaled):{form}}{unit}"


def percent(values: Sequence[float]) -> str:
    """Shares as percent."""
    return mean_sd(values, ".1f", 100, "%")
