"""Models: bundles being served under a name, each with its engines, replaceable while it serves."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from mmf_deploy.bundle import Bundle
from mmf_deploy.engines.base import Engine
from mmf_deploy.errors import BundleError, RequestError
from mmf_deploy.golden import verify_golden
from mmf_deploy.spec import SampleSpec

from .batcher import Batcher, Observer
from .daemon import in_daemon
from .samples import Generator, Item
from .trajectories import Trajectories, gives_trajectories

log = logging.getLogger(__name__)

CALIBRATION_S, OTHERS_S = 0.3, 0.05
"""Time to spend on measuring the cost of batches before a model is ready: for the lane that serves
by default, and for each of the others."""

REPEATS = 3
"""Batches of each size that calibration runs; the quickest counts."""

SICK_AFTER = 5
"""Batches that fail one after another before a lane says that something is wrong with it."""

HUNG_AFTER_S = 60.0
"""The same for a batch that does not end."""

Source = Callable[[], Sequence[Engine]]
"""Gives the engines of a model, not yet open, the one that serves by default first."""


class Lane:
    """One engine and its batchers: of images, and of trajectories where the engine gives them.

    Args:
        turn: held around all its batches: by both batchers, and by whoever shares the device.
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
        self.trajectories: Batcher | None = None
        self._max_queue = max_queue_images
        self._turn = turn

    @property
    def sick(self) -> bool:
        """Whether its last batches of images all failed, or any batch does not end.

        Failing trajectories say nothing of the images; one that hangs keeps the device from them.
        """
        failing = self.batcher is not None and self.batcher.failures >= SICK_AFTER
        return failing or any(b.running_for_s > HUNG_AFTER_S for b in self.batchers)

    @property
    def batchers(self) -> list[Batcher]:
        """Those that are open."""
        return [b for b in (self.batcher, self.trajectories) if b is not None]

    def _load(self) -> None:
        self.engine.__enter__()
        verify_golden(self.engine.bundle, self.engine, self.engine.variant)

    async def open(self, calibration_s: float = CALIBRATION_S) -> None:
        """Load the engine, reproduce the golden images through it, measure what batches cost.

        Args:
            calibration_s: time for that measurement.
        Raises:
            MMFError: it cannot run here, or gives other images.
        """
        await in_daemon(self._load)
        self.batcher = self._batcher(self.engine)
        await self._calibrate(self.batcher, calibration_s)
        if gives_trajectories(self.engine):
            self.trajectories = self._batcher(Trajectories(self.engine, self.batcher.cost.buckets))

    def _batcher(self, engine: Generator) -> Batcher:
        batcher = Batcher(engine, self._max_queue, turn=self._turn, observer=self.observer)
        batcher.start()
        return batcher

    async def _calibrate(self, batcher: Batcher, left_s: float) -> None:
        """Measure the cost of each bucket, as far as the time allows; the rest as it comes."""
        guidance = self.engine.spec.guidance
        item = Item(seed=0, guidance=guidance[0] if guidance else 1.0)
        cost = batcher.cost
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
        await asyncio.gather(*(batcher.close() for batcher in self.batchers))
        await in_daemon(self.engine.close)


class Loaded:
    """One bundle with its open engines: a lane for each number of steps.

    Attributes:
        name: of the model that it is, or was, serving.
        measured: what the export measured on its machine; empty until it is open.
    """

    def __init__(self, name: str, lanes: Sequence[Lane]) -> None:
        self.name = name
        self.lanes = {lane.engine.variant.steps: lane for lane in reversed(lanes)}
        self.main = lanes[0]
        self.bundle: Bundle = self.main.engine.bundle
        self.measured: dict[str, Any] = {}
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
    def trajectories(self) -> tuple[int, ...]:
        """Numbers of steps that give a trajectory."""
        return tuple(s for s in self.steps if gives_trajectories(self.lanes[s].engine))

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
            raise _no_steps("variant", steps, self.steps)
        return lane

    def trajectory_lane(self, steps: int | None) -> Lane:
        """The lane that gives trajectories of that many steps; of the most there are if None.

        Raises:
            RequestError: this bundle has none, or none of that many.
        """
        have = self.trajectories
        if not have:
            raise RequestError(
                "model: none of the variants served here has a trajectory; export some in fp32 "
                "with several steps (mmf export CHECKPOINT --steps 1,4) and serve them with "
                "onnxruntime",
                field="model",
                code="no_trajectory",
            )
        if steps is not None and steps not in have:
            raise _no_steps("trajectory", steps, have)
        return self.lanes[steps or have[-1]]

    def lane_of(self, variant: str) -> Lane:
        """The lane that runs a variant of that name, which is one of its own."""
        return next(x for x in self.lanes.values() if x.engine.variant.name == variant)

    async def open(self) -> None:
        """Open every lane; closes them again if one fails."""
        self.measured = _measured(self.bundle)
        try:
            for lane in self.lanes.values():
                await lane.open(CALIBRATION_S if lane is self.main else OTHERS_S)
        except BaseException:
            await self.close()
            raise
        self.ready = True

    async def close(self) -> None:
        """Answer everything accepted, then free the engines; may be called twice."""
        self.ready = False
        await asyncio.gather(*(lane.close() for lane in self.lanes.values()))


def _no_steps(what: str, steps: int | None, have: tuple[int, ...]) -> RequestError:
    count = steps if steps is not None and steps < 10**6 else "so many"
    return RequestError(
        f"steps: this model has no {what} of {count} steps; it has {', '.join(map(str, have))}",
        field="steps",
    )


def _measured(bundle: Bundle) -> dict[str, Any]:
    try:
        content = bundle.measured()
        json.dumps(content, allow_nan=False)
    except (BundleError, ValueError):  # serving does not need it
        return {}
    return content


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
