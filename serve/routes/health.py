"""GET /healthz (alive) and GET /readyz (able to serve)."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from ..error_replies import error_response
from ..service import Service, State

WHY_NOT_READY = {
    State.STARTING: "the engine is loading or the golden images are being verified",
    State.DRAINING: "the service is shutting down",
    State.FAILED: "the bundle cannot be served; the log says why",
}


def router(service: Service) -> APIRouter:
    """The health routes of a service."""
    routes = APIRouter(tags=["health"])

    @routes.head("/healthz", include_in_schema=False)
    @routes.get("/healthz")
    async def healthz() -> Response:
        """200 as long as the process answers."""
        return JSONResponse({"status": "alive"})

    @routes.head("/readyz", include_in_schema=False)
    @routes.get("/readyz", responses={503: {"description": "Starting, draining or failed."}})
    async def readyz() -> Response:
        """200 once the golden images are reproduced; 503 before that and while draining."""
        if service.state is State.READY:
            return JSONResponse({"status": "ready"})
        return error_response(503, f"not_ready_{service.state}", WHY_NOT_READY[service.state])

    return routes
