"""What batches cost: measured through the very lane that the service opens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mmf_deploy.bundle import Bundle
from mmf_deploy.engines.base import EngineOptions, open_engine

from ..admission import CostModel
from ..batcher import Batcher, Observer
from ..model import Lane
from ..samples import Item, noise_of
from ..turns import Turns
from ..work import Limits

SECONDS = 4.0
"""Time for the batches, all sizes together …"""
CALLS = 5
"""… with so many of each size at least, unless one would take longer than all that is left."""
NOISE_CALLS = 30

OnProgress = Callable[[float], None]


@dataclass(frozen=True)
class EngineCost:
    """What batches of one variant cost here.

    Attributes:
        buckets: batch sizes that the service keeps, ascending.
        dropped: those that its calibration drops because they do not pay.
        pads: whether a batch costs as much as its bucket.
        seconds: of every batch that was timed, by its bucket; not every bucket has some.
        noise_s: what making the noise takes of it, by bucket.
    """

    variant: str
    engine: str
    buckets: tuple[int, ...]
    dropped: tuple[int, ...]
    pads: bool
    seconds: Mapping[int, Sequence[float]]
    noise_s: Mapping[int, float]

    @property
    def largest(self) -> int:
        """The largest batch."""
        return self.buckets[-1]

    def median_s(self, bucket: int) -> float:
        """Seconds of a batch of that size."""
        return float(np.median(self.seconds[bucket]))

    @property
    def batch_s(self) -> tuple[float, ...]:
        """Seconds of a batch of 1, 2, 3 … images, up to the largest.

        As the service predicts them from the same measurements; above the largest size that was
        timed an image costs what it costs there.
        """
        timed = max(self.seconds)
        model = CostModel([b for b in self.buckets if b <= timed], self.pads)
        for bucket in self.seconds:
            model.calibrate(bucket, self.median_s(bucket))
        sizes: Sequence[int] = range(1, self.largest + 1)
        if self.pads:
            sizes = [next(b for b in self.buckets if b >= size) for size in sizes]
        return tuple(model.batch_s(min(n, timed)) * max(n, timed) / timed for n in sizes)

    def request_s(self, images: int) -> float:
        """Seconds of the batches of a request that is alone."""
        batch_s = self.batch_s
        full, rest = divmod(images, len(batch_s))
        return full * batch_s[-1] + (batch_s[rest - 1] if rest else 0.0)

    @property
    def noise_by_size_s(self) -> tuple[float, ...]:
        """Seconds of making the noise of 1, 2, 3 … images."""
        sizes = range(1, self.largest + 1)
        known = sorted(self.noise_s)
        return tuple(np.interp(sizes, known, [self.noise_s[n] for n in known]).tolist())

    @property
    def ratios(self) -> tuple[float, ...]:
        """Every batch that was timed, as a multiple of the median of its size."""
        return tuple(s / self.median_s(n) for n, every in self.seconds.items() for s in every)


def engine_cost(
    bundle: Bundle,
    variant: str | None = None,
    engine: str | None = None,
    options: EngineOptions | None = None,
    on_progress: OnProgress = lambda share: None,
) -> EngineCost:
    """Open an engine as the service does, and time its batches.

    Raises:
        MMFError: it cannot run here, or gives other images.
    """
    return asyncio.run(_measure(bundle, variant, engine, options, on_progress))


async def _measure(
    bundle: Bundle,
    variant: str | None,
    engine: str | None,
    options: EngineOptions | None,
    on_progress: OnProgress,
) -> EngineCost:
    opened = open_engine(engine, bundle, variant, options)
    lane = Lane(opened, Limits().max_queue_images, Turns(), Observer())
    try:
        await lane.open()
        assert lane.batcher is not None
        kept = lane.batcher.cost.buckets
        guidance = opened.spec.guidance
        item = Item(seed=0, guidance=guidance[0] if guidance else 1.0)
        seconds = await _repeat(lane.batcher, item, on_progress)
        return EngineCost(
            variant=opened.variant.name,
            engine=opened.name,
            buckets=kept,
            dropped=tuple(b for b in opened.buckets if b not in kept),
            pads=opened.pads,
            seconds=seconds,
            noise_s={n: _noise_s(item, n, opened.spec.shape) for n in kept},
        )
    finally:
        await lane.close()


async def _repeat(batcher: Batcher, item: Item, on_progress: OnProgress) -> dict[int, list[float]]:
    """Seconds of batches of every size, as far as the time allows."""
    seconds: dict[int, list[float]] = {}
    begin, last_s = time.monotonic(), 0.0
    for k, size in enumerate(batcher.cost.buckets):
        until = begin + SECONDS * (k + 1) / len(batcher.cost.buckets)
        if k and begin + SECONDS < time.monotonic() + 2 * CALLS * last_s:
            break
        every = seconds[size] = []
        while len(every) < CALLS or time.monotonic() < until:
            parts = await batcher.submit([item] * size).all()
            last_s = parts[-1].finished_s - parts[0].started_s
            every.append(last_s)
            on_progress(min(1.0, (time.monotonic() - begin) / SECONDS))
    return seconds


def _noise_s(item: Item, count: int, shape: Sequence[int]) -> float:
    items, times = [item] * count, []
    for _ in range(NOISE_CALLS):
        began = time.perf_counter()
        noise_of(items, shape)
        times.append(time.perf_counter() - began)
    return float(np.median(times))
