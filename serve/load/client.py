"""The load generator: requests in a closed loop or at a rate, every reply timed and checked.

In a closed loop a client sends its next request when it has the reply to the last one. In an
open loop requests are due at random times that nothing can delay, as those of many people who
do not know of each other: a slow service gets no fewer, and latency counts from the time due.
"""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self

import aiohttp
import numpy as np
from numpy.typing import NDArray
from yarl import URL

from .check import Check, Tally
from .child import Child, busy_s
from .pace import arrivals, clock, paced
from .report import Outcome, Run, Sent
from .wire import JSON_PART, Asked, Wire

TICK_S = 0.25
HELD_BYTES = 256 << 20
"""Replies are checked after a level, so that this takes no time from the service; up to here."""
KEEP_ALIVE_S = 3.0
"""Less than the 5 s after which servers of this kind close a connection."""
_ANNOUNCED = (429, 503)


@dataclass(frozen=True)
class Load:
    """What every request is like.

    Attributes:
        images: in a request.
        timeout_s: after which a reply counts as failed.
        api_key: that requests carry, or None.
        seed: of the arrival times and of what is asked for.
    """

    images: int = 1
    timeout_s: float = 60.0
    api_key: str | None = None
    seed: int = 0


class Client:
    """Sends requests to one service and keeps account; an asynchronous context manager.

    Args:
        url: of the service, without a path.
        server: its process, if it is a child of this one: its memory is watched.
        on_tick: called a few times a second with the share of the level that is over.
    """

    def __init__(
        self,
        url: str,
        wire: Wire,
        check: Check,
        load: Load,
        server: Child | None = None,
        on_tick: Callable[[float], None] = lambda share: None,
    ) -> None:
        self._wire, self._check, self._load = wire, check, load
        self._server, self.on_tick = server, on_tick
        self._url = URL(url.rstrip("/") + wire.path)
        self._random = np.random.default_rng(load.seed)
        self._bodies: dict[tuple[int, float | None], bytes] = {}
        self._held: list[tuple[int, bytes, int]] = []
        self._bytes = 0

    async def __aenter__(self) -> Self:
        headers = dict(self._wire.headers)
        if self._load.api_key is not None:
            headers["Authorization"] = f"Bearer {self._load.api_key}"
        self._http = aiohttp.ClientSession(
            headers=headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            # as many connections as it takes: a request must not wait for another one's
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
            timeout=aiohttp.ClientTimeout(total=self._load.timeout_s),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()

    async def closed_loop(
        self, concurrency: int, seconds: float, deadline_ms: float | None = None
    ) -> Run:
        """Send from so many clients at once, each waiting for its replies.

        A client that is refused comes back when it was told to.

        Args:
            deadline_ms: that requests carry.
        """
        run = self._run(seconds, concurrency=concurrency, deadline_ms=deadline_ms)

        async def one() -> None:
            left_s = seconds
            while left_s > 0 or not run.sent:
                sent, retry_s = await self._send(run, clock(), self._draw())
                run.sent.append(sent)
                left_s = run.begin_s + seconds - clock()
                if sent.outcome is not Outcome.OK:
                    await asyncio.sleep(max(0.0, min(retry_s, left_s)))
                    left_s = run.begin_s + seconds - clock()

        async with self._watched(run):
            await asyncio.gather(*(one() for _ in range(concurrency)))
        return run

    async def open_loop(
        self, per_s: float, seconds: float, deadline_ms: float | None = None, probes: int = 0
    ) -> Run:
        """Send at random times (Poisson), ``per_s`` a second on average, whatever comes back.

        Args:
            deadline_ms: that requests carry.
            probes: requests one after the other, from the end of the load on, until so many have
                been answered with images: how soon is it over?
        """
        due = arrivals(self._random, per_s, seconds)
        firsts = [self._draw() for _ in due]
        run = self._run(seconds, per_s=per_s, deadline_ms=deadline_ms)
        loop, tasks = asyncio.get_running_loop(), set[asyncio.Task[None]]()

        async def one(due_s: float, first: int) -> None:
            run.sent.append((await self._send(run, due_s, first))[0])

        def start(k: int) -> None:
            task = loop.create_task(one(run.begin_s + due[k], firsts[k]))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        async with self._watched(run):
            await paced(run.begin_s + due, start)
            await asyncio.sleep(max(0.0, run.begin_s + seconds - clock()))
            await self._probe(run, probes)
            while tasks:
                await asyncio.gather(*tasks)
        return run

    async def _probe(self, run: Run, probes: int) -> None:
        answered = tries = 0
        while answered < probes and tries < 5 * probes:
            sent, retry_s = await self._send(run, clock(), self._draw())
            run.probes.append(sent)
            answered, tries = answered + (sent.outcome is Outcome.OK), tries + 1
            await asyncio.sleep(retry_s)

    def _run(self, seconds: float, **how: Any) -> Run:
        gc.collect()  # rather now than under way
        return Run(seconds, clock(), self._load.images, **how)

    def _draw(self) -> int:
        """The seed of the first image of the next request."""
        return int(self._random.integers(self._check.pool - self._load.images + 1))

    async def _send(self, run: Run, due_s: float, first: int) -> tuple[Sent, float]:
        """Send one request; returns what came of it, and how long to stay away."""
        key = first, run.deadline_ms
        if key not in self._bodies:
            self._bodies[key] = self._wire.body(Asked(first, run.images, run.deadline_ms))
        body = self._bodies[key]
        sent, retry_s = Sent(due_s, clock()), 0.0
        try:
            async with self._http.post(self._url, data=body) as reply:
                content = await reply.read()
            sent.done_s = clock()
        except (aiohttp.ClientError, TimeoutError, OSError) as e:
            sent.done_s, sent.what = clock(), "timeout" if isinstance(e, TimeoutError) else _name(e)
            return sent, TICK_S
        if reply.status == 200:
            sent.outcome = Outcome.OK
            sent.timing = reply.headers.get("Server-Timing", "")
            self._keep(run, first, content, int(reply.headers.get(JSON_PART, 0)))
        else:
            sent.what = f"{reply.status} {_code(content)}".strip()
            announced = reply.headers.get("Retry-After")
            retry_s = TICK_S
            if reply.status in _ANNOUNCED and announced is not None:
                sent.outcome = Outcome.REFUSED
                retry_s = _retry_s(reply.headers.get("Retry-After-Ms"), announced)
            elif reply.status in _ANNOUNCED:
                sent.what += " without Retry-After"
        return sent, retry_s

    def _keep(self, run: Run, first: int, body: bytes, head: int) -> None:
        if self._bytes + len(body) > HELD_BYTES:
            run.tally.add(self._compare(first, body, head))
            return
        self._held.append((first, body, head))
        self._bytes += len(body)

    def _compare(self, first: int, body: bytes, head: int) -> Tally:
        try:
            found: NDArray[Any] | None = self._wire.images(body, head)
        except Exception:  # whatever a reply does to its reader, it is no image
            found = None
        return self._check.compare(first, self._load.images, found)

    @asynccontextmanager
    async def _watched(self, run: Run) -> AsyncIterator[None]:
        """Watch memory and processor time, and check the replies at the end."""
        ticking = asyncio.create_task(self._tick(run))
        before = self._cpu_s()
        try:
            yield
        finally:
            ticking.cancel()
        took_s = clock() - run.begin_s
        client, server, every = (
            None if a is None or b is None else (b - a) / took_s
            for a, b in zip(before, self._cpu_s(), strict=True)
        )
        run.client_cores, run.server_cores = client or 0.0, server
        if server is not None and every is not None:
            run.other_cores = max(0.0, every - server - run.client_cores)
        self._remember_memory(run)
        for held in self._held:
            run.tally.add(self._compare(*held))
        self._held.clear()
        self._bytes = 0

    async def _tick(self, run: Run) -> None:
        while True:
            self._remember_memory(run)
            self.on_tick(min(1.0, (clock() - run.begin_s) / run.seconds))
            await asyncio.sleep(TICK_S)

    def _cpu_s(self) -> tuple[float, float | None, float | None]:
        """Processor time so far: of this process, the server, and the whole machine."""
        server = self._server.cpu_s() if self._server else None
        return time.process_time(), server, busy_s()

    def _remember_memory(self, run: Run) -> None:
        memory = self._server.memory_mb() if self._server else None
        if memory is not None:
            run.memory_mb.append(memory)


def _name(error: BaseException) -> str:
    return f"connection: {type(error).__name__}"


def _code(body: bytes) -> str:
    """The machine-readable word of an error, where there is one."""
    try:
        error = json.loads(body)["error"]
        return str(error.get("code") or "") if isinstance(error, dict) else ""
    except (ValueError, LookupError, TypeError):
        return ""


def _retry_s(ms: str | None, seconds: str) -> float:
    try:
        return float(seconds) if ms is None else float(ms) / 1e3
    except ValueError:
        return 1.0
