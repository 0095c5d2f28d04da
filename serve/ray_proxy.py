"""What Ray's HTTP proxies do when a replica dies under a request: ask another one, once.

Ray's proxy answers such a request with a bare 500. Images depend on nothing but the request, so
making them again is safe. Ray takes the middleware from the environment variable
RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=mmf_deploy.serve.ray_proxy:middlewares.
"""

from __future__ import annotations

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .error_replies import SOON, error_reply

MAX_KEPT_BYTES = 1 << 20
"""Of a request's body, to send it again; a larger request is not tried again."""

LOST = "the replica that had this request died, and so did the next; try again"


def middlewares() -> list[Middleware]:
    """For every proxy."""
    return [Middleware(SecondTry)]


class Attempt:
    """One call of an application: what it read of the request, whether it began a reply."""

    def __init__(self, receive: Receive, send: Send, again: list[Message]) -> None:
        self._receive, self._send = receive, send
        self._again = list(again)
        self.read: list[Message] = []
        self.size = 0
        self.gone = False
        self.replied = False

    async def receive(self) -> Message:
        """What was read before, then what comes."""
        message = self._again.pop(0) if self._again else await self._receive()
        self.gone = self.gone or message["type"] == "http.disconnect"
        self.size += len(message.get("body", b""))
        if self.size <= MAX_KEPT_BYTES:
            self.read.append(message)
        return message

    async def send(self, message: Message) -> None:
        """Pass a part of the reply on."""
        self.replied = True
        await self._send(message)


class SecondTry:
    """Middleware that calls the application again if it returned without any reply."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; again, if its replica died before it began to answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        read: list[Message] = []
        for _ in range(2):
            attempt = Attempt(receive, send, read)
            await self.app(dict(scope), attempt.receive, attempt.send)
            if attempt.replied or attempt.gone:
                return
            if attempt.size > MAX_KEPT_BYTES:
                break
            read = attempt.read
        reply = error_reply(scope["path"], 503, "replica_lost", LOST, None, SOON)
        await reply(scope, receive, send)
