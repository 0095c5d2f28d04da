"""GET /healthz (alive) and GET /readyz (able to serve)."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from ..error_replies import error_reply
from ..service import Service, State

WHY_NOT_READY = {
    State.STARTING: "the engine is loading or the golden images are being verified",
    State.DRAINING: "the service is shutting down",
    State.FAILED: "the bundle cannot be served; the log says why",
}

ENGINE_FAILS = "the last batches of an engine all failed; the log says why"


def router(service: Service) -> APIRouter:
    """The health routes of a service."""
    routes = APIRouter(tags=["health"])

    @routes.head("/healthz", include_in_schema=False)
    @routes.get("/healthz", responses={503: {"description": "An engine does nothing but fail."}})
    async def healthz() -> Response:
        """200 as long as the process answers and a new one would do no better."""
        if service.sick:
            return error_reply("/healthz", 503, "engine_fails", ENGINE_FAILS)
        return JSONResponse({"status": "alive"})

    @routes.head("/readyz", include_in_schema=False)
    @routes.get("/readyz", responses={503: {"description": "Starting, draining or failed."}})
    async def readyz() -> Response:
        """200 once the golden images are reproduced; 503 before that and while draining."""
        if service.healthy:
            return JSONResponse({"status": "ready"})
        state = service.state
        if state is State.READY:
            return error_reply("/readyz", 503, "not_ready_engine_fails", ENGINE_FAILS)
        return error_reply("/readyz", 503, f"not_ready_{state}", WHY_NOT_READY[state])

    return routes
