"""The batcher: requests of any size in, full batches through one engine, images out.

Policy: run at once when idle; while a batch runs, everything that arrives waits and goes
together into the next one, whatever request it came from: higher priorities first, and in the
order of arrival within one. Nothing ever waits for company.

An asyncio front takes requests and hands out one ``Job`` each; one thread owns the engine.
Whoever lost interest (a job cancelled, a deadline that passed) is dropped when a batch is
formed, before anything is computed for it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmf_deploy.errors import OverloadedError, RequestError

from .admission import Admission, CostModel
from .job import BatchFailedError, Job
from .samples import Generator, Item, Part, Priority, noise_of

log = logging.getLogger(__name__)


def draining() -> RequestError:
    """The refusal of a service that is shutting down."""
    return RequestError(
        "the service is shutting down; ask another one", status=503, code="draining"
    )


class Observer:
    """What a batcher tells; does nothing by itself. Called from both threads."""

    def batch(self, size: int, bucket: int, seconds: float) -> None:
        """A batch of ``size`` images ran as ``bucket`` ones."""

    def batch_failed(self, size: int) -> None:
        """A batch of ``size`` images failed."""

    def dropped(self, images: int, reason: str) -> None:
        """Images that had been accepted were dropped before they were computed."""


@dataclass(frozen=True, slots=True)
class _Slice:
    """Images of one job that go into one batch."""

    job: Job
    first: int
    count: int

    @property
    def items(self) -> Sequence[Item]:
        return self.job.items[self.first : self.first + self.count]


class Batcher:
    """Coalesces what is waiting into batches; see the module's docstring.

    Args:
        engine: open until ``close`` returns, and used by this batcher's thread, inside ``turn``.
        max_queue_images: most images that may wait at a priority and those before it; the batch
            that runs does not count.
        cost: what batches cost; measured as they run.
        turn: held around a batch, where several engines share a device.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        engine: Generator,
        max_queue_images: int = 1024,
        cost: CostModel | None = None,
        turn: AbstractContextManager[object] | None = None,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.clock = clock
        self.cost = cost or CostModel(engine.buckets, engine.pads)
        self.failures = 0  # batches that failed since the last one that did not
        self._engine = engine
        self._turn = turn or nullcontext()
        self._observer = observer or Observer()
        self._admission = Admission(self.cost, max_queue_images)
        self._queues: dict[Priority, deque[Job]] = {p: deque() for p in Priority}
        self._waiting = dict.fromkeys(Priority, 0)  # images, by priority
        self._closing = False
        self._wake = threading.Condition()  # guards the four above

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
        """Images in the queue."""
        return sum(self._waiting.values())

    @property
    def waiting_by_priority(self) -> dict[Priority, int]:
        """Images in the queue, by priority."""
        return dict(self._waiting)

    @property
    def running(self) -> int:
        """Images in the batch that runs."""
        return self._admission.running

    @property
    def running_for_s(self) -> float:
        """Seconds since the batch that runs began; 0 if none does."""
        return self._admission.running_for_s(self.clock())

    def submit(
        self,
        items: Sequence[Item],
        deadline_s: float | None = None,
        priority: Priority = Priority.NORMAL,
    ) -> Job:
        """Take images into the queue, all or none; called from the event loop.

        Args:
            items: at least one image.
            deadline_s: seconds from now after which nobody wants them.
        Raises:
            OverloadedError: no room, or the deadline cannot be met; says when to come back.
            RequestError: the batcher is closing (503).
        """
        now = self.clock()
        deadline = math.inf if deadline_s is None else now + deadline_s
        job = Job(items, priority, now, deadline, self._forget)
        with self._wake:
            if self._closing:
                raise draining()
            self._admit(job, now)
            self._queues[priority].append(job)
            self._waiting[priority] += len(items)
            self._wake.notify()
        return job

    def _admit(self, job: Job, now: float) -> None:
        count, deadline = len(job.items), job.deadline_s
        if self._admission.refusal(self._ahead(job.priority), count, deadline, now) is None:
            return
        # places of those whose time is over count as free, but are looked for only when they matter
        for queue in self._queues.values():
            for late in [j for j in queue if j.deadline_s < now]:
                self._expire(late, now)
        refusal = self._admission.refusal(self._ahead(job.priority), count, deadline, now)
        if refusal is not None:
            raise refusal

    def _ahead(self, priority: Priority) -> int:
        """Images that go before those of a new job."""
        ahead = 0
        for p in Priority:
            ahead += self._waiting[p]
            if p is priority:
                break
        return ahead

    def _forget(self, job: Job, reason: str) -> None:
        """Free the places of a job that nobody waits for any more."""
        with self._wake:
            dropped = self._give_up(job)
        if dropped:
            self._observer.dropped(dropped, reason)

    def _give_up(self, job: Job) -> int:
        """Take a job's waiting images out of the count; and out of the queue."""
        dropped = len(job.items) - job.taken
        if dropped:
            self._waiting[job.priority] -= dropped
            job.taken = len(job.items)
            self._queues[job.priority].remove(job)
        return dropped

    def _expire(self, job: Job, now: float) -> None:
        if dropped := self._give_up(job):
            self._observer.dropped(dropped, "expired")
            error = OverloadedError(
                "the deadline passed while the request was waiting",
                retry_after_s=self._admission.ready_in_s(self._ahead(job.priority), now),
                reason="expired",
            )
            self._post(job.fail, error)

    def _work(self) -> None:
        while self._wait():
            self._one_batch()
        self._post(self._stopped.set)

    def _one_batch(self) -> None:
        # a function of its own, so that a thread that waits holds no request
        batch: list[_Slice] = []
        wanted = self.clock()
        with self._turn:
            try:
                batch = self._next(wanted)
                if batch:
                    self._run(batch)
            except BaseException as e:  # a mistake here or a panic below: those who wait must hear
                log.exception("the inference thread goes on after what should not happen")
                self._give_up_all(batch, e)

    def _give_up_all(self, batch: list[_Slice], error: BaseException) -> None:
        self.failures += 1
        with self._wake:
            self._admission.ended(self.clock(), failed=True)
            waiting = [job for queue in self._queues.values() for job in queue]
            for job in waiting:
                self._give_up(job)
        self._post(_fail, [*batch, *(_Slice(job, 0, 0) for job in waiting)], error)

    def _wait(self) -> bool:
        """Wait for work; False when there will be no more."""
        with self._wake:
            while not self.waiting:
                if self._closing:
                    return False
                self._wake.wait()
        return True

    def _next(self, wanted: float) -> list[_Slice]:
        """Form a batch of images that are still wanted."""
        with self._wake:
            batch = self._form(self.clock())
            if batch:
                # waiting for a turn is part of what a batch costs
                self._admission.began(sum(s.count for s in batch), wanted)
        return batch

    def _form(self, now: float) -> list[_Slice]:
        batch: list[_Slice] = []
        room = self.cost.largest
        for priority, queue in self._queues.items():
            while queue and room:
                job = queue[0]
                if job.deadline_s < now:
                    self._expire(job, now)
                if count := min(room, len(job.items) - job.taken):
                    batch.append(_Slice(job, job.taken, count))
                    job.taken += count
                    room -= count
                    self._waiting[priority] -= count
                if queue and queue[0] is job and job.taken == len(job.items):
                    queue.popleft()
        return batch

    def _run(self, batch: list[_Slice]) -> None:
        size = sum(s.count for s in batch)
        started = self.clock()
        try:
            values = self._generate([item for s in batch for item in s.items])
        except Exception as e:  # whatever it is, it concerns this batch alone
            log.exception("a batch of %d failed", size)
            self.failures += 1
            self._ended(self.clock(), failed=True)
            with self._wake:  # nobody wants the rest of a request that fails
                dropped = sum(self._give_up(piece.job) for piece in batch)
            if dropped:
                self._observer.dropped(dropped, "failed")
            self._observer.batch_failed(size)
            self._post(_fail, batch, e)
            return
        finished = self.clock()
        self.failures = 0
        bucket = self.cost.bucket(size) if self._engine.pads else size
        self._ended(finished)
        self._post(_answer, batch, values, (started, finished, size, bucket))
        self._observer.batch(size, bucket, finished - started)

    def _ended(self, now: float, failed: bool = False) -> None:
        with self._wake:
            self._admission.ended(now, failed)

    def _generate(self, items: list[Item]) -> NDArray[Any]:
        spec = self._engine.spec
        values = self._engine.generate(
            noise_of(items, spec.shape),
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


def _answer(
    batch: list[_Slice], values: NDArray[Any], about: tuple[float, float, int, int]
) -> None:
    row = 0
    for piece in batch:
        piece.job.add(Part(piece.first, values[row : row + piece.count], *about))
        row += piece.count


def _fail(batch: list[_Slice], error: BaseException) -> None:
    for piece in batch:
        # one each: an exception collects the frames of everybody who raises it
        failure = BatchFailedError(f"a batch of {sum(p.count for p in batch)} failed: {error!r}")
        failure.__cause__ = error
        piece.job.fail(failure)
