"""What a load test found: every request is accounted for."""

from __future__ import annotations

import enum
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .check import Tally


class Outcome(enum.StrEnum):
    """How a request ended."""

    OK = "ok"
    REFUSED = "refused"
    """With 429 or 503, and a Retry-After: the service said so in time and says when to return."""
    FAILED = "failed"
    """Anything else: an unannounced 503, another error, a broken connection, no reply in time."""


@dataclass(slots=True)
class Sent:
    """One request, as the client saw it. Times are seconds of one clock.

    Attributes:
        due_s: when it was to be sent.
        sent_s: when it was; later than ``due_s`` if the client was late.
        done_s: when the reply was complete.
        what: of what is not ok: status and code, or the kind of failure.
        timing: the Server-Timing header.
    """

    due_s: float
    sent_s: float
    done_s: float = 0.0
    outcome: Outcome = Outcome.FAILED
    what: str = ""
    timing: str = ""


@dataclass
class Run:
    """What happened at one level of load.

    Attributes:
        per_s: requests a second that were asked for, of an open loop.
        concurrency: of a closed loop.
        probes: requests one after the other right after the end of the arrivals.
        memory_mb: of the server, from the beginning to the end.
        client_cores, server_cores, other_cores: processor time over time, of this process, the
            server, and everything else on the machine.
    """

    seconds: float
    begin_s: float
    images: int
    per_s: float | None = None
    concurrency: int | None = None
    deadline_ms: float | None = None
    sent: list[Sent] = field(default_factory=list)
    probes: list[Sent] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    memory_mb: list[float] = field(default_factory=list)
    client_cores: float = 0.0
    server_cores: float | None = None
    other_cores: float | None = None


@dataclass(frozen=True)
class Level:
    """One level of load, for people: see docs/benchmark-serve.md for every field.

    Attributes:
        offered_per_s: requests a second: asked for in an open loop, made in a closed one.
        requests_per_s, images_per_s: answered with images, while the load lasted.
        latency_ms: of what was answered with images, from the time it was due.
        sent_latency_ms: the same from the time it was sent.
        refusal_ms: from the time due to the refusal.
        late_ms: how late the generator sent what was due.
        bottleneck: why the generator limited this level, or None.
        deadline_met: share of what was answered with images that came within the deadline.
        recovery: of requests one after the other right after the load, or None: how many were
            ``refused``, after how long the ``first_ms`` was answered with images, and the
            ``latency_ms`` of those that were, in order.
    """

    mode: str
    concurrency: int | None
    images: int
    offered_per_s: float
    seconds: float
    requests: int
    ok: int
    refused: dict[str, int]
    failed: dict[str, int]
    shed: float
    requests_per_s: float
    images_per_s: float
    latency_ms: dict[str, float]
    sent_latency_ms: dict[str, float]
    refusal_ms: dict[str, float]
    late_ms: dict[str, float]
    bottleneck: str | None
    deadline_ms: float | None
    deadline_met: float | None
    checked: Tally
    server_ms: dict[str, float]
    memory_mb: dict[str, float]
    client_cores: float
    server_cores: float | None
    other_cores: float | None
    recovery: dict[str, Any] | None


LATE_MS = 5.0
LATE_SHARE = 0.1
BUSY = 0.9


def level(run: Run) -> Level:
    """Sum up a run."""
    by = {o: [s for s in run.sent if s.outcome is o] for o in Outcome}
    ok, refused, failed = by[Outcome.OK], by[Outcome.REFUSED], by[Outcome.FAILED]
    failed = failed + [s for s in run.probes if s.outcome is Outcome.FAILED]
    late, latency = _late_ms(run.sent), summary([_since_due_ms(s) for s in ok])
    per_s = _per_second(run, ok)
    limit = run.deadline_ms
    met = [_since_due_ms(s) <= limit for s in ok] if limit is not None else []
    return Level(
        mode="closed" if run.per_s is None else "open",
        concurrency=run.concurrency,
        images=run.images,
        offered_per_s=round(len(run.sent) / run.seconds if run.per_s is None else run.per_s, 3),
        seconds=run.seconds,
        requests=len(run.sent),
        ok=len(ok),
        refused=_count(refused),
        failed=_count(failed),
        shed=round(len(refused) / max(1, len(run.sent)), 5),
        requests_per_s=round(per_s, 3),
        images_per_s=round(per_s * run.images, 3),
        latency_ms=latency,
        sent_latency_ms=summary([(s.done_s - s.sent_s) * 1e3 for s in ok]),
        refusal_ms=summary([_since_due_ms(s) for s in refused]),
        late_ms=late,
        bottleneck=bottleneck(late, latency, run.client_cores),
        deadline_ms=limit,
        deadline_met=round(sum(met) / len(met), 5) if met else None,
        checked=run.tally,
        server_ms=server_ms(s.timing for s in ok),
        memory_mb=_memory(run.memory_mb),
        client_cores=round(run.client_cores, 3),
        server_cores=None if run.server_cores is None else round(run.server_cores, 3),
        other_cores=None if run.other_cores is None else round(run.other_cores, 3),
        recovery=_recovery(run) if run.probes else None,
    )


def bottleneck(
    late: Mapping[str, float], latency: Mapping[str, float], client_cores: float
) -> str | None:
    """Whether the generator, and not the service, set the numbers; and why."""
    if client_cores > BUSY:
        return f"it used {client_cores:.2f} of the one core it can"
    # with an idle generator a wake-up takes a fraction of a millisecond
    if late and late["p99"] > max(LATE_MS, LATE_SHARE * latency.get("p99", 0.0)):
        return f"one request in a hundred was sent {late['p99']:.1f} ms late or more"
    return None


def summary(values: Sequence[float]) -> dict[str, float]:
    """Percentiles of milliseconds, linear between two of them; empty without any."""
    if not values:
        return {}
    points = np.percentile(np.array(values), [50, 90, 99, 100])
    return {
        k: round(float(v), 3) for k, v in zip(("p50", "p90", "p99", "max"), points, strict=True)
    }


_TIMING = re.compile(r"(\w+)\s*;\s*dur=([\d.]+)")


def server_ms(timings: Any) -> dict[str, float]:
    """Medians of what Server-Timing headers say, by name."""
    found: dict[str, list[float]] = {}
    for timing in timings:
        for name, ms in _TIMING.findall(timing):
            found.setdefault(name, []).append(float(ms))
    return {name: round(float(np.median(ms)), 3) for name, ms in found.items()}


def _since_due_ms(s: Sent) -> float:
    return (s.done_s - s.due_s) * 1e3


def _late_ms(sent: Sequence[Sent]) -> dict[str, float]:
    return summary([(s.sent_s - s.due_s) * 1e3 for s in sent])


def _per_second(run: Run, ok: Sequence[Sent]) -> float:
    """Requests answered with images a second, while the load lasted."""
    every = sorted(s.done_s - run.begin_s for s in ok)
    done = [t for t in every if t <= run.seconds]
    if run.per_s is not None:
        return len(done) / run.seconds
    # a closed loop is at work from the first moment on, but what is under way at the end is in
    # no reply: it is counted up to the last reply, where large networks answer every few seconds
    done = done or every
    return len(done) / max(done[-1], run.seconds / 2) if done else 0.0


def _recovery(run: Run) -> dict[str, Any]:
    ok = [s for s in run.probes if s.outcome is Outcome.OK]
    return {
        "refused": sum(s.outcome is Outcome.REFUSED for s in run.probes),
        "first_ms": round((ok[0].done_s - run.begin_s - run.seconds) * 1e3, 3) if ok else None,
        "latency_ms": [round(_since_due_ms(s), 3) for s in ok],
    }


def _count(sent: Sequence[Sent]) -> dict[str, int]:
    return dict(Counter(s.what for s in sent).most_common())


def _memory(mb: Sequence[float]) -> dict[str, float]:
    return {"before": mb[0], "after": mb[-1], "max": max(mb)} if mb else {}


@dataclass(frozen=True)
class Report:
    """A whole load test, and what is needed to repeat it.

    Attributes:
        target: what was loaded: the bundle, or the address.
        reply_format: of the native protocol: npy, png or json.
        checked_by: what the images were compared with.
        client: what the generator itself costs a request, against a server that does nothing:
            ``cpu_ms`` and ``round_trip_ms``.
        capacity_per_s: requests a second of a closed loop, where rates are relative to it.
        ready_s: from the start of the server to being ready.
        problem: of the server that was started, beyond replies: how it ended.
    """

    command: str
    target: str
    model: str
    digest: str
    variant: str
    protocol: str
    reply_format: str
    checked_by: str
    machine: dict[str, str]
    versions: dict[str, str]
    client: dict[str, float]
    levels: list[Level]
    capacity_per_s: float | None = None
    ready_s: float | None = None
    problem: str | None = None
    memory_mb: dict[str, float] = field(default_factory=dict)

    @property
    def failed(self) -> int:
        """Requests that got neither images nor an announced refusal."""
        return sum(sum(found.failed.values()) for found in self.levels)

    @property
    def checked(self) -> Tally:
        """All images that came back."""
        total = Tally()
        for found in self.levels:
            total.add(found.checked)
        return total
