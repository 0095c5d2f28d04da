"""`mmf-demo` after its options are read: port, backend, page, server."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from mmf_deploy.embedded import digits_bundle
from mmf_deploy.errors import ConfigError, MMFError, require

from ..listen import listen
from .backend import Backend, local, remote
from .door import Door
from .guests import Guest, guests

CLOSE_S = 1
"""How long open pages may keep the server from ending."""

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Settings:
    """The options of the command.

    Attributes:
        max_users: clicks of one kind that are answered at the same time.
        max_queue: clicks that may wait.
    """

    bundle: Path | None = None
    url: str | None = None
    api_key: str | None = None
    host: str = "127.0.0.1"
    port: int = 7860
    share: bool = False
    auth: tuple[str, ...] = ()
    auth_file: Path | None = None
    threads: int | None = None
    max_users: int = 16
    max_queue: int = 128


def launch(settings: Settings) -> None:
    """Serve the page until a signal comes.

    Raises:
        MMFError: an option is wrong, the port, the bundle or the service is not usable.
    """
    allowed = guests(settings.auth, settings.auth_file)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported
    with _listening(settings) as listener, backend(settings) as opened:
        require("gradio", "demo")  # takes seconds: what is wrong with the options is said before
        application = page(opened, settings, allowed)
        address = _address(listener)
        public = _share(listener, allowed) if settings.share else None
        about = opened.about
        ready = f"demo of {about.name} ({about.where}) on {address}"
        serve(application, listener, ready if public is None else f"{ready} and {public}")


def backend(settings: Settings) -> AbstractContextManager[Backend]:
    """The backend that the options ask for.

    Raises:
        ConfigError: options that exclude each other.
    """
    if settings.url is None:
        return local(settings.bundle or digits_bundle(), settings.threads)
    for option, given in (("BUNDLE", settings.bundle), ("--threads", settings.threads)):
        if given is not None:
            raise ConfigError(f"{option} {given} with --url: the service has its own; leave it out")
    return remote(settings.url, settings.api_key)


def page(backend: Backend, settings: Settings, allowed: list[Guest]) -> Any:
    """The ASGI application of the page."""
    import gradio as gr
    from fastapi import FastAPI

    from .about import description, title
    from .app import build
    from .theme import HEAD, theme

    blocks = build(backend)
    blocks.queue(max_size=settings.max_queue, default_concurrency_limit=settings.max_users)
    outer = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    gr.mount_gradio_app(
        outer,
        blocks,
        path="/",
        auth=allowed or None,
        auth_message=f"{escape(backend.about.name)}: this demo asks for a name and a password.",
        theme=theme(),
        head=HEAD,
        favicon_path=str(HERE / "favicon.svg"),
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        show_error=False,
    )
    return Door(outer, title(backend.about), description(backend.about))


def serve(application: Any, listener: socket.socket, ready: str) -> None:
    """Answer until a signal comes; says ``ready`` on stdout when it does."""
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                print(ready, flush=True)

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            """Signals end the server; uvicorn's own version raises them again afterwards."""
            ends = (signal.SIGINT, signal.SIGTERM)
            before = {s: signal.signal(s, self.handle_exit) for s in ends}
            try:
                yield
            finally:
                for s, handler in before.items():
                    signal.signal(s, handler)

    config = uvicorn.Config(
        application,
        log_level="critical",
        lifespan="on",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=CLOSE_S,
    )
    server = Server(config)
    server.run(sockets=[listener])
    if not server.started:
        raise MMFError("the page did not start; --debug shows why")


def _listening(settings: Settings) -> socket.socket:
    try:
        return listen(settings.host, settings.port)
    except ConfigError as e:
        raise ConfigError(str(e).replace("mmf-serve", "mmf-demo")) from e


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _share(listener: socket.socket, allowed: list[Guest]) -> str:
    """The public address; a program of Gradio's keeps it as long as this process lives."""
    from gradio.networking import setup_tunnel

    if not allowed:
        print("whoever has the public address can use this demo; --auth asks for a password",
              file=sys.stderr)  # fmt: skip
    host, port = listener.getsockname()[:2]
    try:
        return setup_tunnel(host, port, secrets.token_urlsafe(32), None, None)
    except Exception as e:
        # whatever it was: a network that does not let it, a file that cannot be written
        raise MMFError(
            f"--share: no public address could be had ({' '.join(str(e).split())}); "
            "start without --share"
        ) from e
