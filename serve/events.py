"""Server-sent events: a reply that is written as things happen (WHATWG HTML, 9.2)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mmf_deploy.errors import RequestError

from .disconnect import ClientGoneError
from .error_replies import UNEXPECTED, error_body, log_failure
from .render import dumps


def event(name: str | None, data: Any) -> bytes:
    """One event; unnamed if the protocol names it in its data alone."""
    first = b"" if name is None else b"event: " + name.encode() + b"\n"
    return first + b"data: " + dumps(data) + b"\n\n"


class EventStream(Response):
    """Sends events as they come.

    What fails before the first event is answered with its own status, as for any other reply;
    what fails later is the last event, ``error``, in the format of the path's protocol.

    Args:
        events: gives encoded events; closed at the end, whatever ends it. Until the first one is
            there ``headers`` can still be changed.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[bytes, None], headers: dict[str, str] | None = None
    ) -> None:
        # proxies must neither keep nor collect it
        plain = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", **(headers or {})}
        super().__init__(None, headers=plain)
        self.raw_headers = [(k, v) for k, v in self.raw_headers if k != b"content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the head with the first event, and then the others."""
        async with aclosing(self._events) as events:
            try:
                chunk = await anext(events)
            except StopAsyncIteration:
                chunk = b""
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                while chunk:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                    chunk = await anext(events, b"")
            except ClientGoneError:
                return
            except Exception as e:
                await send(_last(scope["path"], e))
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def _last(path: str, error: Exception) -> dict[str, Any]:
    if isinstance(error, RequestError):
        content = error_body(path, error.status, error.code, str(error), error.field)
    else:
        log_failure("a stream failed", error)
        content = error_body(path, 500, "internal_error", UNEXPECTED)
    return {"type": "http.response.body", "body": event("error", content), "more_body": True}
