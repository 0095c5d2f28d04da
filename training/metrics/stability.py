"""How steady is a training run? Read from the numbers that it logged."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmf_deploy.errors import CheckpointError

Series = NDArray[np.float64]


def read_log(run: Path) -> dict[str, Series]:
    """``log.jsonl`` of a run as columns: step, loss, squared_error, gradient_norm.

    A value that was not finite is NaN.

    Raises:
        CheckpointError: there is none, or it is not a log.
    """
    try:
        rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        return {
            key: np.array([np.nan if row[key] is None else row[key] for row in rows], np.float64)
            for key in ("step", "loss", "squared_error", "gradient_norm")
        }
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise CheckpointError(
            f"{run / 'log.jsonl'}: not the log of a run ({e!r}); train it again"
        ) from e


def rolling_variance(values: Sequence[float] | Series, window: int) -> Series:
    """Variance of each ``window`` neighbouring values, [N − window + 1]; unbiased.

    Raises:
        ValueError: the window is shorter than two, or longer than the series.
    """
    series = np.asarray(values, np.float64)
    if not 2 <= window <= len(series):
        raise ValueError(f"window {window}: expected 2 … {len(series)}")
    windows: Series = np.lib.stride_tricks.sliding_window_view(series, window)
    return np.asarray(windows.var(axis=1, ddof=1))


def variation(values: Sequence[float] | Series) -> float:
    """Coefficient of variation: standard deviation over mean, of positive values.

    NaN where a value is not finite.
    """
    series = np.asarray(values, np.float64)
    return float(series.std() / series.mean())
