"""The batcher: requests of any size in, full batches through one engine, images out.

Policy: run at once when idle; while a batch runs, everything that arrives waits and goes
together into the next one, whatever request it came from. Nothing ever waits for company.

An asyncio front takes images and hands out one future each; one thread owns the engine.
Whoever lost interest (a cancelled future, a deadline that passed) is dropped when a batch
is formed, before anything is computed for it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmf_deploy.errors import OverloadedError, RequestError
from mmf_deploy.noise import gaussian_batch

from .admission import Admission, CostModel
from .samples import Generator, Item, Sample

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Waiting:
    item: Item
    future: asyncio.Future[Sample]
    deadline_s: float

    def dead(self, now: float) -> bool:
        return self.future.done() or self.deadline_s < now


class Batcher:
    """Coalesces what is waiting into batches; see the module's docstring.

    Args:
        engine: open, and used by this batcher's thread alone until ``close`` returns.
        max_queue_images: most images that may wait; the batch that runs does not count.
        cost: what batches cost; measured as they run.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        engine: Generator,
        max_queue_images: int = 1024,
        cost: CostModel | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.clock = clock
        self._engine = engine
        self._admission = Admission(cost or CostModel(engine.buckets), max_queue_images)
        self._queue: deque[_Waiting] = deque()
        self._closing = False
        self._wake = threading.Condition()  # guards the three above

    def start(self) -> None:
        """Start the inference thread; called once, from the event loop that will submit."""
        self._loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        # a daemon, so that an engine that hangs cannot keep the process from ending
        threading.Thread(target=self._work, name="inference", daemon=True).start()

    async def close(self) -> None:
        """Refuse new work, answer everything accepted, end the thread."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        await self._stopped.wait()

    @property
    def waiting(self) -> int:
        """Images in the queue, those that nobody wants any more included."""
        return len(self._queue)

    def submit(
        self, items: Sequence[Item], deadline_s: float | None = None
    ) -> list[asyncio.Future[Sample]]:
        """Take images into the queue, all or none; called from the event loop.

        Args:
            deadline_s: seconds from now after which nobody wants them.
        Returns:
            one future an image; cancel it to give its place back.
        Raises:
            OverloadedError: no room, or the deadline cannot be met; says when to come back.
            RequestError: the service is shutting down (503).
        """
        now = self.clock()
        deadline = math.inf if deadline_s is None else now + deadline_s
        with self._wake:
            if self._closing:
                raise RequestError(
                    "the service is shutting down; ask another one", status=503, code="draining"
                )
            self._admit(len(items), deadline, now)
            added = [_Waiting(item, self._loop.create_future(), deadline) for item in items]
            self._queue.extend(added)
            self._wake.notify()
        return [w.future for w in added]

    def _admit(self, count: int, deadline: float, now: float) -> None:
        if self._admission.refusal(len(self._queue), count, deadline, now) is None:
            return
        # places of those who left count as free, but are looked for only when they matter
        gone = [w for w in self._queue if w.dead(now)]
        self._queue = deque(w for w in self._queue if not w.dead(now))
        self._expire(gone, now)
        refusal = self._admission.refusal(len(self._queue), count, deadline, now)
        if refusal is not None:
            raise refusal

    def _work(self) -> None:
        while batch := self._next():
            self._run(batch)
        self._post(self._stopped.set)

    def _next(self) -> list[_Waiting]:
        """Wait for work and form a batch of live images; empty when there will be no more."""
        with self._wake:
            while True:
                now = self.clock()
                batch = self._form(now)
                if batch:
                    self._admission.began(len(batch), now)
                    return batch
                if self._closing:
                    return []
                self._wake.wait()

    def _form(self, now: float) -> list[_Waiting]:
        batch: list[_Waiting] = []
        gone: list[_Waiting] = []
        largest = self._engine.buckets[-1]
        while self._queue and len(batch) < largest:
            waiting = self._queue.popleft()
            (gone if waiting.dead(now) else batch).append(waiting)
        self._expire(gone, now)
        return batch

    def _expire(self, gone: list[_Waiting], now: float) -> None:
        if gone:
            retry_after_s = self._admission.ready_in_s(len(self._queue), now)
            self._post(_refuse, gone, retry_after_s)

    def _run(self, batch: list[_Waiting]) -> None:
        started = self.clock()
        try:
            values = self._generate([w.item for w in batch])
        except Exception as e:  # whatever it is, it concerns this batch alone
            log.exception("a batch of %d failed", len(batch))
            self._ended(self.clock(), failed=True)
            self._post(_fail, batch, e)
            return
        finished = self.clock()
        self._ended(finished)
        self._post(_answer, batch, [Sample(v, started, finished, len(batch)) for v in values])

    def _ended(self, now: float, failed: bool = False) -> None:
        with self._wake:
            self._admission.ended(now, failed)

    def _generate(self, items: list[Item]) -> NDArray[Any]:
        spec = self._engine.spec
        values = self._engine.generate(
            gaussian_batch([i.seed for i in items], spec.shape),
            np.array([i.label for i in items], np.int64) if spec.conditional else None,
            np.array([i.guidance for i in items], np.float32) if spec.guided else None,
        )
        if len(values) != len(items):
            raise RuntimeError(f"the engine gave {len(values)} samples for {len(items)}")
        return values

    def _post(self, callback: Callable[..., object], *args: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:
            log.warning("the event loop is closed; %s had nobody to go to", callback.__name__)


# What follows runs in the event loop, once a batch.


def _answer(batch: list[_Waiting], samples: list[Sample]) -> None:
    for waiting, sample in zip(batch, samples, strict=True):
        if not waiting.future.done():
            waiting.future.set_result(sample)


def _fail(batch: list[_Waiting], error: Exception) -> None:
    for waiting in batch:
        if not waiting.future.done():
            waiting.future.set_exception(error)


def _refuse(gone: list[_Waiting], retry_after_s: float) -> None:
    for waiting in gone:
        if not waiting.future.done():
            waiting.future.set_exception(
                OverloadedError(
                    "the deadline passed while the request was waiting",
                    retry_after_s=retry_after_s,
                )
            )
