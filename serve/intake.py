"""The intake: which work a service takes on, and what it still has to answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from starlette.requests import Request

from mmf_deploy.errors import OverloadedError, RequestError

from .batcher import draining
from .disconnect import fail_when_gone
from .encoding import Encoder
from .job import BatchFailedError, Job
from .made import Encoding
from .metrics import Metrics
from .model import Lane, Loaded
from .work import Accepted, Limiter, Limits, Work


class Intake:
    """Hands work to batchers, unless a limit, a budget or a deadline forbids it.

    Args:
        state: of the service, for the refusal of one that is not ready.

    Attributes:
        limiter: keeps the budgets of clients, in images; None if they have none.
        busy: requests between acceptance and encoded reply.
    """

    def __init__(
        self, limits: Limits, encoder: Encoder, metrics: Metrics, state: Callable[[], object]
    ) -> None:
        self.limiter: Limiter | None = None
        self.busy = 0
        self._limits, self._encoder, self._metrics, self._state = limits, encoder, metrics, state
        self._closing = False
        self._idle = asyncio.Event()
        self._idle.set()

    def close(self) -> None:
        """Refuse whatever comes from now on."""
        self._closing = True

    async def idle(self) -> None:
        """Return once nothing is left to answer: images that are ready must still be encoded."""
        await self._idle.wait()

    @asynccontextmanager
    async def accepted(
        self, request: Request, loaded: Loaded, work: Work, encoding: Encoding[Any] | None
    ) -> AsyncIterator[Accepted]:
        """Submit work, and give up what is left of it at the end, whatever ends it.

        Raises:
            RequestError: not ready, overloaded, over budget, or shutting down.
        """
        lane = loaded.trajectory_lane(work.steps) if work.trajectory else loaded.lane(work.steps)
        try:
            job = self._submit(request, loaded, lane, work, encoding)
        except RequestError as e:
            reason = e.reason if isinstance(e, OverloadedError) else e.code
            self._metrics.shed.labels(loaded.name, reason).inc()
            raise
        accepted = Accepted(loaded, lane, job)
        with self._at_work(), fail_when_gone(request, job):
            try:
                yield accepted
            except (OverloadedError, BatchFailedError) as e:
                if isinstance(e, OverloadedError):
                    self._metrics.shed.labels(loaded.name, e.reason).inc()
                if self.limiter is not None:  # what was not made costs nothing
                    self.limiter.give_back(request, len(work.items) - accepted.images)
                raise
            finally:
                job.cancel()

    def _submit(
        self,
        request: Request,
        loaded: Loaded,
        lane: Lane,
        work: Work,
        encoding: Encoding[Any] | None,
    ) -> Job:
        if self._closing:
            raise draining()
        batcher = lane.trajectories if work.trajectory else lane.batcher
        if batcher is None or not loaded.ready:
            raise RequestError(f"not ready: {self._state()}", status=503, code="not_ready")
        count, deadline_s = len(work.items), work.deadline_s
        if encoding is not None:
            deadline_s = self._before_encoding(deadline_s, encoding, count)
        if self.limiter is None:
            return batcher.submit(work.items, deadline_s, work.priority)
        self.limiter.take(request, loaded.name, count)
        try:
            return batcher.submit(work.items, deadline_s, work.priority)
        except RequestError:
            self.limiter.give_back(request, count)
            raise

    def _before_encoding(
        self, deadline_s: float | None, encoding: Encoding[Any], count: int
    ) -> float | None:
        """The deadline of the images themselves.

        Raises:
            OverloadedError: too much waits to be encoded; says when it does not.
        """
        encoder = self._encoder
        surplus = encoder.waiting + count - self._limits.max_queue_images
        backlog_s = encoder.backlog_s
        encode_s = encoder.predicted_s(encoding.kind, count)
        room_in_s = 0.0
        if encoder.waiting and surplus > 0:
            room_in_s = backlog_s * min(1.0, surplus / encoder.waiting)
        elif encoder.waiting and deadline_s is not None and backlog_s + encode_s > deadline_s:
            room_in_s = backlog_s
        else:
            # half of the time at least is the engine's: predictions are not that good
            return None if deadline_s is None else max(deadline_s / 2, deadline_s - encode_s)
        raise OverloadedError(
            f"{encoder.waiting} images wait to be encoded; come back in {room_in_s * 1000:.1f} ms",
            retry_after_s=room_in_s,
            reason="encode_backlog",
        )

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        self.busy += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.busy -= 1
            if self.busy == 0:
                self._idle.set()
