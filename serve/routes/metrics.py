"""GET /metrics, for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from ..metrics import Metrics
from ..service import Service


def router(service: Service) -> APIRouter:
    """The route of a service."""
    routes = APIRouter(tags=["operation"])

    @routes.get("/metrics", responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Counters, histograms and gauges in Prometheus' text format."""
        return Response(service.metrics.text(), headers={"Content-Type": Metrics.content_type})

    return routes
