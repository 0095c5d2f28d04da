"""Middleware that refuses bodies over a limit, announced or not."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmf_deploy.errors import RequestError


class BodyLimit:
    """Raises RequestError (413) where a handler reads more than ``max_bytes``.

    Pure ASGI: behind Starlette's BaseHTTPMiddleware a handler would never learn that its
    client has left.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a counting ``receive``."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        # an announced length is refused before the first byte is taken
        seen = _announced(scope) if _announced(scope) > self.max_bytes else 0

        async def counting() -> Message:
            nonlocal seen
            if seen <= self.max_bytes:
                message = await receive()
                seen += len(message.get("body", b""))
                if seen <= self.max_bytes:
                    return message
            raise RequestError(
                f"the body exceeds {self.max_bytes} bytes", status=413, code="body_too_large"
            )

        await self.app(scope, counting, send)


def _announced(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value[:20])
    return 0
