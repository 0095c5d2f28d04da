"""The service behind every route: one open engine, its batcher, an encoding pool, a state."""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from starlette.requests import Request

from mmf_deploy.bundle import Bundle
from mmf_deploy.engines.base import Engine
from mmf_deploy.errors import MMFError, RequestError
from mmf_deploy.golden import verify_golden

from .batcher import Batcher
from .disconnect import samples_unless_gone
from .render import Made, Reply, render
from .samples import Item, Sample

log = logging.getLogger(__name__)

CALIBRATION_S = 0.3
"""Time to spend on measuring the cost of batches before the service is ready."""

T = TypeVar("T")


class State(enum.StrEnum):
    """Where a service stands in its life."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True)
class Limits:
    """What the service takes on.

    Attributes:
        max_images: most images in one request.
        max_queue_images: most images that may wait; larger requests are refused outright.
        max_body_bytes: largest request body.
        encoders: threads that encode replies.
    """

    max_images: int = 256
    max_queue_images: int = 1024
    max_body_bytes: int = 1 << 20
    encoders: int = 2

    @property
    def request_images(self) -> int:
        """Most images a request can have and still find room in an empty queue."""
        return min(self.max_images, self.max_queue_images)


class Service:
    """Serves one variant of one bundle through one engine.

    Args:
        engine: not yet open; the service opens and closes it.
        on_state: called in the event loop at every change of state.
    """

    def __init__(
        self,
        engine: Engine,
        limits: Limits | None = None,
        on_state: Callable[[State], None] | None = None,
    ) -> None:
        self.engine = engine
        self.bundle: Bundle = engine.bundle
        self.limits = limits or Limits()
        self.state = State.STARTING
        self.failure: Exception | None = None
        self.on_state = on_state or self._log_state
        self._batcher: Batcher | None = None
        self._busy = 0  # requests between acceptance and encoded reply

    def start(self) -> None:
        """Begin to open in the background, so that health is answered meanwhile."""
        self._idle = asyncio.Event()
        self._idle.set()
        self._pool = ThreadPoolExecutor(self.limits.encoders, thread_name_prefix="encode")
        self._opening = asyncio.create_task(self._open())

    def drain(self) -> None:
        """Turn readiness red; what still arrives is served until ``close``."""
        if self.state in (State.STARTING, State.READY):
            self._become(State.DRAINING)

    async def close(self) -> None:
        """Answer everything accepted, then free the engine."""
        self.drain()
        await self._opening
        if self._batcher is not None:
            await self._batcher.close()
        await self._idle.wait()
        self._pool.shutdown()
        self.engine.close()

    async def generate(
        self, request: Request, items: list[Item], deadline_s: float | None, media_type: str
    ) -> Reply:
        """Make and encode images for a request whose body has been read.

        Raises:
            RequestError: not ready, overloaded, or shutting down.
            ClientGoneError: the client left first.
        """
        if self._batcher is None:
            raise RequestError(f"not ready: {self.state}", status=503, code="not_ready")
        arrived = self._batcher.clock()
        futures = self._batcher.submit(items, deadline_s)
        with self._accepted():
            samples = await samples_unless_gone(request, futures)
            made = self._made(items, samples, arrived)
            return await self.in_pool(lambda: render(made, media_type))

    @contextmanager
    def _accepted(self) -> Iterator[None]:
        """What ``close`` waits for: images that are ready must still be encoded."""
        self._busy += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._busy -= 1
            if self._busy == 0:
                self._idle.set()

    def _made(self, items: list[Item], samples: list[Sample], arrived: float) -> Made:
        started = min(s.started_s for s in samples)
        finished = max(s.finished_s for s in samples)
        return Made(
            bundle=self.bundle.digest,
            variant=self.engine.variant.name,
            spec=self.bundle.spec,
            items=items,
            samples=samples,
            queue_ms=(started - arrived) * 1000,
            infer_ms=(finished - started) * 1000,
        )

    async def in_pool(self, work: Callable[[], T]) -> T:
        """Run something that would hold up the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    async def _open(self) -> None:
        try:
            await self.in_pool(self._load)
            batcher = Batcher(self.engine, self.limits.max_queue_images)
            batcher.start()
            self._batcher = batcher
            await self._calibrate(batcher)
        except Exception as e:
            self.failure = e
            self._become(State.FAILED)
            return
        if self.state is State.STARTING:
            self._become(State.READY)

    async def _calibrate(self, batcher: Batcher) -> None:
        """Measure the cost of each bucket, as far as the time allows; the rest as it comes."""
        left_s = CALIBRATION_S
        for size in self.engine.buckets:
            if size > self.limits.max_queue_images:
                break
            began = batcher.clock()
            await asyncio.gather(*batcher.submit([self._any_item()] * size))
            took_s = batcher.clock() - began
            left_s -= took_s
            if left_s < 2 * took_s:  # about what the next bucket takes
                break

    def _load(self) -> None:
        self.engine.__enter__()
        verify_golden(self.bundle, self.engine, self.engine.variant)

    def _any_item(self) -> Item:
        """One image through the whole path: warms it up and measures a first cost."""
        guidance = self.bundle.spec.guidance
        return Item(seed=0, guidance=guidance[0] if guidance else 1.0)

    def _become(self, state: State) -> None:
        self.state = state
        self.on_state(state)

    def _log_state(self, state: State) -> None:
        if state is State.FAILED:
            expected = isinstance(self.failure, MMFError)
            log.error("cannot serve: %s", self.failure, exc_info=None if expected else self.failure)
        else:
            log.info("%s", state)
