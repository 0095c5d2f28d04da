"""What both clients are: an address, a key, a patience, and requests made from calls."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from mmf_deploy.errors import ConfigError, require

from . import calls
from .replies import no_reply, refusal
from .retry import RETRIED, Patience, Tries, retry_after_s

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")

CONNECT_S = 5.0
"""How long one attempt may take to connect."""

POLL_S = 0.25
"""Longest pause between two looks at /readyz."""

LOOK_S = 5.0
"""How long one look at /readyz may take."""


class BaseClient:
    """Everything about a client but the waiting.

    Args:
        url: of the service, for example http://127.0.0.1:8000; a path prefix is kept.
        api_key: sent as ``Authorization: Bearer``.
        timeout_s: for a whole call: every attempt, and every pause between attempts. In a
            stream: until it begins, and then from image to image.
        max_retries: attempts after the first.
        clock: seconds, monotonic.
    Raises:
        ConfigError: the url or the key cannot be one.
        DependencyError: httpx is missing.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        timeout_s: float = 60.0,
        max_retries: int = 5,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        httpx = require("httpx", "client")
        self.url = calls.base_url(url)
        try:
            httpx.URL(self.url)
        except httpx.InvalidURL as e:
            raise ConfigError(f"url {url!r}: {e}; expected {calls.ADDRESS}") from None
        self.patience = Patience(timeout_s, max_retries)
        self._headers = calls.headers(api_key)
        self._clock = clock

    def image_url(
        self,
        digest: str,
        label: int | None,
        seed: int,
        kind: calls.Kind = "png",
        *,
        guidance: float | None = None,
        size: int | None = None,
        variant: str | None = None,
    ) -> str:
        """The address of one image, which never changes; for <img>, caches and CDNs.

        Args:
            digest: of the bundle, as in ``Images.digest``.
            label: class number; None for models without classes.
            guidance: of models with a guidance scale; their lowest if None.
            size: pixels of height, a multiple of the model's.
            variant: of the bundle; its first if None.
        """
        scale = None if guidance is None else float(guidance)
        query = {"guidance": scale, "size": size, "variant": variant}
        return self.url + calls.image_path(digest, label, seed, kind, query)

    def _tries(self, call: calls.Call[T], patience: Patience | None = None) -> Tries:
        return Tries(patience or self.patience, self._clock, call.deadline_ms)

    def _request(self, call: calls.Call[T], tries: Tries) -> dict[str, Any]:
        """Arguments for httpx's ``build_request``."""
        import httpx

        left_s = max(0.001, tries.left_s)
        return {
            "method": call.method,
            "url": self.url + call.path,
            "content": call.content(tries.deadline_left_ms),
            "headers": {"Accept": call.accept, **self._headers},
            "timeout": httpx.Timeout(left_s, connect=min(left_s, CONNECT_S)),
        }

    def _pause_after_reply(self, reply: httpx.Response, tries: Tries) -> float:
        """Seconds to wait after a reply that is an error; raises it if that is the end."""
        pause_s = None
        if reply.status_code in RETRIED:
            pause_s = tries.pause_s(retry_after_s(reply.headers))
        if pause_s is None:
            raise refusal(reply, tries)
        return pause_s

    def _pause_after_break(self, cause: httpx.RequestError, tries: Tries) -> float:
        """Seconds to wait after an attempt without a reply; raises UnreachableError at the end."""
        import httpx

        again = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ConnectTimeout)
        pause_s = tries.pause_s(None) if isinstance(cause, again) else None
        if pause_s is None:
            timed_out = isinstance(cause, httpx.TimeoutException)
            raise no_reply(self.url, cause, tries, timed_out) from cause
        return pause_s


def limits() -> httpx.Limits:
    """Connections of a client of our own: all that it opens are kept for the next call."""
    import httpx

    return httpx.Limits(max_connections=100, max_keepalive_connections=100)
