"""The simulation against the service: loaded at several rates, side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mmf_deploy.engines.base import EngineOptions

from ..load.client import Load
from ..load.report import Level, Report
from ..load.session import Plan, Subject, measure
from .observe import Served
from .planner import Planner
from .simulate import open_loop, poisson

SHARES = (0.3, 0.5, 0.7, 0.85, 0.95)
FEW_SHARES = (0.3, 0.6, 0.9)
"""Of the capacity; the few where a replica carries less than FEW_PER_S."""
FEW_PER_S = 50.0
REQUESTS = 2000
SHORTEST_S, LONGEST_S = 5.0, 30.0
"""A level of load lasts until about so many requests at half the capacity, within these bounds."""
RUNS = 20
"""Simulations as long as the measurement: what chance alone does to its percentiles."""

OnProgress = Callable[[str, float], None]


@dataclass(frozen=True)
class Checked:
    """One rate, simulated and measured.

    Attributes:
        simulated_ms: p50 and p99 of a long simulation.
        band_ms: for each, between which values 19 of 20 simulations lie that are as short as the
            measurement.
        measured_ms: p50 and p99, from the time a request was sent.
        due_ms: the same from the time it was due: what the generator was late is in it.
        late_ms: p99 of that.
        bottleneck: why the generator limited it, or None.
        other_cores: that other processes used.
    """

    per_s: float
    load: float
    requests: int
    shed: float
    simulated_ms: dict[str, float]
    band_ms: dict[str, tuple[float, float]]
    measured_ms: dict[str, float]
    due_ms: dict[str, float]
    late_ms: float
    bottleneck: str | None
    other_cores: float | None

    def error(self, name: str) -> float:
        """By how much the simulation is off, as a share of what was measured."""
        return self.simulated_ms[name] / self.measured_ms[name] - 1.0


def rates(capacity_per_s: float) -> tuple[float, ...]:
    """Requests a second to check."""
    shares = SHARES if capacity_per_s >= FEW_PER_S else FEW_SHARES
    return tuple(round(share * capacity_per_s, 2) for share in shares)


def seconds(capacity_per_s: float) -> float:
    """How long each of them lasts."""
    return round(min(LONGEST_S, max(SHORTEST_S, REQUESTS / (0.5 * capacity_per_s))), 1)


async def check(
    planner: Planner, served: Served, on_progress: OnProgress = lambda what, share: None
) -> tuple[list[Checked], Report]:
    """Load the service at several rates, and simulate the same.

    Raises:
        ServiceError: it did not start.
    """
    capacity_per_s = planner.capacity_per_s
    plan = Plan(rates=rates(capacity_per_s), seconds=seconds(capacity_per_s))
    subject = Subject(
        None,
        served.bundle,
        form=served.form,
        variant=served.variant,
        engine=served.engine,
        options=EngineOptions(threads=served.threads),
    )
    load = Load(images=served.images, seed=served.seed)
    report = await measure(subject, plan, load, "", on_progress)
    return [_compare(planner, found) for found in report.levels], report


def _compare(planner: Planner, found: Level) -> Checked:
    per_s, names = found.offered_per_s, ("p50", "p99")
    point = planner.at(per_s)
    band = np.percentile([_short(planner, per_s, found.requests, k) for k in range(RUNS)],
                         [2.5, 97.5], axis=0)  # fmt: skip
    return Checked(
        per_s=per_s,
        load=point.load,
        requests=found.requests,
        shed=found.shed,
        simulated_ms={"p50": point.p50_ms, "p99": point.p99_ms},
        band_ms={n: (float(low), float(high)) for n, low, high in zip(names, *band, strict=True)},
        measured_ms={n: found.sent_latency_ms[n] for n in names},
        due_ms={n: found.latency_ms[n] for n in names},
        late_ms=found.late_ms["p99"],
        bottleneck=found.bottleneck,
        other_cores=found.other_cores,
    )


def _short(planner: Planner, per_s: float, requests: int, seed: int) -> list[float]:
    """p50 and p99 of a simulation of so many requests, in milliseconds."""
    due_s = poisson(per_s, max(requests, 2), seed + 1)
    trace = open_loop(planner.replica, due_s, planner.images, seed + 1)
    return [float(p) for p in np.percentile(trace.latency_s * 1e3, [50, 99])]
