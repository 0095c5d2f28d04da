"""Models: bundles being served under a name, each with its engines, replaceable while it serves."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from mmf_deploy.bundle import Bundle
from mmf_deploy.engines.base import Engine
from mmf_deploy.errors import RequestError
from mmf_deploy.golden import verify_golden
from mmf_deploy.spec import SampleSpec

from .batcher import Batcher, Observer
from .daemon import in_daemon
from .samples import Item

log = logging.getLogger(__name__)

CALIBRATION_S = 0.3
"""Time to spend on measuring the cost of batches before a model is ready."""

REPEATS = 3
"""Batches of each size that calibration runs; the quickest counts."""

SICK_AFTER = 5
"""Batches that fail one after another before a lane says that something is wrong with it."""

HUNG_AFTER_S = 60.0
"""The same for a batch that does not end."""

Source = Callable[[], Sequence[Engine]]
"""Gives the engines of a model, not yet open, the one that serves by default first."""


class Lane:
    """One engine and its batcher.

    Args:
        turn: held around its batches, where engines share a device.
    """

    def __init__(
        self,
        engine: Engine,
        max_queue_images: int,
        turn: AbstractContextManager[object],
        observer: Observer,
    ) -> None:
        self.engine = engine
        self.observer = observer
        self.batcher: Batcher | None = None
        self._max_queue = max_queue_images
        self._turn = turn

    @property
    def sick(self) -> bool:
        """Whether its last batches all failed, or one does not end."""
        batcher = self.batcher
        if batcher is None:
            return False
        return batcher.failures >= SICK_AFTER or batcher.running_for_s > HUNG_AFTER_S

    def _load(self) -> None:
        self.engine.__enter__()
        verify_golden(self.engine.bundle, self.engine, self.engine.variant)

    async def open(self) -> None:
        """Load the engine, reproduce the golden images through it, measure what batches cost.

        Raises:
            MMFError: it cannot run here, or gives other images.
        """
        await in_daemon(self._load)
        batcher = Batcher(self.engine, self._max_queue, turn=self._turn, observer=self.observer)
        batcher.start()
        self.batcher = batcher
        await self._calibrate(batcher)

    async def _calibrate(self, batcher: Batcher) -> None:
        """Measure the cost of each bucket, as far as the time allows; the rest as it comes."""
        guidance = self.engine.spec.guidance
        item = Item(seed=0, guidance=guidance[0] if guidance else 1.0)
        left_s, cost = CALIBRATION_S, batcher.cost
        for size in cost.buckets:
            if size > self._max_queue:
                break
            took: list[float] = []
            while len(took) < REPEATS and left_s >= sum(took[-1:]):
                parts = await batcher.submit([item] * size).all()
                took.append(parts[-1].finished_s - parts[0].started_s)
                left_s -= took[-1]
            cost.calibrate(size, min(took))  # the first time is slow, and noise only adds
            if left_s < 2 * took[-1]:  # about what the next bucket takes
                break
        cost.settle()

    async def close(self) -> None:
        """Answer everything accepted, then free the engine."""
        if self.batcher is not None:
            await self.batcher.close()
        await in_daemon(self.engine.close)


class Loaded:
    """One bundle with its open engines: a lane for each number of steps.

    Attributes:
        name: of the model that it is, or was, serving.
    """

    def __init__(self, name: str, lanes: Sequence[Lane]) -> None:
        self.name = name
        self.lanes = {lane.engine.variant.steps: lane for lane in reversed(lanes)}
        self.main = lanes[0]
        self.bundle: Bundle = self.main.engine.bundle
        self.ready = False

    @property
    def digest(self) -> str:
        """The bundle's."""
        return self.bundle.digest

    @property
    def spec(self) -> SampleSpec:
        """What one sample is."""
        return self.bundle.spec

    @property
    def engine(self) -> Engine:
        """The engine that serves by default."""
        return self.main.engine

    @property
    def steps(self) -> tuple[int, ...]:
        """Numbers of steps that can be asked for."""
        return tuple(sorted(self.lanes))

    @property
    def sick(self) -> bool:
        """Whether one of its engines only fails."""
        return any(lane.sick for lane in self.lanes.values())

    def lane(self, steps: int | None) -> Lane:
        """The lane of that many steps; the main one if None.

        Raises:
            RequestError: this bundle has none.
        """
        lane = self.main if steps is None else self.lanes.get(steps)
        if lane is None:
            have = ", ".join(map(str, self.steps))
            count = steps if steps is not None and steps < 10**6 else "so many"
            raise RequestError(
                f"steps: this model has no variant of {count} steps; it has {have}", field="steps"
            )
        return lane

    def lane_of(self, variant: str) -> Lane:
        """The lane that runs a variant of that name, which is one of its own."""
        return next(x for x in self.lanes.values() if x.engine.variant.name == variant)

    async def open(self) -> None:
        """Open every lane; closes them again if one fails."""
        try:
            for lane in self.lanes.values():
                await lane.open()
        except BaseException:
            await self.close()
            raise
        self.ready = True

    async def close(self) -> None:
        """Answer everything accepted, then free the engines; may be called twice."""
        self.ready = False
        await asyncio.gather(*(lane.close() for lane in self.lanes.values()))


class Model:
    """A name that clients ask for, and the bundle that answers to it.

    Args:
        source: gives the engines, now and at every reload.
        lane: makes a lane of an engine.

    Attributes:
        loaded: replaced as a whole by a reload. A request takes it once and keeps to it.
    """

    def __init__(self, name: str, source: Source, lane: Callable[[str, Engine], Lane]) -> None:
        self.name = name
        self._source = source
        self._lane = lane
        self._reloading = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()
        self.loaded = self._load()

    def _load(self) -> Loaded:
        return Loaded(self.name, [self._lane(self.name, engine) for engine in self._source()])

    async def reload(self) -> bool:
        """Open the bundle as it is now on disk, and swap; False if it has not changed.

        What the old one accepted it answers. If the new one cannot be served, the old one stays.

        Raises:
            MMFError: why the new one cannot be served.
        """
        async with self._reloading:
            fresh = await in_daemon(self._load)
            if fresh.digest == self.loaded.digest:
                return False
            await fresh.open()
            old, self.loaded = self.loaded, fresh
        log.info("%s: %s replaces %s", self.name, self.loaded.digest[:12], old.digest[:12])
        task = asyncio.create_task(_retire(old))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)
        return True

    async def close(self) -> None:
        """Answer everything accepted and free every engine, those on their way out as well."""
        await asyncio.gather(self.loaded.close(), *self._retiring)


async def _retire(loaded: Loaded) -> None:
    await loaded.close()
    if gc.get_freeze_count():  # what was frozen at the start is garbage now, and is to be seen
        gc.unfreeze()
        gc.collect()
        gc.freeze()
