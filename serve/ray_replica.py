"""One replica on Ray: a whole service with its own engines, in a process that Ray makes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmf_deploy.errors import EngineError

from .app import create_app
from .launch import front_of
from .loading import limits_of, sources_of
from .log_format import configure
from .ray_metrics import AllMetrics
from .ray_settings import RaySettings
from .service import Service, State
from .watching import Watch

log = logging.getLogger(__name__)

LOOK_S = 0.02

GATHER_S = 2.0
"""How long /metrics waits for other replicas; those that are late are left out."""


class Replica:
    """Built cheaply, and in its own process: no engine is ever pickled."""

    def __init__(self, settings: RaySettings) -> None:
        self.settings = settings
        self.name = ""
        self.service: Service | None = None
        self._watching: asyncio.Task[None] | None = None
        self._all: Any = None  # Ray's handle of all replicas

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """What Ray serves; its lifespan opens the engines and, at the end, drains."""
        from ray import serve

        settings = self.settings
        # Ray may have put a log of its own in the place of stderr
        with contextlib.redirect_stderr(sys.__stderr__):
            configure(settings.log_level.value, settings.log_format.value)
        self.service = Service(sources_of(settings), limits_of(settings))
        app = create_app(self.service, front_of(settings, self.service))
        if settings.watch is not None:
            self._watching = asyncio.create_task(Watch(self.service, settings.watch).run())
        context = serve.get_replica_context()
        self.name = context.replica_id.unique_id
        self._all = serve.get_deployment_handle(context.deployment, context.app_name)
        app.add_middleware(AllMetrics, gather=self._metrics_of_all)
        app.add_middleware(Signed, replica=self.name)
        return app

    def metrics(self) -> tuple[str, bytes]:
        """This replica's name, and its metrics in Prometheus' text format."""
        assert self.service is not None
        return self.name, self.service.metrics.text()

    async def _metrics_of_all(self) -> Mapping[str, bytes]:
        try:
            asked = self._all.broadcast("metrics")
            found = await asked.results_async(timeout_s=GATHER_S, return_exceptions=True)
        except Exception as e:
            log.warning("/metrics has this replica alone: %s", e or type(e).__name__)
            found = []
        return dict([self.metrics(), *(x for x in found if isinstance(x, tuple))])

    async def check_health(self) -> None:
        """Ray sends no requests here until this returns, and replaces a replica where it raises.

        Raises:
            EngineError: the service cannot be opened, or its batches only fail.
        """
        service = self.service
        assert service is not None
        while service.state is State.STARTING:
            await asyncio.sleep(LOOK_S)
        if service.state is State.FAILED:
            raise EngineError(str(service.failure))
        if service.sick:
            raise EngineError("the last batches all failed; the log says why")


class Signed:
    """Middleware that says which replica answered, in X-MMF-Replica.

    It takes the request's id off the reply, because Ray's proxy, which made it, adds it.
    """

    def __init__(self, app: ASGIApp, replica: str) -> None:
        self.app = app
        self.header = (b"x-mmf-replica", replica.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and sign its reply."""
        given = [(k, v) for k, v in scope.get("headers", ()) if k == b"x-request-id"]

        async def signed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [(k, v) for k, v in message.get("headers", ()) if (k, v) not in given]
                message["headers"] = [*headers, self.header]
            await send(message)

        await self.app(scope, receive, signed)
