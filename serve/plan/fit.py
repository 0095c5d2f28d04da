"""From what was observed to a replica: the constants with which the simulation repeats it.

The batches are taken as the engine's own measurement gave them. Everything else is what makes the
simulated loads come out as the observed ones: each is repeated, an open loop with the very times at
which its requests were sent, and the constants are changed at random, in smaller and smaller steps,
as long as medians, 90th percentiles and the throughput agree better. The search begins with what
can be read off: the front's processor time, and the queue of a client that is alone, which is the
time that a thread takes to wake. A network so slow that none of this shows is not searched for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from .cost import EngineCost
from .observe import MATTERS_S, Observed, Seen
from .replica import Replica
from .simulate import closed_loop, open_loop, throughput

TRIES = 160
LONGEST_STEP, SHORTEST_STEP = 0.4, 0.04
"""Of the search, as logarithms; it goes from one to the other."""
BEGIN_COLD, BEGIN_SETTLE_S = 2.0, 3e-3
LOOP_REQUESTS = 1500
ALONE_REQUESTS = 50
BESIDE_STEPS = 5
WORST = 1.5
"""The largest error that counts, as a logarithm: how long a queue got that grows is chance."""
THROUGHPUT, MEDIAN, P90 = 3.0, 1.0, 0.3
"""Weights of errors: 90th percentiles of short loads are uncertain."""
KEPT = 0.02
"""What it costs to leave the beginning, so that nothing moves that makes no difference."""
ODD = 10.0
"""What is believed of a spread, as a multiple of the median: beyond that it was the machine."""


@dataclass(frozen=True)
class Fitted:
    """A replica, and how well it repeats what was observed.

    Attributes:
        drag: what a batch takes in the service, as a multiple of what it takes alone.
        error: mean deviation of the throughput, the medians and the 90th percentiles.
        simulated_per_s: throughput of the closed loop.
    """

    replica: Replica
    drag: float
    error: float
    simulated_per_s: float


@dataclass(frozen=True)
class Constants:
    """What is looked for: attributes as of ``Replica``, and ``drag`` as of ``Fitted``."""

    front_s: float
    wake_s: float
    drag: float
    cold: float
    settle_s: float


def fit(engine: EngineCost, observed: Observed) -> Fitted:
    """The replica that behaves as observed; the same observation gives the same."""
    search = _Search(engine, observed)
    constants = search.best()
    replica = search.replica(constants)
    return Fitted(replica, constants.drag, search.error(replica), search.per_s(replica))


class _Search:
    """Tries constants."""

    def __init__(self, engine: EngineCost, observed: Observed) -> None:
        self._engine, self._observed, self._images = engine, observed, observed.images
        self._alone_s = float(np.median(observed.alone.latency_s))
        self._plain = Replica(
            engine.batch_s,
            engine.noise_by_size_s,
            batch_ratios=engine.ratios,
            front_ratios=_front_ratios(observed.alone),
        )
        self.begin = self._read_off()

    def _read_off(self) -> Constants:
        alone = self._observed.alone
        wake_s = float(np.median(alone.queue_s))
        left_s = self._alone_s - float(np.median(alone.infer_s)) - 3 * wake_s
        cpu_s = self._observed.many.front_cpu_s
        front_s = left_s if cpu_s is None else cpu_s
        found = Constants(max(front_s, 1e-5), max(wake_s, 1e-6), 1.0, BEGIN_COLD, BEGIN_SETTLE_S)
        if self._alone_s < MATTERS_S:
            return found
        # what a slow network takes is known from its own time; a cold start does not show
        drag = float(np.median(alone.infer_s)) / self._engine.request_s(self._images)
        return replace(found, drag=drag, cold=0.0)

    def best(self) -> Constants:
        """The constants with the smallest error."""
        random = np.random.default_rng(0)
        best, cost = self.begin, self._cost(self.begin)
        if not best.cold:  # a slow network, beside which nothing of that shows
            return best
        names = ("front_s", "wake_s", "cold", "settle_s")
        for step in np.geomspace(LONGEST_STEP, SHORTEST_STEP, TRIES):
            moved = {n: getattr(best, n) * math.exp(random.normal(0, step))
                     for n in names if random.random() < 0.5}  # fmt: skip
            candidate = replace(best, **moved)
            found = self._cost(candidate)
            if found < cost:
                best, cost = candidate, found
        return best

    def _cost(self, constants: Constants) -> float:
        moved = [math.log(getattr(constants, n) / getattr(self.begin, n)) for n in
                 ("front_s", "wake_s", "settle_s")]  # fmt: skip
        return self.error(self.replica(constants)) + KEPT * float(np.mean(np.abs(moved)))

    def replica(self, constants: Constants) -> Replica:
        """With the time beside that makes up the latency of a client that is alone."""
        found = replace(
            self._plain,
            batch_s=tuple(s * constants.drag for s in self._plain.batch_s),
            front_s=constants.front_s,
            wake_s=constants.wake_s,
            cold=constants.cold,
            settle_s=constants.settle_s,
        )
        for _ in range(BESIDE_STEPS):
            beside_s = found.beside_s + self._alone_s - self._alone(found)
            found = replace(found, beside_s=max(0.0, beside_s))
        return found

    def _alone(self, replica: Replica) -> float:
        trace = closed_loop(replica, 1, ALONE_REQUESTS, self._images)
        return float(np.median(trace.latency_s[ALONE_REQUESTS // 4 :]))

    def per_s(self, replica: Replica) -> float:
        """Throughput of the closed loop."""
        clients = self._observed.many.clients or 1
        requests = max(LOOP_REQUESTS, 8 * clients)
        return throughput(closed_loop(replica, clients, requests, self._images), clients)

    def error(self, replica: Replica) -> float:
        """Mean deviation, as a share."""
        ratios, weights = zip(*self._ratios(replica), strict=True)
        errors = np.minimum(WORST, np.abs(np.log(ratios)))
        return float(np.average(errors, weights=weights))

    def _ratios(self, replica: Replica) -> Iterator[tuple[float, float]]:
        """Simulated over observed, and what that counts."""
        seen = self._observed
        yield self._alone(replica) / self._alone_s, THROUGHPUT
        yield self.per_s(replica) / seen.many.per_s, THROUGHPUT
        for load in seen.open:
            simulated_s = open_loop(replica, load.sent_s, self._images).latency_s
            for percentile, weight in ((50, MEDIAN), (90, P90)):
                found_s = float(np.percentile(simulated_s, percentile))
                yield found_s * 1e3 / load.latency_ms(percentile), weight


def _front_ratios(alone: Seen) -> tuple[float, ...]:
    """What is neither queue nor batch, as a multiple of its median."""
    each = alone.inside_s - alone.queue_s - alone.infer_s
    ratios = each / max(float(np.median(each)), 1e-9)
    return tuple(np.clip(ratios, 1 / ODD, ODD).tolist())
