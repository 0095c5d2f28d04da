"""How cost grows: a line over the batch, a power law over arithmetic; and what they say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NEAR = 0.07
"""An exponent this close to 1 is called 1: doubling the arithmetic then doubles the time to 5%."""


@dataclass(frozen=True)
class Line:
    """Time of a call = fixed_ms + per_image_ms · batch.

    Attributes:
        r2: of the logarithms of the times.
        worst: largest deviation of a measured time from the line, as a share of the line.
        worst_batch: where that is.
    """

    fixed_ms: float
    per_image_ms: float
    r2: float
    worst: float
    worst_batch: int

    def at(self, batch: float) -> float:
        """Milliseconds of a call."""
        return self.fixed_ms + self.per_image_ms * batch


@dataclass(frozen=True)
class Power:
    """y = factor · x^exponent.

    Attributes:
        r2: of the logarithms.
    """

    factor: float
    exponent: float
    r2: float

    def at(self, x: float) -> float:
        """y."""
        return float(self.factor * x**self.exponent)


def line(batches: Sequence[int], ms: Sequence[float]) -> Line:
    """Least squares of relative deviations, so that small batches count as much as large ones.

    Raises:
        ValueError: fewer than two batch sizes.
    """
    n, t = np.array(batches, float), np.array(ms, float)
    _at_least_two(n)
    fixed, each = np.linalg.lstsq(np.stack([1 / t, n / t], axis=1), np.ones_like(t), rcond=None)[0]
    # a line through zero or below it has no logarithm there, and is far off
    fitted = np.maximum(fixed + each * n, 1e-9)
    deviation = t / fitted - 1
    worst = int(np.abs(deviation).argmax())
    return Line(float(fixed), float(each), _r2(np.log(t), np.log(fitted)), float(deviation[worst]),
                int(n[worst]))  # fmt: skip


def power(x: Sequence[float], y: Sequence[float]) -> Power:
    """Least squares of logarithms.

    Raises:
        ValueError: fewer than two values of x.
    """
    u, v = np.log(np.array(x, float)), np.log(np.array(y, float))
    _at_least_two(u)
    exponent, offset = np.polyfit(u, v, 1)
    return Power(float(np.exp(offset)), float(exponent), _r2(v, offset + exponent * u))


def _at_least_two(x: NDArray[np.float64]) -> None:
    if len(np.unique(x)) < 2:
        raise ValueError(f"a fit over {x.tolist()}: expected at least two different values")


def _r2(y: NDArray[np.float64], fitted: NDArray[np.float64]) -> float:
    spread = float(((y - y.mean()) ** 2).sum())
    left = float(((y - fitted) ** 2).sum())
    return 1.0 - left / spread if spread > 0 else float(left == 0)


def exponent_says(exponent: float) -> str:
    """Whether an operation gets cheaper or dearer as networks grow."""
    if exponent < 1 - NEAR:
        return "cheaper"
    return "dearer" if exponent > 1 + NEAR else "neither"


MEANING = (
    "p = 1: time is in proportion to arithmetic, which is all that bounds it and is used as well "
    "at every size; below 1 an operation gets cheaper as networks grow, so small ones leave "
    "arithmetic unused; above 1 it gets dearer, so something else than arithmetic sets the pace"
)
