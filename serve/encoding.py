"""The encoding pool: images to PNG, JPEG or WebP beside the event loop, as soon as each is made."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from numpy.typing import NDArray

from .samples import Item

INLINE_S = 200e-6
"""Work shorter than this is done at once: handing it to a thread costs about as much."""

CHUNK_S = 2e-3
"""About how much of one part a thread takes at a time."""

SMOOTHING = 0.1

T = TypeVar("T")
Encode = Callable[[Item, NDArray[Any]], T]


class Encoder:
    """Encodes images, and knows how many wait and what they cost.

    Args:
        threads: that encode at the same time.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.waiting = 0  # images handed to the pool and not encoded yet
        self._waiting_s = 0.0  # what they are predicted to cost one thread
        self._image_s: dict[object, float] = {}  # by kind of encoding
        self._pool: ThreadPoolExecutor | None = None

    def start(self) -> None:
        """Make the pool."""
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="encode")

    def close(self) -> None:
        """End the pool, once its work is done."""
        if self._pool is not None:
            self._pool.shutdown()

    async def run(self, work: Callable[[], T]) -> T:
        """Run something that would hold up the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    @property
    def backlog_s(self) -> float:
        """Predicted seconds until what waits is encoded."""
        return self._waiting_s / self.threads

    def predicted_s(self, kind: object, images: int) -> float:
        """Predicted seconds to encode images when nothing else waits; 0 if nobody knows yet."""
        return self._image_s.get(kind, 0.0) * images / min(self.threads, images)

    def forget(self) -> None:
        """Forget what encoding costs: the first time of each kind is not like the others."""
        self._image_s.clear()

    def now(
        self, kind: object, encode: Encode[T], items: Sequence[Item], values: NDArray[Any]
    ) -> list[T] | None:
        """Encode images here and now if that is quick; None if it is not, or nobody knows yet."""
        predicted_s = self._image_s.get(kind)
        if predicted_s is None or predicted_s * len(items) > INLINE_S:
            return None
        return self._encode(kind, encode, items, values)

    async def encode(
        self, kind: object, encode: Encode[T], items: Sequence[Item], values: NDArray[Any]
    ) -> list[T]:
        """Encode images in order, in the pool.

        Args:
            kind: what is done to them, as far as its cost goes: format and size.
        """
        predicted_s = self._image_s.get(kind)
        size = 1 if predicted_s is None else max(1, int(CHUNK_S / max(predicted_s, 1e-9)))
        chunks = [slice(k, k + size) for k in range(0, len(items), size)]
        parts = await asyncio.gather(*(self._in_pool(kind, encode, items[c], values[c])
                                       for c in chunks))  # fmt: skip
        return parts[0] if len(parts) == 1 else [done for part in parts for done in part]

    async def _in_pool(
        self, kind: object, encode: Encode[T], items: Sequence[Item], values: NDArray[Any]
    ) -> list[T]:
        seconds = self._image_s.get(kind, 0.0) * len(items)
        self.waiting += len(items)
        self._waiting_s += seconds
        try:
            return await self.run(lambda: self._encode(kind, encode, items, values))
        finally:
            self.waiting -= len(items)
            # no images, no seconds: sums of floats do not come back to zero by themselves
            self._waiting_s = self._waiting_s - seconds if self.waiting else 0.0

    def _encode(
        self, kind: object, encode: Encode[T], items: Sequence[Item], values: NDArray[Any]
    ) -> list[T]:
        started = time.perf_counter()
        done = [encode(item, value) for item, value in zip(items, values, strict=True)]
        each_s = (time.perf_counter() - started) / len(items)
        before = self._image_s.get(kind, each_s)
        self._image_s[kind] = before + SMOOTHING * (each_s - before)
        return done
