"""Rate limits in images: one token bucket a key."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmf_deploy.errors import OverloadedError, RequestError

from .key_file import Key

_ROUNDING = 1e-3  # images; who waits exactly as long as told is never a rounding error short


@dataclass(slots=True)
class _Bucket:
    images: float
    at_s: float


class RateLimiter:
    """Takes images out of a key's bucket, which fills at its ``images_per_s`` up to its ``burst``.

    Keys without a rate, and requests without a key, have no limit. Not locked: called from
    the event loop. What a reload changes about a key holds from the next call on.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}

    def take(self, key: Key | None, images: int) -> None:
        """Take ``images`` at once, or none.

        Raises:
            OverloadedError: 429; says exactly when they will be there.
            RequestError: they would never be: more than the bucket holds.
        """
        if key is None or key.images_per_s is None or key.largest is None:
            return
        if images > key.largest:
            raise RequestError(
                f"{images} images at once; key {key.name!r} allows at most {key.largest} "
                "in one request, ask for fewer",
                code="over_burst",
            )
        bucket = self._filled(key, key.largest, key.images_per_s)
        missing = images - bucket.images
        if missing > _ROUNDING:
            wait_s = missing / key.images_per_s
            raise OverloadedError(
                f"key {key.name!r} is over its rate of {key.images_per_s:g} images/s; "
                f"{images} images are free in {wait_s * 1000:.0f} ms",
                retry_after_s=wait_s,
                status=429,
                code="rate_limited",
                reason="rate_limit",
            )
        bucket.images -= images

    def give_back(self, key: Key | None, images: int) -> None:
        """Return what was taken for images that will not be made."""
        if key is not None and key.images_per_s is not None and key.largest is not None:
            bucket = self._filled(key, key.largest, key.images_per_s)
            bucket.images += images  # what runs over is cut off at the next look

    def headers(self, key: Key | None) -> dict[str, str]:
        """What a reply says about its key's limit; empty without one.

        The limit is the bucket's size, ``reset`` the whole seconds until it is full again.
        """
        if key is None or key.images_per_s is None or key.largest is None:
            return {}
        bucket = self._filled(key, key.largest, key.images_per_s)
        full_in_s = (key.largest - bucket.images) / key.images_per_s
        return {
            "x-ratelimit-limit-images": str(key.largest),
            "x-ratelimit-remaining-images": str(math.floor(bucket.images + _ROUNDING)),
            "x-ratelimit-reset": str(math.ceil(full_in_s - _ROUNDING)),
        }

    def _filled(self, key: Key, largest: int, images_per_s: float) -> _Bucket:
        """The key's bucket with what has flowed in until now; a new one is full."""
        now = self._clock()
        bucket = self._buckets.setdefault(key.name, _Bucket(largest, now))
        bucket.images = min(bucket.images + (now - bucket.at_s) * images_per_s, largest)
        bucket.at_s = now
        return bucket


class RateLimitHeaders:
    """Middleware, behind Auth: every reply to a key with a limit says how much is left of it."""

    def __init__(self, app: ASGIApp, limiter: RateLimiter) -> None:
        self.app = app
        self.limiter = limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; add the headers as the reply starts."""
        key = scope.get("state", {}).get("key")
        if scope["type"] != "http" or key is None or key.images_per_s is None:
            await self.app(scope, receive, send)
            return

        async def with_limit(message: Message) -> None:
            if message["type"] == "http.response.start":
                found = self.limiter.headers(key).items()
                added = [(name.encode(), value.encode()) for name, value in found]
                message["headers"] = [*message.get("headers", ()), *added]
            await send(message)

        await self.app(scope, receive, with_limit)
