"""The socket and the uvicorn server: bound first, drained last."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Iterator
from types import FrameType

import uvicorn

from .app import create_app
from .service import Service, State

DRAIN_S = 30
"""How long clients get to take their replies after a signal to stop."""


class Server(uvicorn.Server):
    """Uvicorn that turns readiness red at a signal, drains, and then returns."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM; uvicorn's own version raises them again at the end."""
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {s: signal.signal(s, self.handle_exit) for s in signals}
        try:
            yield
        finally:
            for s, handler in before.items():
                signal.signal(s, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, a second SIGINT gives up waiting."""
        self._service.drain()
        super().handle_exit(sig, frame)


def serve(service: Service, listener: socket.socket, log_level: str = "warning") -> None:
    """Serve until a signal comes or the service fails.

    Raises:
        Exception: why the service failed to open.
    """
    # everything on stderr: stdout belongs to the one line that scripts read
    logging.basicConfig(
        stream=sys.stderr, level=log_level.upper(), format="%(levelname)s %(message)s"
    )
    config = uvicorn.Config(
        create_app(service),
        log_config=None,
        access_log=log_level in ("debug", "info"),
        ws="none",
        lifespan="on",
        server_header=False,
        timeout_graceful_shutdown=DRAIN_S,
    )
    server = Server(config, service)

    def on_state(state: State) -> None:
        if state is State.READY:
            _announce(service, listener)
        elif state is State.FAILED:
            server.should_exit = True

    service.on_state = on_state
    server.run(sockets=[listener])
    if service.failure is not None:
        raise service.failure


def _announce(service: Service, listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    bundle = service.bundle
    print(f"serving {bundle.manifest.name} ({bundle.digest[:12]}) on http://{address}", flush=True)
