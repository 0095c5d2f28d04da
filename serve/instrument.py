"""Middleware that counts and times every request, and closes connections while draining."""

from __future__ import annotations

import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .metrics import Metrics

UNMATCHED = "unmatched"
METHODS = {"GET", "HEAD", "POST", "OPTIONS", "PUT", "DELETE", "PATCH"}


class Instrument:
    """Counts requests by route, never by path: a client cannot make up new time series.

    Args:
        draining: whether replies shall ask clients to open another connection elsewhere.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, draining: Callable[[], bool]) -> None:
        self.app = app
        self.metrics = metrics
        self.draining = draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, with the time it took in its reply."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500

        async def timed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message.setdefault("headers", [])
                total = f"total;dur={(time.perf_counter() - started) * 1000:.3f}".encode()
                headers = [(k, v + b", " + total if k == b"server-timing" else v)
                           for k, v in headers]  # fmt: skip
                if not any(k == b"server-timing" for k, _ in headers):
                    headers.append((b"server-timing", total))
                if self.draining() and not any(k == b"connection" for k, _ in headers):
                    headers.append((b"connection", b"close"))
                message["headers"] = headers
            await send(message)

        self.metrics.in_flight.inc()
        try:
            await self.app(scope, receive, timed)
        finally:
            self.metrics.in_flight.dec()
            route = getattr(scope.get("route"), "path", UNMATCHED)
            method = scope["method"] if scope["method"] in METHODS else "other"
            self.metrics.requests.labels(route, method, str(status)).inc()
            self.metrics.request_seconds.labels(route).observe(time.perf_counter() - started)
