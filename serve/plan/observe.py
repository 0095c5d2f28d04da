"""What the service around the engine costs: `mmf-serve` itself, started and loaded for seconds.

Five loads, from one process on the same machine:

    alone         one client: what a request takes when nothing is in its way
    many          clients enough to keep everything busy: the throughput
    low           an open loop of few requests: what a replica is like that has been idle
    half, high    open loops at a half and four fifths of the throughput: arrivals out of step with
                  replies, as those that are planned for

The open loops come in turns, twice, since machines drift.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmf_deploy.bundle import Bundle
from mmf_deploy.errors import ConfigError, ServiceError

from ..load.check import POOL, Check
from ..load.child import Child, mmf_serve
from ..load.client import Client, Load
from ..load.report import Outcome, Run, bottleneck, level
from ..load.session import describe
from ..load.wire import wire
from ..work import Limits
from .cost import EngineCost
from .simulate import busy_clients

WARM_S = 0.5
ALONE_S, MANY_S, OPEN_S, TURNS = 1.5, 1.5, 1.5, 2
"""How long a load lasts, unless requests take so long that there would be few of them."""
LONGEST_S = 10.0
REQUESTS = 40
"""Wanted in a load, within LONGEST_S."""
HALF, HIGH = 0.5, 0.8
LOW_PER_S, LOW_SHARE = 100.0, 0.1
"""Requests a second of the low load: so many, or this share of the throughput if that is less."""
MATTERS_S = 0.05
"""Replicas wake up within milliseconds: with requests longer than this nobody would see it."""

OnProgress = Callable[[str, float], None]


@dataclass(frozen=True)
class Seen:
    """One load, request by request; only what was answered with images.

    Attributes:
        clients: of a closed loop; None of an open one.
        offered_per_s: requests a second of an open loop; those that were made of a closed one.
        sent_s, latency_s: when each was sent, from the first one on, and how long it took.
        queue_s, infer_s, inside_s: of each by the service's own clock: until its batch began, from
            there until its last one ended, and from its arrival to its reply.
        per_s: replies a second.
        front_cpu_s: processor time of the front for a request; None where the system is silent.
        cores: that the service used; None where the system is silent.
        other_cores: that everything but the service and the generator used.
        bottleneck: why the generator limited it, or None.
    """

    clients: int | None
    offered_per_s: float
    sent_s: NDArray[np.float64]
    latency_s: NDArray[np.float64]
    queue_s: NDArray[np.float64]
    infer_s: NDArray[np.float64]
    inside_s: NDArray[np.float64]
    per_s: float
    front_cpu_s: float | None
    cores: float | None
    other_cores: float | None
    bottleneck: str | None

    def latency_ms(self, percentile: float) -> float:
        """Of its requests."""
        return float(np.percentile(self.latency_s, percentile)) * 1e3


@dataclass(frozen=True)
class Observed:
    """What came of the loads.

    Attributes:
        open: the open loops, by their share of the throughput.
    """

    alone: Seen
    many: Seen
    open: tuple[Seen, ...]
    images: int
    form: str

    @property
    def loads(self) -> tuple[Seen, ...]:
        """All of them."""
        return (self.alone, self.many, *self.open)


@dataclass(frozen=True)
class Served:
    """How the service is started and asked.

    Attributes:
        embedded: whether it is the bundle that is served when none is named.
    """

    bundle: Bundle
    images: int = 1
    form: str = "json"
    variant: str | None = None
    engine: str | None = None
    threads: int | None = None
    seed: int = 0
    embedded: bool = False

    def arguments(self) -> list[str]:
        """Of mmf-serve."""
        found = [str(self.bundle.path)]
        for flag, value in (("--variant", self.variant), ("--engine", self.engine),
                            ("--threads", self.threads)):  # fmt: skip
            found += [] if value is None else [flag, str(value)]
        return found

    def check(self) -> None:
        """Raise ConfigError for what the service would refuse."""
        most = Limits().request_images
        if self.images > most:
            raise ConfigError(f"--images {self.images}: the service takes at most {most} a request")
        wire("native", self.form, "", self.bundle.spec, self.images)


async def observe(
    served: Served, engine: EngineCost, on_progress: OnProgress = lambda what, share: None
) -> Observed:
    """Start the service and load it.

    Args:
        engine: tells how long loads must be.
    Raises:
        ServiceError: it did not start, or a request got neither images nor a time to come back.
    """
    with mmf_serve([*served.arguments(), "--drain-delay", "0"]) as server:
        found = await describe(server.url)
        asking = wire("native", served.form, found.name, found.spec, served.images)
        check = Check(found.spec, max(POOL, served.images))
        load = Load(images=served.images, seed=served.seed)
        async with Client(server.url, asking, check, load, server) as client:
            observed = await _Loads(client, server, served, engine, on_progress).all()
    if server.problem is not None:
        raise ServiceError(server.problem)
    return observed


class _Loads:
    """The loads, one after the other, each chosen by what those before it gave."""

    def __init__(
        self,
        client: Client,
        server: Child,
        served: Served,
        engine: EngineCost,
        on_progress: OnProgress,
    ) -> None:
        self._client, self._server, self._served = client, server, served
        self._engine, self._on_progress = engine, on_progress

    async def all(self) -> Observed:
        images, alone_s = self._served.images, self._engine.request_s(self._served.images)
        await self._client.closed_loop(2, WARM_S)
        alone = await self._closed("one client", 1, _seconds(ALONE_S, alone_s))
        # no more than a second's worth, where they are slow
        clients = max(4, min(busy_clients(self._engine.largest, images), round(1.0 / alone_s)))
        many = await self._closed(
            f"{clients} clients", clients, _seconds(MANY_S, alone_s / min(4, clients))
        )
        rates = [HALF * many.per_s, HIGH * many.per_s]
        if float(np.median(alone.latency_s)) < MATTERS_S:
            rates.insert(0, min(LOW_PER_S, LOW_SHARE * many.per_s))
        opened = [
            await self._open(turn, rate, _seconds(OPEN_S, 1 / rate))
            for turn in range(TURNS)
            for rate in rates
        ]
        return Observed(alone, many, tuple(opened), images, self._served.form)

    async def _closed(self, what: str, clients: int, seconds: float) -> Seen:
        self._begin(what)
        before = _front_s(self._server)
        run = await self._client.closed_loop(clients, seconds)
        return self._seen(run, before)

    async def _open(self, turn: int, per_s: float, seconds: float) -> Seen:
        rate = f"{per_s:,.3g}" if per_s < 1000 else f"{per_s:,.0f}"
        self._begin(f"{rate} requests/s, turn {turn + 1}")
        before = _front_s(self._server)
        return self._seen(await self._client.open_loop(per_s, seconds), before)

    def _begin(self, what: str) -> None:
        self._client.on_tick = lambda share: self._on_progress(what, share)

    def _seen(self, run: Run, before: float | None) -> Seen:
        after = _front_s(self._server)
        found = level(run)
        if found.failed or run.tally.wrong:
            each = ", ".join(f"{n} × {what}" for what, n in found.failed.items())
            raise ServiceError(
                f"the service did not answer as it should under {found.offered_per_s:g} requests/s:"
                f" {each or f'{run.tally.wrong} images that differ from earlier ones'}"
            )
        ok = sorted((s for s in run.sent if s.outcome is Outcome.OK), key=lambda s: s.sent_s)
        if not ok:
            raise ServiceError(f"no images came, but {found.refused}")
        timing = [_timing(s.timing) for s in ok]
        done_s = np.array([s.done_s for s in ok])
        sent_s = np.array([s.sent_s for s in ok])
        cpu_s = None if before is None or after is None else (after - before) / len(run.sent)
        return Seen(
            clients=run.concurrency,
            offered_per_s=found.offered_per_s,
            sent_s=sent_s - sent_s[0],
            latency_s=done_s - sent_s,
            queue_s=np.array([t["queue"] for t in timing]) / 1e3,
            infer_s=np.array([t["infer"] for t in timing]) / 1e3,
            inside_s=np.array([t["total"] for t in timing]) / 1e3,
            per_s=found.requests_per_s,
            front_cpu_s=cpu_s,
            cores=found.server_cores,
            other_cores=found.other_cores,
            bottleneck=bottleneck(found.late_ms, found.latency_ms, found.client_cores),
        )


_TIMING = re.compile(r"(\w+);dur=([\d.]+)")


def _timing(header: str) -> dict[str, float]:
    return {name: float(ms) for name, ms in _TIMING.findall(header)}


def _seconds(at_least: float, each_s: float) -> float:
    return min(LONGEST_S, max(at_least, REQUESTS * each_s))


def _front_s(server: Child) -> float | None:
    """Processor time of the server's first thread, which is its event loop."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        text: Any = Path(f"/proc/{server.pid}/task/{server.pid}/schedstat").read_text()
        return int(text.split()[0]) / 1e9
    return None
