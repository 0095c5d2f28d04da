"""Medians and how certain they are, without assuming a distribution.

Times on a shared machine are skewed and drift, so nothing here uses a mean or a standard
deviation. The interval of a median is that of its order statistics: the number of values below the
true median is binomial (n, 1/2), whatever their distribution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

CONFIDENCE = 0.95
ENOUGH = 6
"""Fewer values have no interval of 95% confidence: their whole range has less."""


@dataclass(frozen=True)
class Median:
    """A median and the interval it lies in with 95% confidence.

    Attributes:
        low, high: ends of the interval; of all values where they are fewer than ``ENOUGH``.
    """

    value: float
    low: float
    high: float

    @property
    def within(self) -> float:
        """The farther end of the interval, as a share of the value: 0.03 says ±3%."""
        if not self.value:
            return math.inf
        return max(self.high - self.value, self.value - self.low) / abs(self.value)


def median(values: ArrayLike) -> Median:
    """The median of at least one value."""
    ordered = np.sort(np.asarray(values, np.float64))
    below = ranks(len(ordered))
    return Median(
        float(np.median(ordered)), float(ordered[below]), float(ordered[len(ordered) - 1 - below])
    )


def ranks(n: int) -> int:
    """How many of n ordered values lie outside the interval at each end."""
    tail, outside = 0.0, 0
    for k in range(n // 2):
        tail += math.comb(n, k) / 2**n
        if tail > (1 - CONFIDENCE) / 2:
            break
        outside = k
    return outside


def ratio(numerator: ArrayLike, denominator: ArrayLike) -> Median:
    """The median over turns of the ratio within a turn, so that what both met cancels."""
    return median(np.asarray(numerator) / np.asarray(denominator))
