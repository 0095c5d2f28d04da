"""Middleware that answers what nobody expected, so that even then a reply is whole."""

from __future__ import annotations

import asyncio
import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .batcher import draining
from .error_replies import SOON, UNEXPECTED, error_reply

log = logging.getLogger(__name__)


class CatchErrors:
    """Turns an exception into a 500 that tells nothing; the log has the story.

    Starlette's own handler is outside of every middleware, so its replies would have no
    request id and its requests no place in the metrics.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; answer if that fails before a reply began."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def noting(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, noting)
        except asyncio.CancelledError:
            # the time to drain is over; without this the server would say 500 in plain text
            if not started:
                error = draining()
                reply = error_reply(scope["path"], error.status, error.code, str(error),
                                    headers=SOON)  # fmt: skip
                await reply(scope, receive, send)
            raise
        except Exception:
            log.exception("%s %s failed", scope["method"][:16], scope["path"][:200])
            if started:
                raise
            reply = error_reply(scope["path"], 500, "internal_error", UNEXPECTED)
            await reply(scope, receive, send)
