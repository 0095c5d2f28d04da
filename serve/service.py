"""The service behind every route: models, their batchers, an encoding pool, a state."""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from typing import Any, TypeVar

import numpy as np
from starlette.requests import Request

from mmf_deploy.engines.base import Engine
from mmf_deploy.errors import MMFError, RequestError, nearest

from .encoding import Encoder
from .formats import ImageFormat, image_encoding
from .intake import Intake
from .made import Encoding, Made, Piece, Timing
from .metrics import Metrics
from .model import Lane, Loaded, Model, Source
from .samples import Item, Part
from .turns import Turns
from .work import Accepted, Limits, Work, note

__all__ = ["Limits", "Service", "State", "Work"]

log = logging.getLogger(__name__)

T = TypeVar("T")


class State(enum.StrEnum):
    """Where a service stands in its life."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class Service:
    """Serves models under names, each through engines and a batcher of its own.

    Args:
        sources: what gives the engines of each model; the first model is the default one.
        on_state: called in the event loop at every change of state.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        limits: Limits | None = None,
        on_state: Callable[[State], None] | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.state = State.STARTING
        self.failure: Exception | None = None
        self.on_state = on_state or self._log_state
        self.metrics = Metrics()
        self.encoder = Encoder(self.limits.encoders)
        self.intake = Intake(self.limits, self.encoder, self.metrics, lambda: self.state)
        self.on_reload: list[Callable[[], object]] = []
        self._turns: dict[str, Turns] = {}
        self.models = {name: Model(name, source, self._lane) for name, source in sources.items()}
        self.metrics.watch(lambda: self.healthy, lambda: iter(self.models.values()))

    def _lane(self, name: str, engine: Engine) -> Lane:
        turn = self._turns.setdefault(engine.device, Turns())
        return Lane(engine, self.limits.max_queue_images, turn, self.metrics.observer(name))

    # Life

    def start(self) -> None:
        """Begin to open in the background, so that health is answered meanwhile."""
        self.encoder.start()
        self._opening = asyncio.create_task(self._open())

    async def _open(self) -> None:
        try:
            for model in self.models.values():
                await model.loaded.open()
                await self._warm(model.loaded)
        except Exception as e:
            self.failure = e
            self._become(State.FAILED)
            return
        if self.state is State.STARTING:
            self._become(State.READY)

    async def _warm(self, loaded: Loaded) -> None:
        """Encode one image, so that the first client does not wait for an encoder to load."""
        if loaded.spec.is_image:
            channels, height, width = loaded.spec.shape
            blank = np.zeros((1, height, width, channels), np.uint8)
            for _ in range(2):  # the first one loads it, the second one says what it costs
                self.encoder.forget()
                await self.encoder.encode(*image_encoding(ImageFormat.PNG), [Item(0)], blank)

    def drain(self) -> None:
        """Turn readiness red; what still arrives is served until ``close``."""
        if self.state in (State.STARTING, State.READY):
            self._become(State.DRAINING)

    async def close(self) -> None:
        """Answer everything accepted, then free the engines."""
        self.drain()
        self.intake.close()
        await self._opening
        await asyncio.gather(*(model.close() for model in self.models.values()))
        await self.intake.idle()
        self.encoder.close()

    async def reload(self) -> bool:
        """Read every bundle again and serve what has changed; what cannot be served is left.

        Requests go on meanwhile: each is answered by the bundle that accepted it.

        Returns:
            whether everything on disk is now what is served.
        """
        for hook in self.on_reload:
            hook()
        if self.state is not State.READY:
            log.warning("no bundle reloaded: the service is %s", self.state)
            return False
        good = True
        for model in self.models.values():
            try:
                outcome = "replaced" if await model.reload() else "unchanged"
            except Exception as e:
                outcome, good = "failed", False
                kept = model.loaded.digest[:12]
                log.error("%s: not reloaded, %s goes on: %s", model.name, kept, e,
                          exc_info=None if isinstance(e, MMFError) else e)  # fmt: skip
            self.metrics.reloads.labels(model.name, outcome).inc()
        return good

    @property
    def healthy(self) -> bool:
        """Ready, and no engine does nothing but fail."""
        return self.state is State.READY and not self.sick

    @property
    def sick(self) -> bool:
        """Whether some engine does nothing but fail: a new process is what may help."""
        return any(model.loaded.sick for model in self.models.values())

    def _become(self, state: State) -> None:
        self.state = state
        self.on_state(state)

    def _log_state(self, state: State) -> None:
        if state is State.FAILED:
            expected = isinstance(self.failure, MMFError)
            log.error("cannot serve: %s", self.failure, exc_info=None if expected else self.failure)
        else:
            log.info("%s", state)

    # Models

    def model(self, name: str | None = None) -> Model:
        """The model of that name; the first one if None.

        Raises:
            RequestError: 404, there is none.
        """
        if name is None:
            return next(iter(self.models.values()))
        found = self.models.get(name)
        if found is None:
            shown = name if len(name) <= 64 else name[:61] + "..."
            raise RequestError(
                f"no model {shown!r}{nearest(shown, self.models)}; there is "
                + ", ".join(self.models),
                field="model",
                status=404,
                code="model_not_found",
            )
        return found

    def find(self, digest: str) -> Loaded | None:
        """What serves the bundle of that digest."""
        for model in self.models.values():
            if model.loaded.digest == digest:
                return model.loaded
        return None

    # Work

    async def generate(
        self,
        request: Request,
        loaded: Loaded,
        work: Work,
        encoding: Encoding[T] | None = None,
    ) -> Made[T]:
        """Make images, and encode each as soon as it is made.

        Args:
            request: whose body has been read; its client's departure ends the work.
            loaded: what makes them; ``Model.loaded`` of this moment.
        Raises:
            RequestError: not ready, overloaded, or shutting down.
            ClientGoneError: the client left first.
        """
        async with self.intake.accepted(request, loaded, work, encoding) as accepted:
            tasks, values = [], []
            try:
                async for part, done in self._encoded(accepted, work, encoding):
                    values.append(part.values)
                    tasks.append(done)
                encoded = [value for done in tasks for value in await done]
            finally:
                for task in tasks:  # of a request that failed or whose client left
                    task.cancel()
        return Made(
            loaded,
            accepted.lane.engine.variant.name,
            work.items,
            values[0] if len(values) == 1 else np.concatenate(values),
            encoded,
            accepted.timing(),
            lambda made: self._replied(request, made),
        )

    async def stream(
        self,
        request: Request,
        loaded: Loaded,
        work: Work,
        encoding: Encoding[T],
    ) -> AsyncGenerator[Piece[T], None]:
        """Like ``generate``, image by image as each is ready; close it to give up the rest."""
        async with self.intake.accepted(request, loaded, work, encoding) as accepted:
            async for part, done in self._encoded(accepted, work, encoding):
                for k, value in enumerate(await done, part.first):
                    yield Piece(k, work.items[k], value, accepted.timing())
        self._observe(loaded, accepted.timing())
        note(request, loaded, accepted.lane, len(work.items), accepted.timing())

    async def _encoded(
        self, accepted: Accepted, work: Work, encoding: Encoding[T] | None
    ) -> AsyncIterator[tuple[Part, asyncio.Future[list[T]]]]:
        """Parts as they are made; the encoding of each runs beside the making of the next."""
        loop = asyncio.get_running_loop()
        made = self.metrics.images.labels(accepted.loaded.name, accepted.lane.engine.variant.name)
        images = 0
        while images < len(work.items):
            part = await accepted.job.next_part()
            images += len(part.values)
            accepted.note(part)
            made.inc(len(part.values))
            items = work.items[part.first : part.first + len(part.values)]
            at_once = None if encoding is None else self.encoder.now(*encoding, items, part.values)
            done: asyncio.Future[list[T]] = loop.create_future()
            if encoding is None or at_once is not None:
                done.set_result(at_once or [])
            else:
                work_of = self.encoder.encode(*encoding, items, part.values)
                done = asyncio.create_task(work_of)
            yield part, done

    def _replied(self, request: Request, made: Made[Any]) -> None:
        """Take note of a reply that is about to be sent."""
        lane = made.loaded.lane_of(made.variant)
        self._observe(made.loaded, made.timing)
        note(request, made.loaded, lane, len(made.items), made.timing)

    def _observe(self, loaded: Loaded, timing: Timing) -> None:
        self.metrics.queue_seconds.labels(loaded.name).observe(timing.queue_ms / 1000)
        self.metrics.encode_seconds.labels(loaded.name).observe(timing.encode_ms / 1000)
