"""Admission: what a batch costs, and so when there is room and when an image is ready."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from mmf_deploy.errors import OverloadedError, RequestError

SMOOTHING = 0.2
"""Weight of the newest batch in the moving average."""

UNMEASURED_S = 1.0
"""Cost of a batch while nothing has been measured."""


class CostModel:
    """Seconds a batch takes, by bucket: a moving average of what was measured.

    A bucket that was never seen gets an upper bound from its nearest neighbour, so that
    a client told to come back in x seconds does find room then.

    Args:
        buckets: the engine's batch sizes, ascending.
    """

    def __init__(self, buckets: Sequence[int]) -> None:
        self.buckets = tuple(buckets)
        self._seconds: dict[int, float] = {}

    def observe(self, size: int, seconds: float) -> None:
        """Take note of a batch of ``size`` images that took ``seconds``."""
        bucket = self._bucket(size)
        before = self._seconds.get(bucket, seconds)
        self._seconds[bucket] = before + SMOOTHING * (seconds - before)

    def batch_s(self, size: int) -> float:
        """Predicted seconds of one batch of ``size`` images, at most the largest bucket."""
        bucket = self._bucket(size)
        if bucket in self._seconds:
            return self._seconds[bucket]
        if not self._seconds:
            return UNMEASURED_S
        larger = [b for b in self._seconds if b > bucket]
        if larger:
            return self._seconds[min(larger)]
        known = max(self._seconds)
        return self._seconds[known] * bucket / known

    def measured(self, images: int) -> bool:
        """Whether ``total_s(images)`` rests on measured batches alone."""
        full, rest = divmod(images, self.buckets[-1])
        sizes = ([self.buckets[-1]] if full else []) + ([rest] if rest else [])
        return all(self._bucket(size) in self._seconds for size in sizes)

    def total_s(self, images: int) -> float:
        """Predicted seconds of ``images`` images in full batches and a rest, one after another."""
        full, rest = divmod(images, self.buckets[-1])
        seconds = full * self.batch_s(self.buckets[-1]) if full else 0.0
        return seconds + (self.batch_s(rest) if rest else 0.0)

    def _bucket(self, size: int) -> int:
        return self.buckets[min(bisect_left(self.buckets, size), len(self.buckets) - 1)]


class Admission:
    """Decides whether images may wait, from how many do and what batches cost.

    Not locked; the batcher calls it under its own lock.

    Args:
        max_queue_images: most images that may wait; the batch that runs does not count.
    """

    def __init__(self, cost: CostModel, max_queue_images: int) -> None:
        self._cost = cost
        self._max_queue = max_queue_images
        self._running: tuple[int, float] | None = None  # size and start of the current batch

    def began(self, size: int, now: float) -> None:
        """A batch of ``size`` images starts to run."""
        self._running = size, now

    def ended(self, now: float, failed: bool = False) -> None:
        """The batch that ran is over; one that failed says nothing about costs."""
        if self._running is not None and not failed:
            size, started = self._running
            self._cost.observe(size, now - started)
        self._running = None

    def ready_in_s(self, images: int, now: float) -> float:
        """Predicted seconds until the last of ``images`` in the queue is ready."""
        return self._running_s(now) + self._cost.total_s(images)

    def refusal(
        self, waiting: int, count: int, deadline_s: float, now: float
    ) -> RequestError | None:
        """Why ``count`` images cannot join ``waiting`` ones, or None if they can.

        Args:
            deadline_s: when they must be ready, on the clock of ``now``; may be infinite.
        Returns:
            OverloadedError with the exact time to come back, or RequestError if the
            deadline could not be met on an idle service either.
        """
        late_s = now + self.ready_in_s(waiting + count, now) - deadline_s
        surplus = waiting + count - self._max_queue
        if late_s <= 0 and surplus <= 0:
            return None
        if surplus <= 0 and not self._cost.measured(waiting + count):
            return None  # a guess refuses nobody; running it is what measures it
        alone_s = self._cost.total_s(count)
        if now + alone_s > deadline_s and self._cost.measured(count):
            return RequestError(
                f"deadline_ms: {count} images alone take {alone_s * 1000:.1f} ms; "
                "allow more than that",
                field="deadline_ms",
                code="deadline_too_short",
            )
        if surplus > 0:
            retry_s = self._room_in_s(waiting, surplus, now)
            why = f"the queue is full: {waiting} images wait, at most {self._max_queue} may"
        else:
            retry_s = late_s
            why = f"the deadline would be missed by {late_s * 1000:.1f} ms"
        return OverloadedError(
            f"{why}; come back in {retry_s * 1000:.1f} ms", retry_after_s=retry_s
        )

    def _room_in_s(self, waiting: int, surplus: int, now: float) -> float:
        """Predicted seconds until ``surplus`` of the ``waiting`` images have left the queue."""
        largest = self._cost.buckets[-1]
        # the first batch leaves when the running one ends, each other a full batch later
        batches = -(-min(surplus, waiting) // largest)
        return self._running_s(now) + max(0, batches - 1) * self._cost.batch_s(largest)

    def _running_s(self, now: float) -> float:
        """Predicted seconds until the batch that is running ends."""
        if self._running is None:
            return 0.0
        size, started = self._running
        return max(0.0, started + self._cost.batch_s(size) - now)
