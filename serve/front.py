"""What stands before the routes: who may come in, how much, and what is told about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.requests import Request

from .api_keys import KeyRing
from .key_file import Key
from .rate_limit import RateLimiter

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider


@dataclass(frozen=True)
class Front:
    """Options of the application around a service.

    Attributes:
        keys: who may come in; everybody if None.
        cors: origins whose pages may call; none if empty.
        tracing: makes OpenTelemetry spans of requests; none if None.
    """

    keys: KeyRing | None = None
    cors: Sequence[str] = ()
    tracing: TracerProvider | None = None
    limiter: RateLimiter = field(default_factory=RateLimiter)


class KeyLimits:
    """The budgets of the keys that requests came with."""

    def __init__(self, limiter: RateLimiter) -> None:
        self._limiter = limiter

    def take(self, request: Request, model: str, images: int) -> None:
        """Take images of a model from the budget of the request's key.

        Raises:
            RequestError: the key is not for this model.
            OverloadedError: 429, the budget is used up.
        """
        key = key_of(request)
        if key is not None:
            key.allow(model)
        self._limiter.take(key, images)

    def give_back(self, request: Request, images: int) -> None:
        """Return what was taken for work that was refused after all."""
        self._limiter.give_back(key_of(request), images)


def key_of(request: Request) -> Key | None:
    """The key a request came with, where keys are needed."""
    key: Key | None = request.scope.get("state", {}).get("key")
    return key
