"""A service on a real socket, and a client that speaks raw bytes to it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn
from mmf_deploy.serve.app import create_app
from mmf_deploy.serve.front import Front
from mmf_deploy.serve.listen import listen
from mmf_deploy.serve.server import protocol
from mmf_deploy.serve.service import Service, State

PATIENCE_S = 20


class _Server(uvicorn.Server):
    loop: asyncio.AbstractEventLoop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        await super().startup(sockets)


@dataclass(frozen=True)
class Live:
    """A service that listens on ``port``; its loop runs in another thread."""

    service: Service
    server: _Server
    port: int

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """What a function, or a coroutine function, gives in the server's loop."""

        async def inside() -> Any:
            found = function(*args)
            return await found if asyncio.iscoroutine(found) else found

        return asyncio.run_coroutine_threadsafe(inside(), self.server.loop).result(PATIENCE_S)


@contextmanager
def live(service: Service, front: Front | None = None) -> Iterator[Live]:
    """A service behind uvicorn, configured as ``mmf-serve`` does it."""
    reached = threading.Event()
    service.on_state = lambda state: reached.set() if state is State.READY else None
    config = uvicorn.Config(
        create_app(service, front),
        log_config=None,
        access_log=False,
        http=protocol(),
        ws="none",
        lifespan="on",
        server_header=False,
        timeout_graceful_shutdown=PATIENCE_S,
    )
    server, listener = _Server(config), listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        assert reached.wait(PATIENCE_S), service.failure
        yield Live(service, server, listener.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)
        listener.close()
        assert not thread.is_alive(), "the server did not stop"


def wait_until(condition: Callable[[], object], why: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, why
        time.sleep(0.01)


def open_files() -> int:
    return len(os.listdir("/dev/fd"))


@dataclass(frozen=True)
class Reply:
    """What came back; ``headers`` by lower-case name."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class GoneError(Exception):
    """The server closed the connection before a whole reply came."""


class Wire:
    """One connection, byte by byte."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._buffer = b""

    async def send(self, content: bytes) -> None:
        """Send everything, unless the server is gone."""
        try:
            await self._loop.sock_sendall(self._sock, content)
        except OSError as e:
            raise GoneError(f"while sending: {e}") from None

    async def _more(self) -> None:
        try:
            got = await self._loop.sock_recv(self._sock, 1 << 16)
        except OSError as e:
            raise GoneError(f"while reading: {e}") from None
        if not got:
            raise GoneError(f"after {self._buffer[:200]!r}")
        self._buffer += got

    async def _until(self, mark: bytes) -> bytes:
        while mark not in self._buffer:
            await self._more()
        found, _, self._buffer = self._buffer.partition(mark)
        return found

    async def _exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            await self._more()
        found, self._buffer = self._buffer[:count], self._buffer[count:]
        return found

    async def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers of the next reply."""
        first, *lines = (await self._until(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = (line.partition(": ") for line in lines)
        return int(first.split()[1]), {name.lower(): value for name, _, value in pairs}

    async def pieces(self, headers: dict[str, str]) -> AsyncIterator[bytes]:
        """The body that follows, as it comes: chunk by chunk, or all of it."""
        if headers.get("transfer-encoding") != "chunked":
            yield await self._exactly(int(headers.get("content-length", 0)))
            return
        while size := int(await self._until(b"\r\n"), 16):
            yield await self._exactly(size)
            assert await self._exactly(2) == b"\r\n"
        assert await self._exactly(2) == b"\r\n"

    async def reply(self, head: bool = False) -> Reply:
        """The next whole reply.

        Args:
            head: the request was HEAD, so that no body follows.
        Raises:
            GoneError: it did not come.
        """

        async def read() -> Reply:
            status, headers = await self.head()
            body = b"" if head else b"".join([piece async for piece in self.pieces(headers)])
            return Reply(status, headers, body)

        return await asyncio.wait_for(read(), PATIENCE_S)

    async def closed(self) -> bytes:
        """Everything that comes until the server closes."""

        async def read() -> None:
            while True:
                await self._more()

        try:
            await asyncio.wait_for(read(), PATIENCE_S)
        except GoneError:
            return self._buffer

    def close(self, reset: bool = False) -> None:
        """Leave, politely or as a process that died with unread bytes."""
        if reset:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()


async def connect(port: int) -> Wire:
    """A new connection."""
    sock = socket.socket()
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    except BaseException:
        sock.close()
        raise
    return Wire(sock)


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Wire]:
    """A new connection, closed at the end."""
    wire = await connect(port)
    try:
        yield wire
    finally:
        wire.close()


def bounded(work: Coroutine[Any, Any, Any], seconds: float = PATIENCE_S) -> Any:
    """Run a coroutine that must end in time."""
    return asyncio.run(asyncio.wait_for(work, seconds))


def request(
    method: str, path: str | bytes, body: bytes = b"", headers: dict[str, str] | None = None
) -> bytes:
    """A request as bytes, with its length unless the headers say it."""
    given = {"host": "test", **(headers or {})}
    if "content-length" not in given and "transfer-encoding" not in given and body:
        given["content-length"] = str(len(body))
    lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    target = path if isinstance(path, bytes) else path.encode()
    return b"%s %s HTTP/1.1\r\n%s\r\n" % (method.encode(), target, lines.encode("latin-1")) + body
