"""Admission: what a batch costs, and so when there is room and when an image is ready."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from mmf_deploy.errors import OverloadedError, RequestError

SMOOTHING = 0.2
"""Weight of the newest batch in the moving averages."""

UNMEASURED_S = 1.0
"""Cost of a batch while nothing has been measured."""

DEVIATIONS = 2.0
"""Mean deviations that a promise keeps as a margin (as for TCP's timeout, RFC 6298)."""

HOPELESS = 0.5
"""A deadline below this share of the best time of its images is wrong, and not just unlucky."""

RELAXATION = 0.01
"""How far a refusal brings a cost back to the best time seen."""

WORTH = 0.95
"""A larger batch is formed only if it brings an image's cost below this share …"""

SHORT_S = 0.01
"""… or if it is over so soon that handing it from thread to thread counts."""


class CostModel:
    """Seconds a batch takes, by bucket: moving averages of what was measured.

    A bucket that was never seen gets an upper bound from its nearest neighbour, so that
    a client told to come back in x seconds does find room then.

    Args:
        buckets: the engine's batch sizes, ascending.
        pads: whether a batch costs as much as its bucket; else costs lie between the buckets'.
    """

    def __init__(self, buckets: Sequence[int], pads: bool = True) -> None:
        self.buckets = tuple(buckets)
        self.pads = pads
        self.deviation = 0.0  # of batches from their prediction, as a share of it
        self._seconds: dict[int, float] = {}
        self._least: dict[int, float] = {}  # seconds ever seen

    @property
    def largest(self) -> int:
        """The largest batch that is formed."""
        return self.buckets[-1]

    def bucket(self, size: int) -> int:
        """The smallest bucket that holds ``size`` images; the largest one if none does."""
        return self.buckets[min(bisect_left(self.buckets, size), len(self.buckets) - 1)]

    def calibrate(self, size: int, seconds: float) -> None:
        """Take ``seconds`` for what a batch of ``size`` images costs, whatever was seen before."""
        self._seconds[self.bucket(size)] = self._least[self.bucket(size)] = seconds
        self.deviation = 0.0

    def observe(self, size: int, seconds: float) -> None:
        """Take note of a batch of ``size`` images that took ``seconds``."""
        bucket = self.bucket(size)
        if bucket not in self._seconds:
            self._seconds[bucket] = seconds if self.pads else seconds * bucket / size
            self._least[bucket] = self._seconds[bucket]
            return
        ratio = seconds / max(self.batch_s(size), 1e-9)
        self._least[bucket] = min(self._least[bucket], ratio * self._seconds[bucket])
        self._seconds[bucket] *= 1.0 + SMOOTHING * (ratio - 1.0)
        self.deviation += SMOOTHING * (abs(ratio - 1.0) - self.deviation)

    def relax(self, images: int) -> None:
        """Believe a little more that it takes no longer than the best time.

        Work that is refused for what it costs would otherwise never be measured again.
        """
        for bucket in {self.largest, self.bucket(images % self.largest)}:
            if bucket in self._seconds:
                least_s = self._least[bucket]
                self._seconds[bucket] += RELAXATION * (least_s - self._seconds[bucket])

    def settle(self) -> None:
        """Keep the buckets that pay: beyond them an image costs no less, and others wait longer.

        Buckets that were not measured are kept, unless the last two that were show no gain.
        """
        best, keep = 0.0, 0
        for k, bucket in enumerate(self.buckets):
            if bucket not in self._seconds:
                keep = len(self.buckets) if keep == k else keep
                break
            each_s = self._seconds[bucket] / bucket
            if k == 0 or each_s < WORTH * best:
                best, keep = each_s, k + 1
            elif keep == k and self._seconds[bucket] < SHORT_S:
                keep = k + 1
        self.buckets = self.buckets[:keep]

    def batch_s(self, size: int) -> float:
        """Predicted seconds of one batch of ``size`` images, at most the largest bucket."""
        bucket = self.bucket(size)
        upper_s = self._bucket_s(bucket)
        place = self.buckets.index(bucket)
        if self.pads or place == 0 or size >= bucket:
            return upper_s
        below = self.buckets[place - 1]
        if below not in self._seconds or bucket not in self._seconds:
            return upper_s
        lower_s = self._seconds[below]
        return lower_s + (upper_s - lower_s) * (size - below) / (bucket - below)

    def _bucket_s(self, bucket: int) -> float:
        if bucket in self._seconds:
            return self._seconds[bucket]
        if not self._seconds:
            return UNMEASURED_S
        larger = [b for b in self._seconds if b > bucket]
        if larger:
            return self._seconds[min(larger)]
        known = max(self._seconds)
        return self._seconds[known] * bucket / known

    def least_s(self, images: int) -> float:
        """Seconds that ``images`` images took at best; those of one full batch if they are more."""
        return self._least[self.bucket(min(images, self.largest))]

    def measured(self, images: int) -> bool:
        """Whether ``total_s(images)`` rests on measured batches alone."""
        full, rest = divmod(images, self.largest)
        sizes = ([self.largest] if full else []) + ([rest] if rest else [])
        return all(self.bucket(size) in self._seconds for size in sizes)

    def total_s(self, images: int) -> float:
        """Predicted seconds of ``images`` images in full batches and a rest, one after another."""
        full, rest = divmod(images, self.largest)
        seconds = full * self.batch_s(self.largest) if full else 0.0
        return seconds + (self.batch_s(rest) if rest else 0.0)


class Admission:
    """Decides whether images may wait, from how many go before them and what batches cost.

    Not locked; the batcher calls it under its own lock.

    Args:
        max_queue_images: most images that may wait; the batch that runs does not count.
    """

    def __init__(self, cost: CostModel, max_queue_images: int) -> None:
        self.cost = cost
        self._max_queue = max_queue_images
        self._running: tuple[int, float] | None = None  # size and start of the current batch

    @property
    def running(self) -> int:
        """Images in the batch that runs."""
        running = self._running  # another thread may end it in between
        return 0 if running is None else running[0]

    def began(self, size: int, now: float) -> None:
        """A batch of ``size`` images starts to run."""
        self._running = size, now

    def ended(self, now: float, failed: bool = False) -> None:
        """The batch that ran is over; one that failed says nothing about costs."""
        if self._running is not None and not failed:
            size, started = self._running
            self.cost.observe(size, now - started)
        self._running = None

    def ready_in_s(self, images: int, now: float) -> float:
        """Predicted seconds until the last of ``images`` in the queue is ready."""
        return self._running_s(now) + self.cost.total_s(images)

    def refusal(self, ahead: int, count: int, deadline_s: float, now: float) -> RequestError | None:
        """Why ``count`` images cannot join behind ``ahead`` ones, or None if they can.

        Args:
            ahead: images that wait and go before these.
            deadline_s: when they must be ready, on the clock of ``now``; may be infinite.
        Returns:
            OverloadedError with the exact time to come back, or RequestError if the
            deadline could not be met on an idle service either.
        """
        margin = 1.0 + DEVIATIONS * self.cost.deviation
        late_s = now + margin * self.ready_in_s(ahead + count, now) - deadline_s
        surplus = ahead + count - self._max_queue
        if late_s <= 0 and surplus <= 0:
            return None
        if surplus <= 0 and not self.cost.measured(ahead + count):
            return None  # a guess refuses nobody; running it is what measures it
        # what a busy hour makes late is not the client's mistake
        if self.cost.measured(count) and now + HOPELESS * self.cost.least_s(count) > deadline_s:
            return RequestError(
                f"deadline_ms: {count} images alone take {self.cost.total_s(count) * 1000:.1f} ms; "
                "allow more than that",
                field="deadline_ms",
                code="deadline_too_short",
            )
        if surplus <= 0 and ahead == 0 and self._running is None:
            return None  # nothing is in its way, and a cost that was too high is measured again
        if surplus > 0:
            reason, retry_s = "queue_full", self._room_in_s(ahead, surplus, now)
            if self.cost.measured(ahead + count):
                retry_s = max(retry_s, late_s)
            why = f"the queue is full: {ahead} images wait, at most {self._max_queue} may"
        else:
            reason, retry_s = "deadline", late_s
            self.cost.relax(count)
            why = f"the deadline would be missed by {late_s * 1000:.1f} ms"
        return OverloadedError(
            f"{why}; come back in {retry_s * 1000:.1f} ms", retry_after_s=retry_s, reason=reason
        )

    def _room_in_s(self, ahead: int, surplus: int, now: float) -> float:
        """Predicted seconds until ``surplus`` of the ``ahead`` images have left the queue."""
        largest = self.cost.largest
        # the first batch leaves when the running one ends, each other a full batch later
        batches = -(-min(surplus, ahead) // largest)
        return self._running_s(now) + max(0, batches - 1) * self.cost.batch_s(largest)

    def _running_s(self, now: float) -> float:
        """Predicted seconds until the batch that is running ends."""
        if self._running is None:
            return 0.0
        size, started = self._running
        # one that is overdue is taken to need as long again as it is late
        return abs(started + self.cost.batch_s(size) - now)

    def running_for_s(self, now: float) -> float:
        """Seconds since the batch that is running began; 0 if none is."""
        running = self._running
        return 0.0 if running is None else now - running[1]
