"""What stands before Gradio: doors that are shut, and a page that introduces itself."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from html import escape
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

SHUT = ("/gradio_api/upload", "/gradio_api/proxy=", "/monitoring")
"""Doors of Gradio that this demo has no use for: uploads fill a disk."""

THEIRS = re.compile(rb'\s*<meta\s+(?:property|name)="(?:og|twitter):[^>]*>')
"""What a link to the page would look like in a chat: Gradio's own name and picture."""


class Door:
    """An application of Gradio's, seen by a visitor.

    Args:
        title, description: of the page, as text.
    """

    def __init__(self, inner: Application, title: str, description: str) -> None:
        self._inner = inner
        self._head = (
            f"<title>{escape(title)}</title>"
            f'<meta name="description" content="{escape(description)}">'
            f'<meta property="og:title" content="{escape(title)}">'
            f'<meta property="og:description" content="{escape(description)}">'
            '<link rel="icon" type="image/svg+xml" href="favicon.ico"></head>'
        ).encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http" and scope["path"].startswith(SHUT):
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b""})
        elif scope["type"] == "http" and scope["path"] == "/" and scope["method"] == "GET":
            await self._page(scope, receive, send)
        else:
            await self._inner(scope, receive, send)

    async def _page(self, scope: Message, receive: Receive, send: Send) -> None:
        """The page with a head of its own."""
        kept: list[Message] = []

        async def keep(message: Message) -> None:
            kept.append(message)

        # as it is, not compressed: it is to be read
        plain = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
        await self._inner({**scope, "headers": plain}, receive, keep)
        start, body = kept[0], b"".join(message.get("body", b"") for message in kept[1:])
        body = THEIRS.sub(b"", body).replace(b"</head>", self._head, 1)
        headers = [(n, v) for n, v in start["headers"] if n.lower() != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        await send({**start, "headers": headers})
        await send({"type": "http.response.body", "body": body})
