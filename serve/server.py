"""The socket and the uvicorn server: bound first, drained last."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import select
import signal
import socket
from collections.abc import Coroutine, Iterator
from types import FrameType
from typing import Any, Literal

import uvicorn

from .app import create_app
from .front import Front
from .service import Service, State
from .watching import Watch

DRAIN_S = 30
"""How long clients get to take their replies after a signal to stop."""

KEEP_ALIVE_S = 75
"""How long an idle connection stays open: longer than load balancers keep theirs (60 s)."""

ACCEPT_ROUNDS = 1000
"""How often to look for a moment in which nobody is about to connect, before giving up."""

GREETING_ROUNDS, GREETING_ROUND_S = 200, 0.01
"""How often to look, and after how many seconds again, whether who connected has asked for
something: 2 s in all."""


class Server(uvicorn.Server):
    """Uvicorn that turns readiness red at a signal, drains, and then returns.

    After the signal requests are still taken for ``drain_delay_s``, each reply closing its
    connection, so that clients with open connections move away instead of meeting a reset.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        watch: Watch | None = None,
        drain_delay_s: float = 0.0,
    ) -> None:
        super().__init__(config)
        self._service = service
        self._watch = watch
        self._drain_delay_s = drain_delay_s
        self._tasks: set[asyncio.Task[object]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and begin to look for new bundles."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self._watch is not None:
            self._spawn(self._watch.run())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, answer what is on its way, then close."""
        for task in self._tasks:
            task.cancel()
        if self._drain_delay_s > 0 and not self.force_exit:
            await self._stop_listening(sockets or [])
        closing = asyncio.create_task(super().shutdown(sockets))
        # uvicorn looks for a second Ctrl+C while clients take their replies, and then no more
        while not closing.done() and not self.force_exit:
            await asyncio.wait({closing}, timeout=0.1)
        if closing.done():
            closing.result()

    async def _stop_listening(self, sockets: list[socket.socket]) -> None:
        """Take whoever has connected already, nobody else, and let them send their request.

        Closing a socket resets the connections in its queue, so it is closed at a moment when
        there are none, and when no more than one could come. A connection that was just taken
        looks idle to uvicorn, which would close it before its request is there: it gets some time.
        Rounds are counted, not seconds, so that a machine that stands still takes nobody's turn.
        """
        for listener in sockets:
            listener.listen(0)  # who comes now tries again later, and is refused then
        for _ in range(ACCEPT_ROUNDS):
            if not select.select(sockets, [], [], 0)[0]:
                break
            await asyncio.sleep(0)
        for server in self.servers:
            server.close()
        for listener in sockets:
            listener.close()
        for turn in range(GREETING_ROUNDS):
            await asyncio.sleep(GREETING_ROUND_S)
            # what was taken last takes some turns of the loop to become a connection of uvicorn's
            known = turn >= 2 and all(map(_has_asked, self.server_state.connections))
            if known or self.force_exit:
                break

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle SIGINT, SIGTERM and SIGHUP; uvicorn's own version raises them again at the end."""
        handlers = {
            signal.SIGINT: self.handle_exit,
            signal.SIGTERM: self.handle_exit,
            signal.SIGHUP: self._handle_reload,
        }
        before = {s: signal.signal(s, handler) for s, handler in handlers.items()}
        try:
            yield
        finally:
            for s, handler in before.items():
                signal.signal(s, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, a second SIGINT gives up waiting."""
        first = self._service.state is State.READY
        self._service.drain()
        if first and self._loop is not None and self._drain_delay_s > 0:
            self._loop.call_soon_threadsafe(self._leave_later)
        else:
            super().handle_exit(sig, frame)

    def _leave_later(self) -> None:
        asyncio.get_running_loop().call_later(
            self._drain_delay_s, setattr, self, "should_exit", True
        )

    def _handle_reload(self, sig: int, frame: FrameType | None) -> None:
        if self._loop is not None:
            # a signal comes in the middle of some request, whose id is not the reload's
            self._loop.call_soon_threadsafe(
                lambda: self._spawn(self._service.reload()), context=contextvars.Context()
            )

    def _spawn(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def serve(
    service: Service,
    listener: socket.socket,
    front: Front | None = None,
    watch: Watch | None = None,
    drain_delay_s: float = 0.0,
    log_level: str = "warning",
) -> None:
    """Serve until a signal comes or the service fails.

    Raises:
        Exception: why the service failed to open.
    """
    config = uvicorn.Config(
        create_app(service, front),
        log_config=None,
        log_level=log_level,
        access_log=False,  # the request log has more
        http=protocol(),
        ws="none",
        lifespan="on",
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=DRAIN_S,
    )
    server = Server(config, service, watch, drain_delay_s)

    def on_state(state: State) -> None:
        if state is State.READY:
            _settle_memory()
            _announce(service, listener)
        elif state is State.FAILED:
            server.should_exit = True

    service.on_state = on_state
    server.run(sockets=[listener])
    if service.failure is not None:
        raise service.failure


def _has_asked(connection: asyncio.Protocol) -> bool:
    """Whether the head of some request has come through a connection of uvicorn's."""
    return getattr(connection, "cycle", None) is not None


def protocol() -> type[asyncio.Protocol] | Literal["h11"]:
    """What speaks HTTP to clients."""
    try:
        from .http_protocol import BoundedHttpProtocol
    except ModuleNotFoundError:  # httptools is an extra of uvicorn; h11 has limits of its own
        return "h11"
    return BoundedHttpProtocol


def _settle_memory() -> None:
    """Take everything that is loaded out of the garbage collector's sight.

    It would look through all of it, again and again, which stops every request for tens of
    milliseconds.
    """
    gc.collect()
    gc.freeze()


def _announce(service: Service, listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    models = ", ".join(f"{m.name} ({m.loaded.digest[:12]})" for m in service.models.values())
    print(f"serving {models} on http://{address}", flush=True)
