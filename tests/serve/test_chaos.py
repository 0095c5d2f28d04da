"""Everything at once: thousands of requests, clients that leave, an engine that fails, reloads.

Whatever happens, an image is the one that was asked for, a failure is one that was announced, and
nothing is left behind.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import gc
import logging
import random
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmf_deploy.serve.disconnect import ClientGoneError
from mmf_deploy.serve.job import Job
from mmf_deploy.serve.model import Loaded
from mmf_deploy.serve.service import Limits, Service
from starlette.requests import Request

from mmf_deploy import bundle, images
from mmf_deploy.engines.base import Engine, Output
from mmf_deploy.errors import EngineError
from mmf_deploy.spec import SampleSpec

from .asks import KINDS, Ask, Asks, events_of, in_order
from .live import GoneError, Live, Reply, Wire, connect, live, open_files, wait_until

CLIENTS = 24
GREY = SampleSpec(shape=(1, 8, 8), classes=10)
COLOUR = SampleSpec(shape=(3, 8, 8), classes=10)
POINTS = SampleSpec(shape=(2,), guidance=(1.0, 4.0))

# what the log may say of it; anything else is something nobody announced
EXPECTED_LOGS = ("a batch of ", "a stream failed", "POST /v1/", "POST /v2/", "GET /v1/images/",
                 "digits: not reloaded")  # fmt: skip


@dataclass
class World:
    """What the engines did to whom."""

    formula: Any
    seed: int
    specs: dict[str, SampleSpec] = field(default_factory=dict)  # by digest
    armed: bool = False
    failed: set[bytes] = field(default_factory=set)  # noise of images in batches that failed
    loads: int = 0
    open_engines: int = 0
    paths: list[Path] = field(default_factory=list)  # the first is what a reload finds
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)

    def add(self, path: Path) -> str:
        found = bundle.load(path)
        self.specs[found.digest] = found.spec
        return found.digest


def marks(noise) -> list[bytes]:
    """What tells the noise of one image from that of any other."""
    return [row.ravel()[:2].tobytes() for row in noise]


class UnreliableEngine(Engine):
    """Computes the formula, now and then slowly, wrongly or not at all; one in four never opens."""

    name = "unreliable"

    def __init__(self, path: Path, world: World) -> None:
        super().__init__(bundle.load(path))
        self.buckets = (1, 2, 4, 8, 16)
        self.world = world
        self.sound = 20  # runs until it may fail: golden images and calibration
        self.is_open = False

    def load(self) -> None:
        self.world.loads += 1
        if self.world.loads % 4 == 0:
            raise EngineError("/secret/path")
        self.is_open = True
        self.world.open_engines += 1

    def close(self) -> None:
        self.world.open_engines -= self.is_open
        self.is_open = False

    def _run(self, noise, label, guidance) -> Output:
        world, rng = self.world, self.world.rng
        self.sound -= 1
        if world.armed and self.sound < 0:
            time.sleep(rng.choice([0.0, 0.001, 0.002, 0.01]))
            if rng.random() < 0.05:
                world.failed.update(marks(noise))
                if rng.random() < 0.7:
                    raise rng.choice([OSError, EngineError, MemoryError, KeyError])("/secret/path")
                # one sample too few
                noise, label = noise[1:], None if label is None else label[1:]
                guidance = None if guidance is None else guidance[1:]
        sample = world.formula(self.spec, noise, label, guidance)
        return Output(sample, images.to_uint8(sample) if self.spec.is_image else None)


class Records(logging.Handler):
    """Keeps what was said, and nothing of what it was said about."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(f"{record.name}: {record.getMessage()}")
        # errors hold requests, and other handlers hold records
        record.msg, record.args, record.exc_info = record.getMessage(), None, None


# One request


@dataclass
class Chaos:
    """Clients that send requests, well and badly, and judge the replies."""

    world: World
    asks: Asks
    port: int
    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)

    async def client(self, numbers: collections.deque[int]) -> None:
        """Send requests until there are no more, over one connection as long as it holds."""
        wire = await connect(self.port)
        try:
            while numbers:
                ask, rng = self.asks.number(numbers.popleft())
                if rng.random() < 0.2:
                    await self._leave(wire, ask, rng)
                    wire = await connect(self.port)
                elif await self._whole(wire, ask, rng):
                    wire.close()
                    wire = await connect(self.port)
        finally:
            wire.close()

    async def _whole(self, wire: Wire, ask: Ask, rng: random.Random) -> bool:
        """One request and its reply; whether the connection is over then."""
        cut = rng.randrange(len(ask.raw))
        await wire.send(ask.raw[:cut])
        if rng.random() < 0.1:
            await asyncio.sleep(rng.random() * 0.01)
        try:
            await wire.send(ask.raw[cut:])
        except GoneError:
            assert ask.closing
        reply = await wire.reply()
        self.outcomes[self.judge(ask, reply)] += 1
        self.outcomes[ask.kind] += 1
        return "close" in reply.headers.get("connection", "")

    async def _leave(self, wire: Wire, ask: Ask, rng: random.Random) -> None:
        """One request whose client does not stay for all of the reply."""
        manner = rng.choice(["in the head", "in the body", "after it", "in the reply"])
        self.outcomes[f"left {manner}"] += 1
        until = {"in the head": rng.randrange(ask.head), "in the body": len(ask.raw) - 1}
        try:
            await wire.send(ask.raw[: until.get(manner)])
            if manner == "in the reply":
                status, headers = await asyncio.wait_for(wire.head(), 20)
                if ask.stream and status == 200:
                    await anext(wire.pieces(headers))
            elif rng.random() < 0.5:
                await asyncio.sleep(rng.random() * 0.03)
        except GoneError:
            assert ask.closing
        finally:
            wire.close(reset=rng.random() < 0.5)

    # What a reply must be

    def judge(self, ask: Ask, reply: Reply) -> str:
        """The outcome, if it is one that may be."""
        about = f"{ask.kind}: {reply.status} {reply.body[:300]!r}"
        if reply.status == 200 and ask.stream:
            return self._streamed(ask, reply, about)
        if reply.status == 200:
            if ask.decode is not None:
                self._right(ask, reply.headers["x-mmf-bundle"], ask.decode(reply), about)
            return "200"
        error = reply.json()["error"]
        if ask.family == "kserve":
            assert isinstance(error, str), about
        else:
            assert {"code", "message"} < set(error), about
        assert b"secret" not in reply.body, about
        if ask.wanted is not None and reply.status == 503:
            self._overloaded(ask, reply, about)
        elif ask.wanted is not None and reply.status == 500:
            assert self._hit(ask), f"{about} without a failure"
        elif ask.wanted is None and reply.status == 503:
            assert b'"/healthz"' not in ask.raw, about
        else:
            assert reply.status in ask.allowed, about
            assert ask.wanted is None or reply.status != 422 or error["field"] == "deadline_ms"
        return str(reply.status)

    def _overloaded(self, ask: Ask, reply: Reply, about: str) -> None:
        milliseconds, seconds = (int(reply.headers[h]) for h in ("retry-after-ms", "retry-after"))
        assert milliseconds >= 1, about
        assert seconds == max(1, -(-milliseconds // 1000)), about
        # a request that met a reload must not be told that the service is shutting down
        assert b"shutting" not in reply.body, about
        assert b"not ready" not in reply.body, about

    def _streamed(self, ask: Ask, reply: Reply, about: str) -> str:
        events = events_of(reply.body)
        name, last = events[-1]
        images_of = [event for event in events if "index" in event[1]]
        count = len(images_of)
        if count:
            digest = reply.headers["x-mmf-bundle"]
            self._right(ask, digest, in_order(events), about, count, failures=name == "error")
        if name != "error":
            assert count == len(ask.wanted.seeds), about
            return "200"
        assert "secret" not in str(last), about
        if last["error"]["code"] == "internal_error":
            assert self._hit(ask), about
            return "failed stream"
        assert last["error"]["code"] == "overloaded", about
        assert 422 in ask.allowed or 400 in ask.allowed, about
        return "late stream"

    def _right(self, ask, digest, found, about, count=None, failures=False) -> None:
        """Every value is the one that numpy computes for the bundle that the reply names."""
        spec = self.world.specs[digest]
        assert failures or not self._hit(ask), f"{about}: made of a batch that failed"
        wanted = ask.wanted.values(spec, self.world.formula)[:count]
        if ask.kind in ("native png", "native grid", "url"):
            wanted = (images.grid(wanted) if len(wanted) > 1 else wanted[0])[None]
        assert found.shape == wanted.shape, about
        np.testing.assert_array_equal(found, wanted, about)

    def _hit(self, ask: Ask) -> bool:
        """Whether some image of a request was in a batch that failed."""
        noises = [ask.wanted.noise(spec) for spec in self.world.specs.values()]
        return any(not self.world.failed.isdisjoint(marks(noise)) for noise in noises)


async def reloading(server: Live, world: World, storm: asyncio.Task[None]) -> None:
    """Put another bundle in place again and again, as long as there is a storm."""
    while not storm.done():
        await asyncio.wait([storm], timeout=0.1)
        world.paths.append(world.paths.pop(0))
        # never given up half-way: an engine that is being opened cannot be called back
        await asyncio.to_thread(server.call, server.service.reload)


async def clients(chaos: Chaos, count: int) -> None:
    numbers = collections.deque(range(count))
    async with asyncio.timeout(60 + count / 20), asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(chaos.client(numbers))


async def storm(chaos: Chaos, server: Live, count: int) -> None:
    """Clients and reloads together."""
    raging = asyncio.create_task(clients(chaos, count))
    await reloading(server, chaos.world, raging)
    await raging


# Afterwards


@dataclass(frozen=True)
class Left:
    """What a server holds when it has nothing to do."""

    tasks: int
    futures: int
    threads: list[str]
    files: int
    live: dict[str, int]

    def beyond(self, before: Left) -> dict[str, Any]:
        """What there is more of than before."""
        then, now = vars(before), vars(self)
        # the server's own loop is between two sleeps, or in one
        slack = {"tasks": 0, "futures": 2, "files": 0}
        found = {k: now[k] for k in slack if now[k] > then[k] + slack[k]}
        more = {k: n for k, n in self.live.items() if n > before.live[k]}
        return found | more | ({} if self.threads == before.threads else {"threads": self.threads})

    @classmethod
    def of(cls, server: Live) -> Left:
        gc.collect()
        kinds = (Job, Request, Loaded, ClientGoneError, UnreliableEngine)
        objects = gc.get_objects()  # by type: asking some of them for their class is a call
        pending = [o for o in objects if issubclass(type(o), asyncio.Future) and not o.done()]
        return cls(
            tasks=server.call(lambda: len(asyncio.all_tasks())),
            futures=len(pending),
            threads=sorted(t.name for t in threading.enumerate() if t.name == "inference"),
            files=open_files(),
            live={k.__name__: sum(issubclass(type(o), k) for o in objects) for k in kinds},
        )


def settled(server: Live) -> bool:
    """Whether nothing is on its way any more."""
    service = server.service
    batchers = [m.loaded.main.batcher for m in service.models.values()]
    in_flight = service.metrics.registry.get_sample_value("mmf_requests_in_flight")
    return (
        not server.server.server_state.tasks
        and not server.server.server_state.connections
        and in_flight == 0
        and service.intake.busy == 0
        and service.encoder.waiting == 0
        and all(b.waiting == 0 and b.running == 0 for b in batchers)
        and not any(m._retiring for m in service.models.values())
    )


def answers(chaos: Chaos, count: int) -> None:
    """One good request of every kind, all of them answered."""

    async def each() -> None:
        for k, kind in enumerate(KINDS):
            wire = await connect(chaos.port)
            try:
                ask = kind(chaos.asks, count + k, random.Random(k))
                await wire.send(ask.raw)
                chaos.judge(ask, await wire.reply())
            finally:
                wire.close()

    asyncio.run(each())


@pytest.fixture
def records():
    found = Records()
    root = logging.getLogger()
    root.addHandler(found)
    yield found
    root.removeHandler(found)


@pytest.mark.parametrize(
    "count", [pytest.param(800, id="some"), pytest.param(5000, id="all", marks=pytest.mark.slow)]
)
def test_whatever_happens_images_are_right_failures_announced_and_nothing_is_left(
    count, make_tiny_bundle, tiny_formula, records
):
    world = World(tiny_formula, seed=count)
    world.paths = [make_tiny_bundle(GREY), make_tiny_bundle(COLOUR)]
    points = make_tiny_bundle(POINTS)
    digests = [world.add(path) for path in world.paths]
    world.add(points)
    sources = {
        "digits": lambda: [UnreliableEngine(world.paths[0], world)],
        "points": lambda: [UnreliableEngine(points, world)],
    }
    service = Service(sources, Limits(max_images=64, max_queue_images=96))
    with live(service) as server:
        chaos = Chaos(world, Asks(count, digests), server.port)
        answers(chaos, count)
        wait_until(lambda: settled(server), "the first requests were not finished")
        before = Left.of(server)
        world.armed = True
        asyncio.run(storm(chaos, server, count))
        world.armed = False
        wait_until(lambda: settled(server), "something is still on its way")
        answers(chaos, 2 * count)
        wait_until(lambda: settled(server), "something is still on its way")
        # the last frames of what is over may still be on their way out
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not Left.of(server).beyond(before), "")
        assert not Left.of(server).beyond(before)
        assert world.open_engines == len(service.models)
        replaced = service.metrics.reloads.labels("digits", "replaced")._value.get()
    assert world.open_engines == 0
    unexpected = [s for s in records.said if not s.split(": ", 1)[1].startswith(EXPECTED_LOGS)]
    assert not unexpected
    # all of it did happen
    assert replaced >= 2
    for kind in ("200", "500", "503", "400", "404", "422", "left in the head", "left in the body",
                 "left after it", "left in the reply"):  # fmt: skip
        assert chaos.outcomes[kind] > 0, f"no {kind} in {chaos.outcomes}"
