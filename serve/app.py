"""The HTTP application of a service."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from mmf_deploy import __version__

from . import error_replies
from .body_limit import BodyLimit
from .routes import ROUTES
from .service import Service


def create_app(service: Service) -> FastAPI:
    """An ASGI app with every route of ``ROUTES``.

    Its lifespan starts the service in the background, so that /healthz answers while the
    engine loads, and drains it at the end.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        # not in a finally: a forced exit cancels this task and must not wait for a drain
        await service.close()

    app = FastAPI(
        title=f"mmf-serve: {service.bundle.manifest.name}",
        version=__version__,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.add_middleware(BodyLimit, max_bytes=service.limits.max_body_bytes)
    error_replies.install(app)
    for target in ROUTES.values():
        module, _, factory = target.partition(":")
        app.include_router(getattr(importlib.import_module(module), factory)(service))
    return app
