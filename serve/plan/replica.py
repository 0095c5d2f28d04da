"""One replica of the service as the simulation knows it, and what a simulation finds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Seconds = NDArray[np.float64]


@dataclass(frozen=True)
class Replica:
    """What the simulation knows of a replica; seconds of work where it is warm and undisturbed.

    Attributes:
        batch_s: of a batch of 1, 2, 3 … images, up to the largest.
        noise_s: the part of each that makes noise; none if empty.
        front_s: of the front for one request.
        before: share of that which comes before the engine.
        wake_s: to wake a thread.
        beside_s: time of a request that occupies neither.
        cold: by how much a long idle time slows everything down: 2 makes it three times as long.
        settle_s: time constant of getting cold, and of getting warm.
        batch_ratios, front_ratios: work of single batches and requests over the median, to draw
            from.
    """

    batch_s: tuple[float, ...]
    noise_s: tuple[float, ...] = ()
    front_s: float = 0.0
    before: float = 0.5
    wake_s: float = 0.0
    beside_s: float = 0.0
    cold: float = 0.0
    settle_s: float = 1e-3
    batch_ratios: tuple[float, ...] = (1.0,)
    front_ratios: tuple[float, ...] = (1.0,)

    @property
    def largest(self) -> int:
        """The largest batch."""
        return len(self.batch_s)


@dataclass(frozen=True)
class Trace:
    """What happened to the requests of one simulation, in the order of arrival.

    Attributes:
        due_s, done_s: when each came, and when it was answered.
        batches, images: how many were made.
        engine_s: how long the engine was busy.
    """

    due_s: Seconds
    done_s: Seconds
    batches: int
    images: int
    engine_s: float

    @property
    def latency_s(self) -> Seconds:
        """From arrival to reply."""
        return self.done_s - self.due_s

    @property
    def mean_batch(self) -> float:
        """Images in a batch."""
        return self.images / max(1, self.batches)

    @property
    def engine_busy(self) -> float:
        """Share of the time that the engine was busy."""
        return self.engine_s / float(self.done_s.max() - self.due_s.min())
