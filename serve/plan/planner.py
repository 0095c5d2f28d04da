"""How many replicas: the simulation at the rate that each would get."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mmf_deploy.errors import ConfigError

from .replica import Replica, Seconds, Trace
from .simulate import capacity_per_s, open_loop, poisson

REQUESTS = 20_000
"""Simulated at every rate; those of the answer, so many times …"""
FINAL = 5
WARM_UP = 0.1
"""Share of them that is not counted."""
BATCHES = 20
T_95 = 2.093
"""Quantile 0.975 of Student's t with one degree of freedom less than batches."""
SHARES = (0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
"""Of the capacity: where the highest rate within the target is looked for first."""
HALVINGS = 7
CURVE = (0.01, 0.02, 0.05, *(k / 20 for k in range(2, 20)), 0.97)
LONG_FROM = 0.7
BEYOND = 2
"""Rows after the answer."""
MOST_ROWS = 12


@dataclass(frozen=True)
class Point:
    """One replica at one rate, simulated.

    Attributes:
        per_s: requests a second.
        load: the same as a share of what it can carry at most; at 1 and above there is no latency:
            the queue would grow for ever.
        engine_busy: share of the time.
        mean_batch: images.
        within_ms: half the interval in which the p99 lies with 95% confidence, by batch means.
        late: share of the requests that take longer than the target.
    """

    per_s: float
    load: float
    engine_busy: float = 1.0
    mean_batch: float = math.nan
    p50_ms: float = math.inf
    p99_ms: float = math.inf
    within_ms: float = math.nan
    late: float = 1.0


@dataclass(frozen=True)
class Plan:
    """What so many replicas would do, and how many it takes.

    Attributes:
        rate: requests a second, of all replicas together.
        points: with 1, 2, … replicas, the last dozen of them if there are more.
        replicas: the fewest that keep the target.
        highest: the highest rate at which one replica keeps it.
        alone: one request with nothing in its way, after a long idle time.
    """

    rate: float
    target_ms: float
    images: int
    capacity_per_s: float
    replicas: int
    points: dict[int, Point]
    highest: Point
    alone: Point

    @property
    def answer(self) -> Point:
        """One of the replicas that it takes."""
        return self.points[self.replicas]


class Planner:
    """Simulates one replica at any rate.

    Args:
        target_ms: that p99 is to stay under.
    """

    def __init__(self, replica: Replica, images: int, target_ms: float, seed: int = 0) -> None:
        self.replica, self.images = replica, images
        self.target_ms, self.seed = target_ms, seed
        self.capacity_per_s = capacity_per_s(replica, images, seed)

    def at(self, per_s: float, times: int = 1) -> Point:
        """One replica at that rate."""
        load = per_s / self.capacity_per_s
        if load >= 1:
            return Point(per_s, load)
        due_s = poisson(per_s, times * REQUESTS, self.seed)
        trace = open_loop(self.replica, due_s, self.images, self.seed)
        return self._point(per_s, load, trace)

    def curve(self) -> list[Point]:
        """One replica at rising rates, up to its capacity; longer where it takes longer to tell."""
        return [
            self.at(share * self.capacity_per_s, FINAL if share > LONG_FROM else 1)
            for share in CURVE
        ]

    def _point(self, per_s: float, load: float, trace: Trace) -> Point:
        latency_ms = trace.latency_s[round(WARM_UP * len(trace.latency_s)) :] * 1e3
        p50_ms, p99_ms = np.percentile(latency_ms, [50, 99])
        return Point(
            per_s,
            load,
            trace.engine_busy,
            trace.mean_batch,
            float(p50_ms),
            float(p99_ms),
            half_interval(latency_ms, 99),
            float((latency_ms > self.target_ms).mean()),
        )

    def plan(self, rate: float, helps: str = "") -> Plan:
        """The fewest replicas that carry this rate within the target.

        Args:
            helps: what to say to whom no number of replicas helps.
        Raises:
            ConfigError: one request alone takes longer.
        """
        alone = self.at(1e-3 * self.capacity_per_s)
        highest = self._highest()
        if highest is None:
            raise ConfigError(self._refusal(alone, helps))
        points: dict[int, Point] = {}

        def keeps(replicas: int) -> bool:
            if replicas not in points:
                points[replicas] = self.at(rate / replicas, FINAL)
            return points[replicas].p99_ms <= self.target_ms

        count = max(1, math.ceil(rate / highest.per_s * (1 - 1e-9)))
        # the longer simulation may tell another count
        while count > 1 and keeps(count - 1):
            count -= 1
        while not keeps(count):
            if rate / count < highest.per_s / 4:  # replicas that are idle are slow
                raise ConfigError(self._refusal(points[count], helps))
            count += 1
        for shown in _shown(count):
            keeps(shown)
        return Plan(
            rate, self.target_ms, self.images, self.capacity_per_s, count,
            {n: points[n] for n in _shown(count)}, highest, alone,
        )  # fmt: skip

    def _highest(self) -> Point | None:
        """The highest rate whose p99 is within the target; None if none is."""
        points = [self.at(share * self.capacity_per_s) for share in SHARES]
        good = [k for k, point in enumerate(points) if point.p99_ms <= self.target_ms]
        if not good:
            return None
        best = points[good[-1]]
        if good[-1] == len(SHARES) - 1:
            return best
        low, high = best.per_s, points[good[-1] + 1].per_s
        for _ in range(HALVINGS):
            point = self.at((low + high) / 2)
            if point.p99_ms <= self.target_ms:
                low, best = point.per_s, point
            else:
                high = point.per_s
        return best

    def _refusal(self, alone: Point, helps: str) -> str:
        each = "one image" if self.images == 1 else f"{self.images} images"
        return (
            f"--p99 {self.target_ms:g}ms: a request of {each} takes {alone.p50_ms:.1f} ms (p99 "
            f"{alone.p99_ms:.1f} ms) when nothing else is asked for, so no number of replicas "
            f"keeps it{helps and '; '}{helps}"
        )


def _shown(replicas: int) -> list[int]:
    """Which counts have a row: all up to two more, or the last of them where there are many."""
    last = replicas + BEYOND
    return list(range(max(1, last - MOST_ROWS + 1), last + 1))


def half_interval(values: Seconds, percentile: float) -> float:
    """Half of the 95% interval of a percentile, by batch means: neighbours are not independent."""
    parts = [np.percentile(part, percentile) for part in np.array_split(values, BATCHES)]
    return float(T_95 * np.std(parts, ddof=1) / math.sqrt(BATCHES))
