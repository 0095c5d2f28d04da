"""Middleware that names every request and writes one line about it."""

from __future__ import annotations

import logging
import random
import re
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .log_format import request_id

access = logging.getLogger("mmf.access")

HEADER = b"x-request-id"
MAX_PATH_CHARS = 200

_random = random.Random()
_acceptable = re.compile(rb"[A-Za-z0-9._-]{1,128}").fullmatch


class RequestLog:
    """Gives every request an id, and the log a line when its reply is over.

    The id is the client's X-Request-Id if that has 1 to 128 of A-Z a-z 0-9 . _ -, else a
    random one. It is in scope["state"]["request_id"], in the reply's headers, and in
    everything that is logged meanwhile. The line has neither query, headers nor key; what
    routes put into the dict scope["state"]["log"] is added to it. Put it outside of
    everything else.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, then log it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        name = _id_of(scope)
        scope.setdefault("state", {})["request_id"] = name
        token = request_id.set(name)
        header = (HEADER, name.encode())
        status = 0

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), header]
            await send(message)

        try:
            await self.app(scope, receive, named)
        except BaseException as e:
            # the id stays set: the server logs the traceback, and it shall have it
            _log(scope, status or (500 if isinstance(e, Exception) else 499), began)
            raise
        _log(scope, status or 500, began)
        request_id.reset(token)


def _id_of(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == HEADER:
            if _acceptable(value):
                return str(value, "ascii")
            break
    # not os.urandom: a system call that gives the interpreter away, on every request
    return f"{_random.getrandbits(64):016x}"


def _log(scope: Scope, status: int, began: float) -> None:
    if not access.isEnabledFor(logging.INFO):
        return
    # without findCaller, which costs more than all the rest
    record = access.makeRecord(access.name, logging.INFO, "", 0, "", (), None)
    record.fields = _fields(scope, status, (time.perf_counter() - began) * 1000)
    access.handle(record)


def _fields(scope: Scope, status: int, duration_ms: float) -> dict[str, Any]:
    state: dict[str, Any] = scope["state"]
    client, key = scope.get("client"), state.get("key")
    fields: dict[str, Any] = {
        "request_id": state["request_id"],
        "method": scope["method"][:16],
        "path": scope["path"][:MAX_PATH_CHARS],
        "status": status,
        "duration_ms": round(duration_ms, 3),
        "client": client[0] if client else None,
        "key": key.name if key is not None else None,
    }
    if "trace_id" in state:
        fields["trace_id"] = state["trace_id"]
    for name, value in state.get("log", {}).items():
        fields.setdefault(name, round(value, 3) if isinstance(value, float) else value)
    return fields
