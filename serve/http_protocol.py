"""HTTP/1.1 as uvicorn speaks it with httptools, with an end to what a request's head may take.

The parser itself has none: a header of 100 MB would be kept, and so would a connection whose
head never ends.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .error_replies import error_body
from .render import dumps

MAX_HEAD_BYTES = 64 << 10
"""Of request line and headers."""

HEAD_S = 10.0
"""From the first byte of a head to its last."""


class BoundedHttpProtocol(HttpToolsProtocol):
    """Answers 431 to a head that is too large, 408 to one that takes too long, as JSON."""

    _head_bytes = 0
    _in_head = False
    _deaf = False
    _timer: asyncio.TimerHandle | None = None

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = 0
        self._timer = self.loop.call_later(HEAD_S, self._too_slow)

    def on_headers_complete(self) -> None:
        """A head ends."""
        self._head_ended()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Pass on what came, unless a head goes on and on."""
        if self._deaf:
            return
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                kib = MAX_HEAD_BYTES >> 10
                self._refuse(431, "head_too_large", f"request line and headers exceed {kib} KiB")

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more will come."""
        self._head_ended()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        self._refuse(400, "invalid_http", "this is not a valid HTTP request")

    def _head_ended(self) -> None:
        self._in_head = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        if not self.transport.is_closing():
            self._refuse(408, "head_too_slow", f"the headers took longer than {HEAD_S:g} s")

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._head_ended()
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete and not cycle.more_body:
            # what came before was a whole request: it is answered, and nothing after it is heard
            cycle.keep_alive = False
            self._deaf = True
            return
        if cycle is None or cycle.response_complete or not cycle.response_started:
            body = dumps(error_body("/", status, code, message))
            lines = (
                f"HTTP/1.1 {status} {code.replace('_', ' ')}",
                "content-type: application/json",
                f"content-length: {len(body)}",
                "connection: close",
            )
            self.transport.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        self.transport.close()
