"""The images of one request, from the moment they are accepted to the last one that is made."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from mmf_deploy.errors import EngineError

from .samples import Item, Part, Priority


class BatchFailedError(EngineError):
    """The batch that a request was in failed; its cause says why, and so does the log."""


class Job:
    """One request inside a batcher; read in the event loop, part by part.

    Made by ``Batcher.submit``. Images come in parts, one a batch, in the request's order.

    Attributes:
        taken: images that are in a batch already, or given up; the batcher's, under its lock.
    """

    __slots__ = (
        "_error",
        "_forget",
        "_parts",
        "_unmade",
        "_waiter",
        "arrived_s",
        "deadline_s",
        "items",
        "priority",
        "taken",
    )

    def __init__(
        self,
        items: Sequence[Item],
        priority: Priority,
        arrived_s: float,
        deadline_s: float,
        forget: Callable[[Job, str], None],
    ) -> None:
        self.items = items
        self.priority = priority
        self.arrived_s = arrived_s
        self.deadline_s = deadline_s
        self.taken = 0
        self._forget = forget
        self._parts: deque[Part] = deque()
        self._unmade = len(items)
        self._error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def over(self) -> bool:
        """Whether every image is made, or none of the rest will be."""
        return self._unmade == 0 or self._error is not None

    async def next_part(self) -> Part:
        """The next images, as soon as they are made.

        Raises:
            Exception: what the batch, or ``fail``, failed with.
        """
        while not self._parts:
            if self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._parts.popleft()

    async def all(self) -> list[Part]:
        """Every part, once the last one is made."""
        parts, images = [], 0
        while images < len(self.items):
            part = await self.next_part()
            images += len(part.values)
            parts.append(part)
        return parts

    def cancel(self) -> None:
        """Nobody wants the rest: give its places back; may be called at any time."""
        self.fail(asyncio.CancelledError(), "disconnect")

    def fail(self, error: BaseException, reason: str = "failed") -> None:
        """End the wait with an error, unless every image is made.

        Args:
            reason: why images that still wait are dropped, for the metrics.
        """
        if self.over:
            return
        self._error = error
        self._forget(self, reason)
        self._notify()

    def add(self, part: Part) -> None:
        """Take images that are made; the batcher calls it in the event loop."""
        if self._error is None:
            self._unmade -= len(part.values)
            self._parts.append(part)
            self._notify()

    def _notify(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
