"""The HTTP application of a service."""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from mmf_deploy import __version__

from . import error_replies
from .auth import Auth
from .body_limit import BodyLimit
from .catch_errors import CatchErrors
from .front import Front, KeyLimits
from .instrument import Instrument
from .rate_limit import RateLimitHeaders
from .request_log import RequestLog
from .routes import ROUTES
from .service import Service, State

log = logging.getLogger(__name__)

CLOSE_S = 30
"""How long engines get to end once no client is left."""

EXPOSED = [
    "ETag", "Inference-Header-Content-Length", "Retry-After", "Retry-After-Ms", "Server-Timing",
    "X-MMF-Bundle", "X-MMF-Dtype", "X-MMF-Guidance", "X-MMF-Labels", "X-MMF-Model", "X-MMF-Seeds",
    "X-MMF-Shape", "X-MMF-Variant", "X-RateLimit-Limit-Images", "X-RateLimit-Remaining-Images",
    "X-RateLimit-Reset", "X-Request-Id", "WWW-Authenticate",
]  # fmt: skip

# the framework's own traces would hold queries and the texts of exceptions
QUIET: dict[str, Any] = {
    "telemetry": dict.fromkeys(
        ("tracing", "metrics", "logs", "operation_spans", "auto_configure"), False
    )
}


def create_app(service: Service, front: Front | None = None) -> FastAPI:
    """An ASGI app with every route of ``ROUTES``.

    Its lifespan starts the service in the background, so that /healthz answers while the
    engines load, and drains it at the end.
    """
    front = front or Front()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        # not in a finally: a forced exit cancels this task and must not wait for a drain
        try:
            async with asyncio.timeout(CLOSE_S):
                await service.close()
        except TimeoutError:
            log.error("an engine does not end; it is left behind")

    app = FastAPI(
        title=f"mmf-serve: {', '.join(service.models)}",
        version=__version__,
        lifespan=lifespan,
        redirect_slashes=False,
        **QUIET,
    )
    _add_middleware(app, service, front)
    error_replies.install(app)
    for target in ROUTES.values():
        module, _, factory = target.partition(":")
        app.include_router(getattr(importlib.import_module(module), factory)(service))
    return app


def _add_middleware(app: FastAPI, service: Service, front: Front) -> None:
    """What every request passes; the last one added is the outermost."""
    app.add_middleware(BodyLimit, max_bytes=service.limits.max_body_bytes)
    app.add_middleware(CatchErrors)
    if front.keys is not None:
        service.intake.limiter = KeyLimits(front.limiter)
        app.add_middleware(RateLimitHeaders, limiter=front.limiter)
        app.add_middleware(Auth, ring_provider=lambda: front.keys)
    if front.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(front.cors),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=EXPOSED,
        )
    app.add_middleware(
        Instrument, metrics=service.metrics, draining=lambda: service.state is State.DRAINING
    )
    if front.tracing is not None:
        from .tracing import Tracing

        app.add_middleware(Tracing, provider=front.tracing)
    app.add_middleware(RequestLog)
