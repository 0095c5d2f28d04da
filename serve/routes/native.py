"""POST /v1/generate and GET /v1/model."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mmf_deploy import __version__

from ..formats import Format
from ..generation import Generation
from ..model import Loaded
from ..schema import GenerateRequest, parse
from ..service import Service
from .documented import body_of, errors, replies


def router(service: Service) -> APIRouter:
    """The native routes of a service."""
    routes = APIRouter(prefix="/v1", tags=["generate"])

    @routes.post("/generate", openapi_extra=body_of(GenerateRequest), responses=replies(*Format))
    async def generate(request: Request) -> Response:
        """Generate images. `format`, or Accept, chooses how they come."""
        body = parse(await request.body(), GenerateRequest)
        # the body is here: from now on nothing waits between choosing a bundle and its queue
        loaded = service.model(body.model).loaded
        return await Generation(service, request, loaded, body).reply()

    @routes.get("/model", responses={status: errors()[status] for status in (401, 404)})
    async def model(model: str | None = None) -> Response:
        """What is being served, and how."""
        return JSONResponse(describe(service, service.model(model).loaded))

    return routes


def describe(service: Service, loaded: Loaded) -> dict[str, Any]:
    """The reply of GET /v1/model."""
    manifest, engine, limits = loaded.bundle.manifest, loaded.engine, service.limits
    batcher = loaded.main.batcher
    return {
        "model": loaded.name,
        "models": list(service.models),
        "bundle": loaded.digest,
        "name": manifest.name,
        "spec": manifest.spec.model_dump(mode="json"),
        "variant": engine.variant.name,
        "steps": list(loaded.steps),
        "trajectories": list(loaded.trajectories),
        "variants": [
            {"name": v.name, "precision": v.precision, "steps": v.steps} for v in manifest.variants
        ],
        "engine": engine.name,
        "device": engine.device,
        "precision": engine.precision,
        # those that pay on this machine, once that is measured
        "buckets": list(batcher.cost.buckets if batcher else engine.buckets),
        "limits": {
            "max_images": limits.request_images,
            "max_queue_images": limits.max_queue_images,
            "max_body_bytes": limits.max_body_bytes,
        },
        "quality": manifest.quality,
        "measured": loaded.measured,
        "version": __version__,
    }
