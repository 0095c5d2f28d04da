"""Middleware that refuses bodies over a limit, announced or not, and bodies that got lost."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmf_deploy.errors import RequestError


class BodyLimit:
    """Raises RequestError (413) where a handler reads more than ``max_bytes``.

    And 400 where nothing is left of a body: uvicorn's fast parser drops those of requests that
    offer to upgrade, as some clients do by default; answered as `{}` they would seem to work.

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
        may_be_lost = _offers_to_upgrade(scope)

        async def counting() -> Message:
            nonlocal seen
            if seen <= self.max_bytes:
                message = await receive()
                seen += len(message.get("body", b""))
                if may_be_lost and not seen and message["type"] == "http.request":
                    raise RequestError(
                        "an offer to upgrade the protocol cost this request its body; "
                        "leave out the header Upgrade, or use HTTP/1.1 without HTTP/2",
                        status=400,
                        code="upgrade_not_supported",
                    )
                if seen <= self.max_bytes:
                    return message
            raise RequestError(
                f"the body exceeds {self.max_bytes} bytes", status=413, code="body_too_large"
            )

        await self.app(scope, counting, send)


def _offers_to_upgrade(scope: Scope) -> bool:
    names = {name for name, _ in scope["headers"]}
    return b"upgrade" in names and (_announced(scope) > 0 or b"transfer-encoding" in names)


def _announced(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value[:20])
    return 0
